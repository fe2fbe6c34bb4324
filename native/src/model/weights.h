// From a checkpoint's tensors to a backend's weights.
#pragma once

#include <functional>
#include <initializer_list>
#include <memory>
#include <string>

#include "model/checkpoint.h"
#include "ops/ops.h"

namespace sluice {

class WeightReader {
 public:
  WeightReader(Checkpoint& checkpoint, Ops& ops, std::function<void(double)> progress);
  const NameMap& names() const { return checkpoint_.names(); }

  // rotated_heads > 0: the outputs are that many heads whose rotary pairs may have to be moved (RopeSpec).
  struct Part {
    std::string_view name;
    int32_t rows;
    int32_t rotated_heads;
  };
  // Parts of one layer as one matrix, with the biases that the files have (all parts or none).
  std::unique_ptr<Linear> layer_linear(int32_t layer, std::initializer_list<Part> parts, int32_t cols);
  std::unique_ptr<Linear> qkv(int32_t layer);
  std::unique_ptr<Linear> embedding();
  std::unique_ptr<Linear> head();  // tied to the embedding where the files have none
  const float* layer_vector(int32_t layer, std::string_view part, int32_t n);
  const float* vector(const std::string& name, int32_t n);
  // Every tensor must have been read; frees the mapped pages that are not needed any more.
  void finish();

 private:
  std::string layer_name(int32_t layer, std::string_view part, const char* kind) const;
  void advance(const Tensor& tensor);

  Checkpoint& checkpoint_;
  Ops& ops_;
  std::function<void(double)> progress_;
  int64_t total_bytes_;
  int64_t done_bytes_ = 0;
  const Tensor* embedding_ = nullptr;
};

}  // namespace sluice
