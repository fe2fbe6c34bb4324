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

int64_t CpuOps::kv_block_bytes(const KvShape& shape) const {
  if (shape.kind == KvGroupKind::mla_latent) unsupported(name_, "kv_block_bytes", "latent KV groups are not built on the CPU");
  return kv_layer_elements(shape.n_kv_heads, shape.head_dim) * (exact_ ? 4 : 2) * shape.n_layers;
}

KvPool CpuOps::make_kv_pool(const KvShape& shape, int32_t n_blocks) {
  KvPool pool;
  pool.block_bytes = kv_block_bytes(shape);
  pool.layer_bytes = pool.block_bytes / shape.n_layers;
  pool.n_blocks = n_blocks;
  pool.n_layers = shape.n_layers;
  pool.kind = shape.kind;
  pool.type = exact_ ? KvType::f32 : KvType::f16;
  pool.n_kv_heads = shape.n_kv_heads;
  pool.head_dim = shape.head_dim;
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
  const int64_t n_blocks = (limits.max_cols + kQuantBlock - 1) / kQuantBlock;
  const int64_t m = std::max(limits.max_tokens, limits.max_logits);
  if (!exact_) {
    quant_.high = reinterpret_cast<int8_t*>(workspace(m * n_blocks * kQuantBlock / 4));
    quant_.low = reinterpret_cast<int8_t*>(workspace(m * n_blocks * kQuantBlock / 4));
    quant_.wide = wide_;
    quant_.prefetch = prefetch_;
    quant_.d = workspace(m * n_blocks);
    quant_.d_sum = workspace(m * n_blocks);
    quant_.sum = reinterpret_cast<int32_t*>(workspace(m * n_blocks));
  }
  reserve_attention();
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

template <class Body>
void CpuOps::for_tokens(int n, int tokens_a_task, const Body& body) {
  pool_.for_each((n + tokens_a_task - 1) / tokens_a_task, [&](int task, int thread) {
    const int end = std::min(n, (task + 1) * tokens_a_task);
    for (int token = task * tokens_a_task; token < end; ++token) body(token, thread);
  });
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

void CpuOps::rmsnorm(const StepView& step, float* residual, const float* delta, const float* weight, int32_t width,
                     float eps, bool gather, float* out) {
  const Timer timer(*this, kNorm, 0);
  const int n = gather ? step.counts->n_logits : step.counts->n_tokens;
  for_tokens(n, 16, [&](int i, int) {
    const int64_t at = int64_t{gather ? step.logit_tokens[i] : i} * width;
    const auto norm = exact_ ? rmsnorm_exact : kernels_.rmsnorm;
    norm(residual + at, delta == nullptr ? nullptr : delta + at, weight, width, eps, out + int64_t{i} * width);
  });
}

void CpuOps::linear(const StepView& step, const Linear& weight, const float* x, float* y, bool over_logits) {
  const auto& w = static_cast<const PackedLinear&>(weight);
  const int m = over_logits ? step.counts->n_logits : step.counts->n_tokens;
  if (m == 0) return;
  const Timer timer(*this, over_logits ? kHead : kLinear, w.bytes);
  const auto store_rows = [&](int64_t panel) { return static_cast<int>(std::min<int64_t>(kLanes, w.rows - panel * kLanes)); };
  // A few tasks a thread, so that a thread that lost its core for a moment holds up only a part.
  const int panels_a_task = std::max(1, w.n_panels / (pool_.n_threads() * 6));
  const int n_tasks = (w.n_panels + panels_a_task - 1) / panels_a_task;
  QuantActivations quant = quant_;
  quant.n_blocks = w.n_blocks;
  if (w.kind != PanelKind::f32) {
    for_tokens(m, 8, [&](int token, int) { kernels_.quantize(x + int64_t{token} * w.cols, w.cols, token, quant); });
  }
  pool_.for_each(n_tasks, [&](int task, int) {
    const int end = std::min(w.n_panels, (task + 1) * panels_a_task);
    for (int p = task * panels_a_task; p < end; ++p) {
      float* out = y + int64_t{p} * kLanes;
      switch (w.kind) {
        case PanelKind::f32:
          kernels_.panel_f32(reinterpret_cast<const float*>(w.panel(p)), x, w.cols, w.cols, m, w.panel_bias(p), out,
                             w.rows, store_rows(p));
          break;
        case PanelKind::q4:
          kernels_.panel_q4(w.panel(p), quant, 0, m, w.panel_bias(p), out, w.rows, store_rows(p));
          break;
        case PanelKind::q8:
          kernels_.panel_q8(w.panel(p), quant, 0, m, w.panel_bias(p), out, w.rows, store_rows(p));
          break;
      }
    }
  });
}

// Angles in fp32, as HF computes them: position * inv_frequency rounds before the cosine.
void CpuOps::rope_tables(const StepView& step, const RopeSpec& rope, float* cos_sin) {
  const Timer timer(*this, kRope, 0);
  const int half = rope.dim / 2;
  for_tokens(step.counts->n_tokens, 32, [&](int token, int) {
    float* row = cos_sin + int64_t{token} * rope.dim;
    for (int i = 0; i < half; ++i) {
      const float angle = static_cast<float>(step.positions[token]) * rope.inv_frequency[static_cast<size_t>(i)];
      row[i] = std::cos(angle) * rope.magnitude;
      row[half + i] = std::sin(angle) * rope.magnitude;
    }
  });
}

namespace {

void rotate(float* head, const float* cos_sin, int rope_dim) {
  const int half = rope_dim / 2;
  for (int i = 0; i < half; ++i) {
    const float a = head[i], b = head[half + i];
    head[i] = a * cos_sin[i] - b * cos_sin[half + i];
    head[half + i] = b * cos_sin[i] + a * cos_sin[half + i];
  }
}

}  // namespace

void CpuOps::rope_kv_write(const StepView& step, const RopeKvWrite& args, KvPool& pool) {
  const Timer timer(*this, kRope, 0);
  const auto norm = exact_ ? rmsnorm_exact : kernels_.rmsnorm;
  const int d = args.head_dim;
  const int64_t qkv_width = int64_t{args.n_heads + 2 * args.n_kv_heads} * d;
  const BlockTables::Group& table = step.tables[static_cast<size_t>(args.group)];
  for_tokens(step.counts->n_tokens, 16, [&](int token, int) {
    const float* in = args.qkv + token * qkv_width;
    const float* angles = args.cos_sin + int64_t{token} * args.rope_dim;
    const auto turn = [&](const float* from, float* to, const float* weight) {
      std::memcpy(to, from, static_cast<size_t>(d) * sizeof(float));
      if (weight != nullptr) norm(to, nullptr, weight, d, args.norm_eps, to);
      rotate(to, angles, args.rope_dim);
    };
    for (int h = 0; h < args.n_heads; ++h) {
      turn(in + int64_t{h} * d, args.q_out + (int64_t{token} * args.n_heads + h) * d, args.q_norm);
    }
    const int32_t position = step.positions[token];
    const RowWork& row = step.rows[step.token_rows[token]];
    const int64_t block = table.blocks[int64_t{row.row} * table.blocks_per_row + position / kBlockTokens];
    const int slot = position % kBlockTokens;
    std::byte* layer = pool.data + block * pool.block_bytes + args.layer * pool.layer_bytes;
    for (int h = 0; h < args.n_kv_heads; ++h) {
      float k[512];
      turn(in + int64_t{args.n_heads + h} * d, k, args.k_norm);
      const float* v = in + int64_t{args.n_heads + args.n_kv_heads + h} * d;
      const int64_t k_at = k_offset(h, d) + slot, v_at = v_offset(args.n_kv_heads, h, d) + int64_t{slot} * d;
      if (exact_) {
        auto* kv = reinterpret_cast<float*>(layer);
        for (int i = 0; i < d; ++i) kv[k_at + i * kBlockTokens] = k[i];
        std::memcpy(kv + v_at, v, static_cast<size_t>(d) * sizeof(float));
      } else {
        auto* kv = reinterpret_cast<uint16_t*>(layer);
        kernels_.store_half(k, d, kv + k_at, kBlockTokens);
        kernels_.store_half(v, d, kv + v_at, 1);
      }
    }
  });
}

void CpuOps::activation(const StepView& step, const Activation& kind, const float* gate_up, int32_t inter, float* out) {
  if (kind.kind != ActivationKind::swiglu) unsupported(name_, "activation", "only SwiGLU is built");
  const Timer timer(*this, kActivation, 0);
  const auto swiglu = exact_ ? swiglu_exact : kernels_.swiglu;
  for_tokens(step.counts->n_tokens, 8, [&](int token, int) {
    const float* in = gate_up + int64_t{token} * 2 * inter;
    swiglu(in, in + inter, inter, out + int64_t{token} * inter);
  });
}

void CpuOps::copy_blocks(KvPool& pool, std::span<const std::pair<int32_t, int32_t>> pairs) {
  for (const auto& [from, to] : pairs) {
    if (from < 0 || to < 0 || from >= pool.n_blocks || to >= pool.n_blocks) throw std::runtime_error("copy of a KV block that does not exist");
    std::memcpy(pool.data + to * pool.block_bytes, pool.data + from * pool.block_bytes, static_cast<size_t>(pool.block_bytes));
  }
}

std::vector<StageTime> CpuOps::stage_times() const {
  static constexpr std::array<const char*, kStages> names = {"embed", "rmsnorm", "linear", "head", "rope+kv", "attention", "activation"};
  std::vector<StageTime> out;
  for (size_t i = 0; i < kStages; ++i) out.push_back({names[i], stages_[i].calls, stages_[i].seconds, stages_[i].bytes});
  return out;
}

}  // namespace cpu
}  // namespace sluice
