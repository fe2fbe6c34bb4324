// What both file formats give: named tensors in mapped memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "ops/ops.h"

namespace sluice {

// shape is outermost first: a matrix is {rows = outputs, cols = inputs}. Data stays in the mapped file.
struct Tensor {
  std::string name;
  WeightFormat format = WeightFormat::f32;
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;
  int64_t bytes = 0;
};

// Elements in a block of the format, and its bytes. Plain formats: 1 element.
struct FormatLayout {
  int32_t elements;
  int32_t bytes;
};
FormatLayout format_layout(WeightFormat format);
std::string_view format_name(WeightFormat format);

// Decodes n elements (a multiple of the format's block) that start at `source` to fp32, as the formats' own definitions
// say (GGUF: ggml's reference; q * d [+ m], each operation rounded to fp32). Throws std::runtime_error for the formats
// whose scales lie beside the data.
void dequantize(WeightFormat format, const std::byte* source, int64_t n, float* out);

// Output `row` of a matrix as cols fp32 values, whatever its order, strides and scales. Throws as dequantize does.
void read_row(const WeightSource& source, int32_t row, float* out);
// MXFP4 with its exponents: what the values of a row's 32-value block are multiples of, 0.5 * 2^(exponent - 127).
float mxfp4_step(const WeightSource& source, int32_t row, int32_t block);
// Where that row begins in a matrix whose rows are contiguous (col_stride 0).
const std::byte* row_start(const WeightSource& source, int32_t row);

}  // namespace sluice
