// The transformer: one forward pass for every family, strung from the operations of one backend.
#pragma once

#include <memory>
#include <vector>

#include "model/checkpoint.h"
#include "model/model.h"
#include "ops/ops.h"

namespace sluice {

class WeightReader;

class Transformer final : public Model {
 public:
  // Reads every weight. Throws std::runtime_error as load_model does.
  Transformer(std::unique_ptr<Checkpoint> checkpoint, std::unique_ptr<Ops> ops, const LoadOptions& options);

  const ModelInfo& info() const override { return info_; }
  void reserve(int32_t n_blocks, int32_t max_rows, int32_t max_step_tokens, int32_t max_logits) override;
  void forward(const StepPlan& plan, const BlockTables& tables, std::span<float> logits) override;

  const Ops& ops() const { return *ops_; }

 private:
  struct Layer {
    const float* attention_norm = nullptr;
    const float* mlp_norm = nullptr;
    int32_t group = 0;           // its KV group, and its place among that group's layers
    int32_t index_in_group = 0;
    int32_t window = 0;
    const float* sinks = nullptr;
    std::unique_ptr<Linear> o;
    // Heads of their own.
    std::unique_ptr<Linear> qkv;
    const float* q_norm = nullptr;
    const float* k_norm = nullptr;
    // Latent attention; q_a where queries have a latent too.
    std::unique_ptr<Linear> q_a, q, kv_a, up_key, up_value;
    const float* q_a_norm = nullptr;
    const float* kv_a_norm = nullptr;
    // Either of these.
    std::unique_ptr<Linear> gate_up, down;
    std::unique_ptr<MoeWeights> moe;
  };
  void add_groups();
  void read_heads(WeightReader& reader, int32_t i, Layer& layer);
  void read_latent(WeightReader& reader, int32_t i, Layer& layer);

  void run_layers(const StepView& step, float* logits);
  // From the normed hidden state to what joins the residual.
  void attend(const StepView& step, const Layer& layer);
  void attend_latent(const StepView& step, const Layer& layer);
  void feed_forward(const StepView& step, const Layer& layer);

  std::unique_ptr<Checkpoint> checkpoint_;  // keeps the files mapped: the embedding table is read from there
  std::unique_ptr<Ops> ops_;
  ModelInfo info_;
  RopeSpec rope_;
  float attention_scale_ = 0;
  std::vector<Layer> layers_;
  std::unique_ptr<Linear> embedding_, head_;
  const float* final_norm_ = nullptr;
  std::vector<KvShape> kv_shapes_;  // by group
  std::vector<KvPool> kv_;
  bool reserved_ = false;

  // Of a step. Activations are in the backend's element type: their buffers, sized for fp32, hold any.
  float* residual_ = nullptr;         // [tokens][hidden] fp32
  float* cos_sin_ = nullptr;          // [tokens][rotated dimensions] fp32
  void* normed_ = nullptr;            // [tokens][hidden]
  void* delta_ = nullptr;             // [tokens][hidden]
  void* qkv_ = nullptr;               // [tokens][(heads + 2 kv heads) head_dim]; latent: the queries before absorption
  void* q_ = nullptr;                 // [tokens][heads head_dim]; latent: [tokens][heads (latent + rope)]
  void* attended_ = nullptr;          // [tokens][heads head_dim]; latent: [tokens][heads value]
  void* q_latent_ = nullptr;          // [tokens][q_latent]
  void* kv_latent_ = nullptr;         // [tokens][latent + rope]
  void* attended_latent_ = nullptr;   // [tokens][heads latent]
  void* gate_up_ = nullptr;           // [tokens][2 inter]
  void* act_ = nullptr;               // [tokens][inter]
  void* gathered_ = nullptr;          // [logits][hidden]
  float* device_logits_ = nullptr;    // [logits][vocab], where the backend's memory is not the host's
};

}  // namespace sluice
