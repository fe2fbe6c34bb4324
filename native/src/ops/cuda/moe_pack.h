// Weights of experts as files hold them -> the layout of moe.h. Plain C++, on the host, at load.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/ops.h"

namespace sluice::cuda {

// One matrix, row-major as files hold it:
//   bf16 uint16, fp8_e4m3 a byte, int8 signed bytes: [rows][cols];  int4, mxfp4: [rows][cols / 2], low nibble first
//   (int4 holds value + 8).
// Scales (null where the format has none): fp8_e4m3 float [ceil(rows / 128)][ceil(cols / 128)], or null for 1;
//   int4 float [rows][cols / group]; mxfp4 uint8 exponents [rows][cols / 32], value 2^(exponent - 127).
struct MoeMatrix {
  const void* values = nullptr;
  const void* scales = nullptr;
  int32_t group = 64;  // int4: a multiple of 64 that divides cols
};

// Packs one expert. rows: of one matrix. With `up`, row tiles hold 8 rows of `first` (gate), then the same 8 of `up`, and
// the result has 2 * rows rows. out: moe_packed_bytes(format, rows or 2 * rows, cols).
// Throws std::runtime_error when a shape or a scale cannot be held.
void moe_pack(WeightFormat format, const MoeMatrix& first, const MoeMatrix* up, int32_t rows, int32_t cols,
              std::byte* out);

// The same order for one float a row (biases, row scales).
void moe_pack_rows(const float* first, const float* up, int32_t rows, float* out);

}  // namespace sluice::cuda
