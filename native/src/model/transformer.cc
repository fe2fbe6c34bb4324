#include "model/transformer.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "model/weights.h"

namespace sluice {

namespace {

// transformers builds the norms of DeepSeek's latents without the model's epsilon.
constexpr float kLatentNormEps = 1e-6f;

int32_t rotated_dim(const ModelConfig& c) { return c.mla.latent > 0 ? c.mla.rope : c.head_dim; }
// Width of a head as attention returns it to o.
int32_t value_dim(const ModelConfig& c) { return c.mla.latent > 0 ? c.mla.value : c.head_dim; }

}  // namespace

Transformer::Transformer(std::unique_ptr<Checkpoint> checkpoint, std::unique_ptr<Ops> ops, const LoadOptions& options)
    : checkpoint_(std::move(checkpoint)), ops_(std::move(ops)) {
  const ModelConfig& c = checkpoint_->config();
  WeightReader reader(*checkpoint_, *ops_, options.progress);
  layers_.resize(static_cast<size_t>(c.n_layers));
  add_groups();
  for (int32_t i = 0; i < c.n_layers; ++i) {
    Layer& layer = layers_[static_cast<size_t>(i)];
    layer.attention_norm = reader.layer_vector(i, reader.names().attention_norm, c.hidden);
    layer.mlp_norm = reader.layer_vector(i, reader.names().mlp_norm, c.hidden);
    if (c.mla.latent > 0) {
      read_latent(reader, i, layer);
    } else {
      read_heads(reader, i, layer);
    }
    layer.o = reader.layer_linear(i, {{reader.names().o, c.hidden}}, c.n_heads * value_dim(c));
    if (is_moe_layer(c, i)) {
      layer.moe = reader.moe(i);
    } else {
      layer.gate_up = reader.layer_linear(i, {{reader.names().gate, c.inter}, {reader.names().up, c.inter}}, c.hidden);
      layer.down = reader.layer_linear(i, {{reader.names().down, c.hidden}}, c.inter);
    }
  }
  final_norm_ = reader.vector(std::string(reader.names().final_norm), c.hidden);
  embedding_ = reader.embedding();
  head_ = reader.head();
  reader.finish();

  rope_.dim = rotated_dim(c);
  rope_.inv_frequency = c.inv_frequency;
  rope_.magnitude = c.rope_magnitude;
  attention_scale_ = c.attention_factor / std::sqrt(static_cast<float>(c.head_dim));
  info_.name = c.name;
  info_.architecture = c.architecture;
  info_.vocab_size = c.vocab_size;
  info_.context_length = c.context_length;
  info_.hidden_size = c.hidden;
  info_.n_layers = c.n_layers;
  info_.parameters = checkpoint_->parameters();
  info_.weight_bytes = checkpoint_->total_bytes();
  info_.stop_ids = c.stop_ids;
}

// Layers with one kind of attention share a group, in the order in which the kinds appear.
void Transformer::add_groups() {
  const ModelConfig& c = checkpoint_->config();
  for (int32_t i = 0; i < c.n_layers; ++i) {
    Layer& layer = layers_[static_cast<size_t>(i)];
    layer.window = window_of(c, i);
    const KvGroupKind kind = c.mla.latent > 0 ? KvGroupKind::mla_latent : layer.window > 0 ? KvGroupKind::sliding : KvGroupKind::full;
    const auto same = [kind](const KvShape& shape) { return shape.kind == kind; };
    auto shape = std::ranges::find_if(kv_shapes_, same);
    if (shape == kv_shapes_.end()) {
      kv_shapes_.push_back({kind, 0, c.n_kv_heads, c.mla.latent > 0 ? c.mla.rope : c.head_dim, c.mla.latent});
      info_.kv_groups.push_back({kind, 0, layer.window, 0});
      shape = kv_shapes_.end() - 1;
    }
    layer.group = static_cast<int32_t>(shape - kv_shapes_.begin());
    layer.index_in_group = shape->n_layers++;
  }
  for (size_t g = 0; g < kv_shapes_.size(); ++g) {
    info_.kv_groups[g].n_layers = kv_shapes_[g].n_layers;
    info_.kv_groups[g].bytes_per_block = ops_->kv_block_bytes(kv_shapes_[g]);
  }
}

void Transformer::read_heads(WeightReader& reader, int32_t i, Layer& layer) {
  const ModelConfig& c = checkpoint_->config();
  const Family& family = checkpoint_->family();
  if (family.qk_norm != QkNorm::none) {
    const bool whole = family.qk_norm == QkNorm::whole;
    layer.q_norm = reader.layer_vector(i, reader.names().q_norm, c.head_dim * (whole ? c.n_heads : 1));
    layer.k_norm = reader.layer_vector(i, reader.names().k_norm, c.head_dim * (whole ? c.n_kv_heads : 1));
  }
  if (family.sinks) layer.sinks = reader.sinks(i);
  layer.qkv = reader.qkv(i);
}

void Transformer::read_latent(WeightReader& reader, int32_t i, Layer& layer) {
  const ModelConfig& c = checkpoint_->config();
  if (c.mla.q_latent > 0) {
    layer.q_a = reader.layer_linear(i, {{reader.names().q_a, c.mla.q_latent}}, c.hidden);
    layer.q_a_norm = reader.layer_vector(i, reader.names().q_a_norm, c.mla.q_latent);
    layer.q = reader.mla_q(i, reader.names().q_b, c.mla.q_latent);
  } else {
    layer.q = reader.mla_q(i, reader.names().q, c.hidden);
  }
  layer.kv_a = reader.mla_kv(i);
  layer.kv_a_norm = reader.layer_vector(i, reader.names().kv_a_norm, c.mla.latent);
  auto up = reader.mla_up(i);
  layer.up_key = std::move(up.key);
  layer.up_value = std::move(up.value);
}

void Transformer::reserve(int32_t n_blocks, int32_t max_rows, int32_t max_step_tokens, int32_t max_logits) {
  if (reserved_) throw std::runtime_error("the model's memory is already reserved");
  if (n_blocks < 1 || max_rows < 1 || max_step_tokens < 1 || max_logits < 1) {
    throw std::runtime_error("a model needs at least one KV block, row, token and logit a step");
  }
  const ModelConfig& c = checkpoint_->config();
  const bool latent = c.mla.latent > 0;
  const bool dense = std::ranges::any_of(layers_, [](const Layer& layer) { return layer.moe == nullptr; });
  for (const KvShape& shape : kv_shapes_) kv_.push_back(ops_->make_kv_pool(shape, n_blocks));
  StepLimits limits{};
  limits.max_tokens = max_step_tokens;
  limits.max_rows = max_rows;
  limits.max_logits = max_logits;
  limits.max_positions = static_cast<int32_t>(std::min<int64_t>(c.context_length, int64_t{n_blocks} * kBlockTokens));
  limits.max_cols = std::max({c.hidden, dense ? c.inter : 0, c.n_heads * value_dim(c), c.mla.q_latent});
  limits.n_heads = c.n_heads;
  limits.n_kv_heads = c.n_kv_heads;
  limits.head_dim = latent ? c.mla.latent + c.mla.rope : c.head_dim;
  if (c.moe.n_experts > 0) {
    limits.n_experts = c.moe.n_experts;
    limits.experts_a_token = c.moe.top_k + c.moe.n_shared;
    limits.expert_inter = c.expert_inter;
    limits.expert_hidden = c.hidden;
  }
  ops_->reserve(limits);
  const int64_t t = max_step_tokens, heads = t * c.n_heads;
  residual_ = ops_->workspace(t * c.hidden);
  cos_sin_ = ops_->workspace(t * rotated_dim(c));
  normed_ = ops_->workspace(t * c.hidden);
  delta_ = ops_->workspace(t * c.hidden);
  attended_ = ops_->workspace(heads * value_dim(c));
  if (latent) {
    qkv_ = ops_->workspace(heads * c.head_dim);
    q_ = ops_->workspace(heads * (c.mla.latent + c.mla.rope));
    if (c.mla.q_latent > 0) q_latent_ = ops_->workspace(t * c.mla.q_latent);
    kv_latent_ = ops_->workspace(t * (c.mla.latent + c.mla.rope));
    attended_latent_ = ops_->workspace(heads * c.mla.latent);
  } else {
    qkv_ = ops_->workspace(t * (c.n_heads + 2 * c.n_kv_heads) * c.head_dim);
    q_ = ops_->workspace(heads * c.head_dim);
  }
  if (dense) {
    gate_up_ = ops_->workspace(t * 2 * c.inter);
    act_ = ops_->workspace(t * c.inter);
  }
  gathered_ = ops_->workspace(int64_t{max_logits} * c.hidden);
  if (!ops_->capabilities().host_memory) device_logits_ = ops_->workspace(int64_t{max_logits} * c.vocab_size);
  reserved_ = true;
}

void Transformer::forward(const StepPlan& plan, const BlockTables& tables, std::span<float> logits) {
  if (!reserved_) throw std::runtime_error("reserve() comes before the first step");
  const auto wanted = static_cast<size_t>(plan.n_logits) * static_cast<size_t>(info_.vocab_size);
  if (logits.size() < wanted) throw std::runtime_error("no room for the step's logits");
  const StepView& step = ops_->begin_step(plan, tables);
  float* target = device_logits_ != nullptr ? device_logits_ : logits.data();
  ops_->run({step.max_tokens, step.max_logits}, [&] { run_layers(step, target); });
  if (device_logits_ != nullptr) ops_->read(device_logits_, logits.subspan(0, wanted));
}

void Transformer::run_layers(const StepView& step, float* logits) {
  const ModelConfig& c = checkpoint_->config();
  ops_->embed(*embedding_, step, 1.0f, residual_);
  ops_->rope_tables(step, rope_, cos_sin_);
  const void* delta = nullptr;
  for (const Layer& layer : layers_) {
    ops_->rmsnorm(step, residual_, delta, layer.attention_norm, c.hidden, c.norm_eps, false, normed_);
    if (c.mla.latent > 0) {
      attend_latent(step, layer);
    } else {
      attend(step, layer);
    }
    ops_->linear(step, *layer.o, attended_, delta_, false);
    ops_->rmsnorm(step, residual_, delta_, layer.mlp_norm, c.hidden, c.norm_eps, false, normed_);
    feed_forward(step, layer);
    delta = delta_;
  }
  if (step.max_logits == 0) return;
  ops_->rmsnorm(step, residual_, delta, final_norm_, c.hidden, c.norm_eps, true, gathered_);
  ops_->linear(step, *head_, gathered_, logits, true);
}

void Transformer::attend(const StepView& step, const Layer& layer) {
  const ModelConfig& c = checkpoint_->config();
  KvPool& pool = kv_[static_cast<size_t>(layer.group)];
  ops_->linear(step, *layer.qkv, normed_, qkv_, false);
  ops_->rope_kv_write(step,
                      {.qkv = qkv_, .n_heads = c.n_heads, .n_kv_heads = c.n_kv_heads, .head_dim = c.head_dim,
                       .q_norm = layer.q_norm, .k_norm = layer.k_norm, .norm_whole = checkpoint_->family().qk_norm == QkNorm::whole,
                       .norm_eps = c.norm_eps, .cos_sin = cos_sin_, .rope_dim = c.head_dim, .layer = layer.index_in_group,
                       .group = layer.group, .q_out = q_},
                      pool);
  ops_->attention(step,
                  {.q = q_, .n_heads = c.n_heads, .layer = layer.index_in_group, .group = layer.group, .scale = attention_scale_,
                   .window = layer.window, .sinks = layer.sinks, .out = attended_},
                  pool);
}

void Transformer::attend_latent(const StepView& step, const Layer& layer) {
  const ModelConfig& c = checkpoint_->config();
  const MlaConfig& m = c.mla;
  KvPool& pool = kv_[static_cast<size_t>(layer.group)];
  if (layer.q_a != nullptr) {
    ops_->linear(step, *layer.q_a, normed_, q_latent_, false);
    ops_->norm(step, q_latent_, layer.q_a_norm, m.q_latent, kLatentNormEps, q_latent_);
  }
  ops_->linear(step, *layer.q, layer.q_a != nullptr ? q_latent_ : normed_, qkv_, false);
  ops_->linear(step, *layer.kv_a, normed_, kv_latent_, false);
  ops_->head_linear(step, {.weight = layer.up_key.get(), .n_heads = c.n_heads, .x = qkv_, .x_stride = c.head_dim, .y = q_,
                           .y_stride = m.latent + m.rope});
  ops_->mla_kv_write(step,
                     {.q = qkv_, .kv = kv_latent_, .n_heads = c.n_heads, .nope_dim = m.nope, .rope_dim = m.rope,
                      .latent_dim = m.latent, .latent_norm = layer.kv_a_norm, .norm_eps = kLatentNormEps, .cos_sin = cos_sin_,
                      .layer = layer.index_in_group, .group = layer.group, .q_out = q_},
                     pool);
  ops_->attention(step,
                  {.q = q_, .n_heads = c.n_heads, .layer = layer.index_in_group, .group = layer.group, .scale = attention_scale_,
                   .window = layer.window, .sinks = nullptr, .out = attended_latent_},
                  pool);
  ops_->head_linear(step, {.weight = layer.up_value.get(), .n_heads = c.n_heads, .x = attended_latent_, .x_stride = m.latent,
                           .y = attended_, .y_stride = m.value});
}

void Transformer::feed_forward(const StepView& step, const Layer& layer) {
  const ModelConfig& c = checkpoint_->config();
  if (layer.moe != nullptr) {
    ops_->moe_layer(step, {.weights = layer.moe.get(), .x = normed_, .out = delta_});
    return;
  }
  ops_->linear(step, *layer.gate_up, normed_, gate_up_, false);
  ops_->activation(step, {}, gate_up_, c.inter, act_);
  ops_->linear(step, *layer.down, act_, delta_, false);
}

}  // namespace sluice
