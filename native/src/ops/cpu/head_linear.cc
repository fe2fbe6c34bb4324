// One small matrix a head, always in fp32 panels: MLA's up-projections are a few percent of a layer's arithmetic.
#include <stdexcept>

#include "ops/cpu/cpu_ops_impl.h"

namespace sluice::cpu {

namespace {

struct HeadMatrices final : Linear {
  std::vector<std::unique_ptr<PackedLinear>> heads;
};

}  // namespace

std::unique_ptr<Linear> CpuOps::prepare_head_linear(std::span<const WeightSource> heads) {
  auto out = std::make_unique<HeadMatrices>();
  for (const WeightSource& head : heads) {
    if (head.rows != heads.front().rows) throw std::runtime_error("tensor " + std::string(head.name) + ": heads differ in shape");
    out->heads.push_back(pack_linear({&head, 1}, {}, false, weights_));
    out->bytes += out->heads.back()->bytes;
  }
  out->rows = heads.front().rows;
  out->cols = heads.front().cols;
  return out;
}

void CpuOps::head_linear(const StepView& step, const HeadLinear& args) {
  const auto& matrices = static_cast<const HeadMatrices&>(*args.weight);
  const Timer timer(*this, kLinear, matrices.bytes);
  pool_.for_each(args.n_heads, [&](int h, int) {
    const PackedLinear& w = *matrices.heads[static_cast<size_t>(h)];
    const float* x = static_cast<const float*>(args.x) + int64_t{h} * args.x_stride;
    float* y = static_cast<float*>(args.y) + int64_t{h} * args.y_stride;
    for (int p = 0; p < w.n_panels; ++p) {
      multiply_panel(w, p, x, int64_t{args.n_heads} * args.x_stride, quant_, 0, step.counts->n_tokens, y,
                     int64_t{args.n_heads} * args.y_stride);
    }
  });
}

}  // namespace sluice::cpu
