// Tensors of a file as the backend's weight descriptions.
#pragma once

#include <vector>

#include "io/tensor.h"
#include "ops/ops.h"

namespace sluice {

// A matrix as it lies.
WeightSource source_of(const Tensor& tensor);
// All elements in fp32, whatever the shape.
std::vector<float> values_of(const Tensor& tensor);

}  // namespace sluice
