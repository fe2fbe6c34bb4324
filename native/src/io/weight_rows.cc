// Rows of weight matrices as files hold them.
#include <array>
#include <cmath>
#include <stdexcept>

#include "io/tensor.h"

namespace sluice {

namespace {

constexpr int kMxBlock = 32;

// OCP Microscaling Formats 1.0, 5.3.3 (e2m1) and 5.4.1 (e8m0): value = e2m1 * 2^(e - 127); 255 is NaN.
void mxfp4_row(const WeightSource& source, int32_t file_row, float* out) {
  static constexpr std::array<float, 16> kE2m1 = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                                  -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
  const int64_t stride = source.row_stride != 0 ? source.row_stride : source.cols / 2;
  const auto* values = reinterpret_cast<const uint8_t*>(source.data) + file_row * stride;
  const uint8_t* exponents = source.exponents + int64_t{file_row} * (source.cols / kMxBlock);
  for (int32_t c = 0; c < source.cols; ++c) {
    const uint8_t exponent = exponents[c / kMxBlock];
    const int bits = c % 2 == 0 ? values[c / 2] & 15 : values[c / 2] >> 4;
    out[c] = exponent == 255 ? NAN : std::ldexp(kE2m1[static_cast<size_t>(bits)], exponent - 127);
  }
}

int32_t file_row_of(const WeightSource& source, int32_t row) {
  return source.row_order.empty() ? row : source.row_order[static_cast<size_t>(row)];
}

}  // namespace

float mxfp4_step(const WeightSource& source, int32_t row, int32_t block) {
  const uint8_t exponent = source.exponents[int64_t{file_row_of(source, row)} * (source.cols / kMxBlock) + block];
  return std::ldexp(0.5f, exponent - 127);
}

const std::byte* row_start(const WeightSource& source, int32_t row) {
  const FormatLayout layout = format_layout(source.format);
  const int64_t packed = int64_t{source.cols} / layout.elements * layout.bytes;
  return source.data + file_row_of(source, row) * (source.row_stride != 0 ? source.row_stride : packed);
}

void read_row(const WeightSource& source, int32_t row, float* out) {
  if (source.format == WeightFormat::mxfp4 && source.exponents != nullptr) {
    if (source.cols % kMxBlock != 0) throw std::runtime_error("MXFP4 rows must be whole blocks of 32");
    return mxfp4_row(source, file_row_of(source, row), out);
  }
  const std::byte* start = row_start(source, row);
  if (source.col_stride == 0) return dequantize(source.format, start, source.cols, out);
  for (int32_t c = 0; c < source.cols; ++c) dequantize(source.format, start + c * source.col_stride, 1, out + c);
}

}  // namespace sluice
