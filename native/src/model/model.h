// The seam between the scheduler (which owns rows, blocks and sampling) and the numbers (weights, kernels, KV bytes).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "ops/step.h"

namespace sluice {

enum class Precision : uint8_t {
  exact,  // fp32 throughout: the oracle
  fast,   // quantised dot products
};

struct KvGroupSpec {
  KvGroupKind kind;
  int32_t n_layers;
  int32_t window;         // tokens; 0 = unlimited
  int64_t bytes_per_block;  // all layers of the group
};

struct ModelInfo {
  std::string name;
  std::string architecture;
  int32_t vocab_size;
  int32_t context_length;
  int32_t hidden_size;
  int32_t n_layers;
  int64_t parameters;
  int64_t weight_bytes;
  std::vector<Token> stop_ids;
  std::vector<KvGroupSpec> kv_groups;
};

struct LoadOptions {
  std::string path;  // .gguf file, or a folder with config.json and *.safetensors
  Precision precision = Precision::fast;
  int threads = 1;
  std::function<void(double fraction)> progress;  // 0..1, called from the loading thread
};

class Model {
 public:
  virtual ~Model() = default;
  virtual const ModelInfo& info() const = 0;
  // Called once before the first step; all memory a step needs is taken here. Throws std::runtime_error when it does not fit.
  virtual void reserve(int32_t n_blocks, int32_t max_rows, int32_t max_step_tokens, int32_t max_logits) = 0;
  // Runs one step: writes KV of all new tokens, and logits [plan.n_logits][vocab_size] fp32 in the order of the plan.
  // A row's bits depend on nothing but its own tokens: not on batch, chunking, prefix hits or thread count.
  virtual void forward(const StepPlan& plan, const BlockTables& tables, std::span<float> logits) = 0;
};

// Throws std::runtime_error with a plain message (missing file, unknown architecture, unsupported tensor type and its name).
std::unique_ptr<Model> load_model(const LoadOptions& options);

}  // namespace sluice
