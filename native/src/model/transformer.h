// The dense transformer: one forward pass for every family, strung from the operations of one backend.
#pragma once

#include <memory>
#include <vector>

#include "model/checkpoint.h"
#include "model/model.h"
#include "ops/ops.h"

namespace sluice {

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
    const float* q_norm = nullptr;
    const float* k_norm = nullptr;
    std::unique_ptr<Linear> qkv, o, gate_up, down;
  };
  void run_layers(const StepView& step, float* logits);

  std::unique_ptr<Checkpoint> checkpoint_;  // keeps the files mapped: the embedding table is read from there
  std::unique_ptr<Ops> ops_;
  ModelInfo info_;
  RopeSpec rope_;
  std::vector<Layer> layers_;
  std::unique_ptr<Linear> embedding_, head_;
  const float* final_norm_ = nullptr;
  KvShape kv_shape_;
  KvPool kv_;
  bool reserved_ = false;

  // Activations of a step.
  float* residual_ = nullptr;  // [tokens][hidden]
  float* normed_ = nullptr;    // [tokens][hidden]
  float* delta_ = nullptr;     // [tokens][hidden]
  float* qkv_ = nullptr;       // [tokens][(heads + 2 kv heads) head_dim]
  float* q_ = nullptr;         // [tokens][heads head_dim]
  float* attended_ = nullptr;  // [tokens][heads head_dim]
  float* gate_up_ = nullptr;   // [tokens][2 inter]
  float* act_ = nullptr;       // [tokens][inter]
  float* cos_sin_ = nullptr;   // [tokens][head_dim]
  float* gathered_ = nullptr;  // [logits][hidden]
  float* device_logits_ = nullptr;  // [logits][vocab], where the backend's memory is not the host's
};

}  // namespace sluice
