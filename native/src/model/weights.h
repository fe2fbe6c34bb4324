// From a checkpoint's tensors to a backend's weights.
#pragma once

#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "model/checkpoint.h"
#include "ops/ops.h"

namespace sluice {

class WeightReader {
 public:
  WeightReader(Checkpoint& checkpoint, Ops& ops, std::function<void(double)> progress);
  const NameMap& names() const { return checkpoint_.names(); }

  // order: empty, or output r is the file's row order[r] (rotary pairs that lie side by side are moved apart: RopeSpec).
  struct Part {
    std::string_view name;
    int32_t rows;
    std::vector<int32_t> order = {};
  };
  // Parts of one layer as one matrix, with the biases that the files have (all parts or none).
  std::unique_ptr<Linear> layer_linear(int32_t layer, std::initializer_list<Part> parts, int32_t cols);
  std::unique_ptr<Linear> qkv(int32_t layer);
  // Latent attention. q_b's part is named by the caller, since a model without a query latent calls it q_proj.
  std::unique_ptr<Linear> mla_q(int32_t layer, std::string_view name, int32_t cols);
  std::unique_ptr<Linear> mla_kv(int32_t layer);
  // The halves of kv_b: keys' transposed, a head [latent][nope], and values', a head [value][latent].
  struct UpProjections {
    std::unique_ptr<Linear> key, value;
  };
  UpProjections mla_up(int32_t layer);
  std::unique_ptr<MoeWeights> moe(int32_t layer);
  std::unique_ptr<Linear> embedding();
  std::unique_ptr<Linear> head();  // tied to the embedding where the files have none
  const float* layer_vector(int32_t layer, std::string_view part, int32_t n);
  const float* vector(const std::string& name, int32_t n);
  const float* sinks(int32_t layer);
  // Every tensor must have been read; frees the mapped pages that are not needed any more.
  void finish();

 private:
  std::string layer_name(int32_t layer, std::string_view part, std::string_view kind) const;
  void advance(const Tensor& tensor);
  const Tensor& read(const std::string& name, std::initializer_list<int64_t> shape);
  struct ExpertList;  // sources and the host memory that they point to
  void add_experts(int32_t layer, ExpertList& out);
  void add_fused_experts(int32_t layer, ExpertList& out);
  void add_shared_experts(int32_t layer, ExpertList& out);

  Checkpoint& checkpoint_;
  Ops& ops_;
  std::function<void(double)> progress_;
  int64_t total_bytes_;
  int64_t done_bytes_ = 0;
  const Tensor* embedding_ = nullptr;
};

}  // namespace sluice
