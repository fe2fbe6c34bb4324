// The CPU backend: the portable default and the oracle. `exact` keeps fp32 values and adds up in double; `fast` takes
// quantised dot products and fp16 KV. Both share everything but linear, attention and the elementwise kernels.
#pragma once

#include <memory>

#include "base/cpu_features.h"
#include "ops/ops.h"

namespace sluice {

struct CpuOpsOptions {
  bool exact = false;
  int threads = 1;
  CpuIsa isa = CpuIsa::generic;
  // `fast`: activations of a quantised dot product have 16 bits, or 8 as llama.cpp has them: faster where a step is bound by
  // arithmetic, but it changes one greedy choice in twenty (docs/engine-operations.md).
  bool wide_activations = true;
  bool prefetch = true;
  bool huge_pages = true;  // for weights, where the system has them
};

// Throws std::runtime_error on a bad thread count.
std::unique_ptr<Ops> make_cpu_ops(const CpuOpsOptions& options);

}  // namespace sluice
