#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "base/half.h"
#include "io/tensor.h"
#include "ops/cpu/cpu_ops_impl.h"

namespace sluice {

std::unique_ptr<Ops> make_cpu_ops(const CpuOpsOptions& options) { return std::make_unique<cpu::CpuOps>(options); }

namespace cpu {

CpuOps::CpuOps(const CpuOpsOptions& options)
    : exact_(options.exact),
      wide_(options.wide_activations),
      prefetch_(options.prefetch),
      kernels_(kernels(options.isa)),
      name_(std::string(options.exact ? "cpu-exact-" : "cpu-fast-") + std::string(cpu_isa_name(options.isa))),
      pool_(options.threads),
      weights_(options.huge_pages ? size_t{32} << 20 : 1),
      scratch_(static_cast<size_t>(options.threads)) {
  const char* profile = std::getenv("SLUICE_PROF");
  profiling_ = profile != nullptr && std::string_view(profile) == "1";
}

Capabilities CpuOps::capabilities() const {
  Capabilities out;
  out.moe = true;
  out.mla = true;
  out.host_memory = true;
  return out;
}

std::unique_ptr<Linear> CpuOps::prepare_linear(std::span<const WeightSource> parts, std::span<const float> bias) {
  return pack_linear(parts, bias, !exact_, weights_);
}

std::unique_ptr<Linear> CpuOps::prepare_embedding(const WeightSource& table) { return pack_embedding(table); }

float* CpuOps::workspace(int64_t n_floats) {
  memory_.emplace_back(static_cast<size_t>(n_floats) * sizeof(float));
  return memory_.back().as<float>();
}

const float* CpuOps::upload(std::span<const float> values) {
  float* copy = workspace(static_cast<int64_t>(values.size()));
  std::copy(values.begin(), values.end(), copy);
  return copy;
}

// Latents are fp32 in `fast` too: they are a tenth of what heads of their own would take.
int64_t CpuOps::kv_block_bytes(const KvShape& shape) const {
  if (shape.kind == KvGroupKind::mla_latent) {
    return int64_t{shape.latent_dim + shape.head_dim} * kBlockTokens * 4 * shape.n_layers;
  }
  return kv_layer_elements(shape.n_kv_heads, shape.head_dim) * (exact_ ? 4 : 2) * shape.n_layers;
}

KvPool CpuOps::make_kv_pool(const KvShape& shape, int32_t n_blocks) {
  KvPool pool;
  pool.block_bytes = kv_block_bytes(shape);
  pool.layer_bytes = pool.block_bytes / shape.n_layers;
  pool.n_blocks = n_blocks;
  pool.n_layers = shape.n_layers;
  pool.kind = shape.kind;
  pool.type = exact_ || shape.kind == KvGroupKind::mla_latent ? KvType::f32 : KvType::f16;
  pool.n_kv_heads = shape.n_kv_heads;
  pool.head_dim = shape.head_dim;
  pool.latent_dim = shape.latent_dim;
  memory_.emplace_back(static_cast<size_t>(pool.block_bytes) * static_cast<size_t>(n_blocks));
  pool.data = memory_.back().data();
  pool_blocks_.push_back(n_blocks);
  return pool;
}

void CpuOps::reserve(const StepLimits& limits) {
  limits_ = limits;
  const auto tokens = static_cast<size_t>(limits.max_tokens);
  tokens_.reserve(tokens);
  positions_.reserve(tokens);
  token_rows_.reserve(tokens);
  logit_tokens_.reserve(static_cast<size_t>(limits.max_logits));
  rows_.reserve(static_cast<size_t>(limits.max_rows));
  if (!exact_) {
    const auto blocks_of = [](int64_t cols) { return (cols + kQuantBlock - 1) / kQuantBlock; };
    const int64_t visits = int64_t{limits.max_tokens} * limits.experts_a_token;
    const int64_t n = std::max(std::max(limits.max_tokens, limits.max_logits) * blocks_of(limits.max_cols),
                               visits * blocks_of(std::max(limits.expert_hidden, limits.expert_inter)));
    quant_.high = reinterpret_cast<int8_t*>(workspace(n * kQuantBlock / 4));
    quant_.low = reinterpret_cast<int8_t*>(workspace(n * kQuantBlock / 4));
    quant_.wide = wide_;
    quant_.prefetch = prefetch_;
    quant_.d = workspace(n);
    quant_.d_sum = workspace(n);
    quant_.sum = reinterpret_cast<int32_t*>(workspace(n));
  }
  reserve_attention();
  if (limits.n_experts > 0) reserve_moe();
}

const StepView& CpuOps::begin_step(const StepPlan& plan, const BlockTables& tables) {
  const auto n_tokens = static_cast<int32_t>(plan.tokens.size());
  if (n_tokens > limits_.max_tokens || static_cast<int32_t>(plan.rows.size()) > limits_.max_rows ||
      plan.n_logits > limits_.max_logits) {
    throw std::runtime_error("a step of " + std::to_string(plan.rows.size()) + " rows, " + std::to_string(n_tokens) +
                             " tokens and " + std::to_string(plan.n_logits) + " logits is larger than reserved");
  }
  if (tables.groups.size() != pool_blocks_.size()) throw std::runtime_error("a step needs one block table a KV group");
  tokens_.assign(plan.tokens.begin(), plan.tokens.end());
  rows_.assign(plan.rows.begin(), plan.rows.end());
  groups_.assign(tables.groups.begin(), tables.groups.end());
  positions_.clear();
  token_rows_.clear();
  logit_tokens_.clear();
  int32_t row_index = 0;
  for (const RowWork& row : rows_) {
    const int32_t first = static_cast<int32_t>(positions_.size());
    const int64_t end = int64_t{row.first_pos} + row.n_new;
    if (row.row < 0 || row.row >= limits_.max_rows || row.first_pos < 0 || row.n_new <= 0 ||
        end > limits_.max_positions || row.n_logits < 0 || row.n_logits > row.n_new || first + row.n_new > n_tokens) {
      throw std::runtime_error("row " + std::to_string(row.row) + " of the step is out of bounds");
    }
    // A wrong block id would read or write foreign memory, and nothing later can tell.
    const int64_t n_blocks = (end + kBlockTokens - 1) / kBlockTokens;
    for (size_t g = 0; g < groups_.size(); ++g) {
      const int32_t* blocks = groups_[g].blocks + int64_t{row.row} * groups_[g].blocks_per_row;
      bool inside = n_blocks <= groups_[g].blocks_per_row;
      for (int64_t b = 0; inside && b < n_blocks; ++b) inside = blocks[b] >= 0 && blocks[b] < pool_blocks_[g];
      if (!inside) throw std::runtime_error("row " + std::to_string(row.row) + " names a KV block that does not exist");
    }
    for (int32_t i = 0; i < row.n_new; ++i) {
      positions_.push_back(row.first_pos + i);
      token_rows_.push_back(row_index);
      if (i >= row.n_new - row.n_logits) logit_tokens_.push_back(first + i);
    }
    ++row_index;
  }
  if (static_cast<int32_t>(positions_.size()) != n_tokens || static_cast<int32_t>(logit_tokens_.size()) != plan.n_logits) {
    throw std::runtime_error("the step's rows do not add up to its tokens and logits");
  }
  counts_ = {n_tokens, static_cast<int32_t>(rows_.size()), plan.n_logits};
  view_ = {&counts_,         counts_.n_tokens,   counts_.n_rows,       counts_.n_logits, tokens_.data(),
           positions_.data(), token_rows_.data(), logit_tokens_.data(), rows_.data(),     groups_};
  plan_attention();
  return view_;
}

void CpuOps::run(const GraphKey&, const std::function<void()>& forward) { forward(); }

void CpuOps::read(const float* source, std::span<float> host_out) {
  std::copy(source, source + host_out.size(), host_out.begin());
}

void CpuOps::embed(const Linear& table, const StepView& step, float scale, float* out) {
  const auto& embedding = static_cast<const EmbeddingTable&>(table);
  const int n = step.counts->n_tokens;
  const Timer timer(*this, kEmbed, embedding.row_bytes * n);
  for (int token = 0; token < n; ++token) {
    if (step.tokens[token] < 0 || step.tokens[token] >= embedding.rows) {
      throw std::runtime_error("token id " + std::to_string(step.tokens[token]) + " is outside the vocabulary");
    }
  }
  for_tokens(n, 16, [&](int token, int) {
    float* row = out + int64_t{token} * embedding.cols;
    dequantize(embedding.format, embedding.data + step.tokens[token] * embedding.row_bytes, embedding.cols, row);
    if (scale != 1.0f) {
      for (int i = 0; i < embedding.cols; ++i) row[i] *= scale;
    }
  });
}

void CpuOps::rmsnorm(const StepView& step, float* residual, const void* delta, const float* weight, int32_t width,
                     float eps, bool gather, void* out) {
  const Timer timer(*this, kNorm, 0);
  const int n = gather ? step.counts->n_logits : step.counts->n_tokens;
  for_tokens(n, 16, [&](int i, int) {
    const int64_t at = int64_t{gather ? step.logit_tokens[i] : i} * width;
    const auto norm = exact_ ? rmsnorm_exact : kernels_.rmsnorm;
    norm(residual + at, delta == nullptr ? nullptr : static_cast<const float*>(delta) + at, weight, width, eps,
         static_cast<float*>(out) + int64_t{i} * width);
  });
}

void CpuOps::norm(const StepView& step, const void* x, const float* weight, int32_t width, float eps, void* out) {
  const Timer timer(*this, kNorm, 0);
  for_tokens(step.counts->n_tokens, 16, [&](int token, int) {
    float* to = static_cast<float*>(out) + int64_t{token} * width;
    if (out != x) std::memcpy(to, static_cast<const float*>(x) + int64_t{token} * width, static_cast<size_t>(width) * sizeof(float));
    (exact_ ? rmsnorm_exact : kernels_.rmsnorm)(to, nullptr, weight, width, eps, to);
  });
}

void CpuOps::quantize_rows(const float* x, int64_t stride, int32_t cols, int m, QuantActivations& quant) {
  quant.n_blocks = (cols + kQuantBlock - 1) / kQuantBlock;
  for_tokens(m, 8, [&](int token, int) { kernels_.quantize(x + token * stride, cols, token, quant); });
}

void CpuOps::multiply_panel(const PackedLinear& w, int64_t p, const float* x, int64_t x_stride,
                            const QuantActivations& quant, int first, int m, float* y, int64_t y_stride) const {
  float* out = y + p * kLanes;
  const int valid = static_cast<int>(std::min<int64_t>(kLanes, w.rows - p * kLanes));
  switch (w.kind) {
    case PanelKind::f32:
      kernels_.panel_f32(reinterpret_cast<const float*>(w.panel(p)), x, x_stride, w.cols, m, w.panel_bias(p), out, y_stride, valid);
      break;
    case PanelKind::q4: kernels_.panel_q4(w.panel(p), quant, first, m, w.panel_bias(p), out, y_stride, valid); break;
    case PanelKind::q8: kernels_.panel_q8(w.panel(p), quant, first, m, w.panel_bias(p), out, y_stride, valid); break;
  }
}

void CpuOps::multiply(const PackedLinear& w, const float* x, int m, float* y) {
  // A few tasks a thread, so that a thread that lost its core for a moment holds up only a part.
  const int panels_a_task = std::max(1, w.n_panels / (pool_.n_threads() * 6));
  const int n_tasks = (w.n_panels + panels_a_task - 1) / panels_a_task;
  QuantActivations quant = quant_;
  if (w.kind != PanelKind::f32) quantize_rows(x, w.cols, w.cols, m, quant);
  pool_.for_each(n_tasks, [&](int task, int) {
    const int end = std::min(w.n_panels, (task + 1) * panels_a_task);
    for (int p = task * panels_a_task; p < end; ++p) multiply_panel(w, p, x, w.cols, quant, 0, m, y, w.rows);
  });
}

void CpuOps::linear(const StepView& step, const Linear& weight, const void* x, void* y, bool over_logits) {
  const auto& w = static_cast<const PackedLinear&>(weight);
  const int m = over_logits ? step.counts->n_logits : step.counts->n_tokens;
  if (m == 0) return;
  const Timer timer(*this, over_logits ? kHead : kLinear, w.bytes);
  multiply(w, static_cast<const float*>(x), m, static_cast<float*>(y));
}

void CpuOps::gate(const Activation& kind, const float* gate, const float* up, int n, float* out) const {
  switch (kind.kind) {
    case ActivationKind::swiglu: return (exact_ ? swiglu_exact : kernels_.swiglu)(gate, up, n, out);
    case ActivationKind::swiglu_clamped: return swiglu_clamped(gate, up, n, kind.alpha, kind.limit, out);
    case ActivationKind::geglu_tanh: unsupported(name_, "activation", "GeGLU is not built on the CPU");
  }
}

void CpuOps::activation(const StepView& step, const Activation& kind, const void* gate_up, int32_t inter, void* out) {
  const Timer timer(*this, kActivation, 0);
  for_tokens(step.counts->n_tokens, 8, [&](int token, int) {
    const float* in = static_cast<const float*>(gate_up) + int64_t{token} * 2 * inter;
    gate(kind, in, in + inter, inter, static_cast<float*>(out) + int64_t{token} * inter);
  });
}

void CpuOps::copy_blocks(KvPool& pool, std::span<const std::pair<int32_t, int32_t>> pairs) {
  for (const auto& [from, to] : pairs) {
    if (from < 0 || to < 0 || from >= pool.n_blocks || to >= pool.n_blocks) throw std::runtime_error("copy of a KV block that does not exist");
    std::memcpy(pool.data + to * pool.block_bytes, pool.data + from * pool.block_bytes, static_cast<size_t>(pool.block_bytes));
  }
}

std::vector<StageTime> CpuOps::stage_times() const {
  static constexpr std::array<const char*, kStages> names = {"embed", "rmsnorm", "linear", "head", "rope+kv", "attention", "activation", "moe"};
  std::vector<StageTime> out;
  for (size_t i = 0; i < kStages; ++i) out.push_back({names[i], stages_[i].calls, stages_[i].seconds, stages_[i].bytes});
  return out;
}

}  // namespace cpu
}  // namespace sluice
