#include "model/transformer.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "model/weights.h"

namespace sluice {

Transformer::Transformer(std::unique_ptr<Checkpoint> checkpoint, std::unique_ptr<Ops> ops, const LoadOptions& options)
    : checkpoint_(std::move(checkpoint)), ops_(std::move(ops)) {
  const ModelConfig& c = checkpoint_->config();
  WeightReader reader(*checkpoint_, *ops_, options.progress);
  for (int32_t i = 0; i < c.n_layers; ++i) {
    Layer layer;
    layer.attention_norm = reader.layer_vector(i, reader.names().attention_norm, c.hidden);
    layer.mlp_norm = reader.layer_vector(i, reader.names().mlp_norm, c.hidden);
    if (checkpoint_->family().qk_norm) {
      layer.q_norm = reader.layer_vector(i, reader.names().q_norm, c.head_dim);
      layer.k_norm = reader.layer_vector(i, reader.names().k_norm, c.head_dim);
    }
    layer.qkv = reader.qkv(i);
    layer.o = reader.layer_linear(i, {{reader.names().o, c.hidden, 0}}, c.n_heads * c.head_dim);
    layer.gate_up = reader.layer_linear(i, {{reader.names().gate, c.inter, 0}, {reader.names().up, c.inter, 0}}, c.hidden);
    layer.down = reader.layer_linear(i, {{reader.names().down, c.hidden, 0}}, c.inter);
    layers_.push_back(std::move(layer));
  }
  final_norm_ = reader.vector(std::string(reader.names().final_norm), c.hidden);
  embedding_ = reader.embedding();
  head_ = reader.head();
  reader.finish();

  rope_.dim = c.head_dim;
  rope_.inv_frequency = c.inv_frequency;
  kv_shape_ = {KvGroupKind::full, c.n_layers, c.n_kv_heads, c.head_dim, 0};
  info_.name = c.name;
  info_.architecture = c.architecture;
  info_.vocab_size = c.vocab_size;
  info_.context_length = c.context_length;
  info_.hidden_size = c.hidden;
  info_.n_layers = c.n_layers;
  info_.parameters = checkpoint_->parameters();
  info_.weight_bytes = checkpoint_->total_bytes();
  info_.stop_ids = c.stop_ids;
  info_.kv_groups = {{KvGroupKind::full, c.n_layers, 0, ops_->kv_block_bytes(kv_shape_)}};
}

void Transformer::reserve(int32_t n_blocks, int32_t max_rows, int32_t max_step_tokens, int32_t max_logits) {
  if (reserved_) throw std::runtime_error("the model's memory is already reserved");
  if (n_blocks < 1 || max_rows < 1 || max_step_tokens < 1 || max_logits < 1) {
    throw std::runtime_error("a model needs at least one KV block, row, token and logit a step");
  }
  const ModelConfig& c = checkpoint_->config();
  kv_ = ops_->make_kv_pool(kv_shape_, n_blocks);
  StepLimits limits{};
  limits.max_tokens = max_step_tokens;
  limits.max_rows = max_rows;
  limits.max_logits = max_logits;
  limits.max_positions = static_cast<int32_t>(std::min<int64_t>(c.context_length, int64_t{n_blocks} * kBlockTokens));
  limits.max_cols = std::max({c.hidden, c.inter, c.n_heads * c.head_dim});
  limits.n_heads = c.n_heads;
  limits.n_kv_heads = c.n_kv_heads;
  limits.head_dim = c.head_dim;
  ops_->reserve(limits);
  const int64_t t = max_step_tokens;
  residual_ = ops_->workspace(t * c.hidden);
  normed_ = ops_->workspace(t * c.hidden);
  delta_ = ops_->workspace(t * c.hidden);
  qkv_ = ops_->workspace(t * (c.n_heads + 2 * c.n_kv_heads) * c.head_dim);
  q_ = ops_->workspace(t * c.n_heads * c.head_dim);
  attended_ = ops_->workspace(t * c.n_heads * c.head_dim);
  gate_up_ = ops_->workspace(t * 2 * c.inter);
  act_ = ops_->workspace(t * c.inter);
  cos_sin_ = ops_->workspace(t * c.head_dim);
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
  const float scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  ops_->embed(*embedding_, step, 1.0f, residual_);
  ops_->rope_tables(step, rope_, cos_sin_);
  const float* delta = nullptr;
  for (int32_t i = 0; i < c.n_layers; ++i) {
    const Layer& layer = layers_[static_cast<size_t>(i)];
    ops_->rmsnorm(step, residual_, delta, layer.attention_norm, c.hidden, c.norm_eps, false, normed_);
    ops_->linear(step, *layer.qkv, normed_, qkv_, false);
    ops_->rope_kv_write(step,
                        {qkv_, c.n_heads, c.n_kv_heads, c.head_dim, layer.q_norm, layer.k_norm, c.norm_eps, cos_sin_,
                         c.head_dim, i, 0, q_},
                        kv_);
    ops_->attention(step, {q_, c.n_heads, i, 0, scale, 0, nullptr, attended_}, kv_);
    ops_->linear(step, *layer.o, attended_, delta_, false);
    ops_->rmsnorm(step, residual_, delta_, layer.mlp_norm, c.hidden, c.norm_eps, false, normed_);
    ops_->linear(step, *layer.gate_up, normed_, gate_up_, false);
    ops_->activation(step, {}, gate_up_, c.inter, act_);
    ops_->linear(step, *layer.down, act_, delta_, false);
    delta = delta_;
  }
  if (step.max_logits == 0) return;
  ops_->rmsnorm(step, residual_, delta, final_norm_, c.hidden, c.norm_eps, true, gathered_);
  ops_->linear(step, *head_, gathered_, logits, true);
}

}  // namespace sluice
