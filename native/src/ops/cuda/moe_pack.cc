#include "ops/cuda/moe_pack.h"

#include <cstring>
#include <stdexcept>

#include "ops/cuda/moe.h"

namespace sluice::cuda {
namespace {

// IEEE half, round to nearest even; what is too large for it is refused.
uint16_t to_half(float v) {
  uint32_t b;
  std::memcpy(&b, &v, 4);
  uint32_t sign = b >> 16 & 0x8000, magnitude = b & 0x7fffffff;
  if (magnitude >= 0x477ff000) throw std::runtime_error("an int4 scale is too large for fp16");
  if (magnitude < 0x38800000) {  // subnormal: multiples of 2^-24
    float scaled = (sign ? -v : v) * 16777216.0f;
    uint32_t n = static_cast<uint32_t>(scaled);
    float rest = scaled - static_cast<float>(n);
    if (rest > 0.5f || (rest == 0.5f && (n & 1))) ++n;
    return static_cast<uint16_t>(sign | n);
  }
  magnitude += 0xfff + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000) >> 13));
}

// Where a value's magnitude and sign lie in a word of mxfp4, by register (UnitReader<mxfp4>).
constexpr int kMxfp4Magnitude[4] = {6, 3, 0, 10}, kMxfp4Sign[4] = {15, 14, 9, 13};

struct Source {
  const MoeMatrix& matrix;
  int32_t row;
};

void pack_unit(WeightFormat format, const Source (&row_of)[16], int32_t cols, int32_t col0, uint8_t* out) {
  auto byte_at = [&](int r, int c) {
    return static_cast<const uint8_t*>(row_of[r].matrix.values)[int64_t(row_of[r].row) * cols + col0 + c];
  };
  auto nibble_at = [&](int r, int c) -> uint32_t {
    int64_t i = int64_t(row_of[r].row) * cols + col0 + c;
    return static_cast<const uint8_t*>(row_of[r].matrix.values)[i / 2] >> (i % 2 * 4) & 15;
  };
  for (int lane = 0; lane < 32; ++lane) {
    for (int q = 0; q < 4; ++q) {          // mma: column block q / 2, half q % 2
      for (int i = 0; i < 4; ++i) {        // register a_i
        int row = lane / 4 + i % 2 * 8, col = q / 2 * 32 + lane % 4 * 8 + q % 2 * 4 + i / 2 * 2;
        switch (format) {
          case WeightFormat::bf16: {
            const auto* v = static_cast<const uint16_t*>(row_of[row].matrix.values);
            std::memcpy(out + q * 512 + lane * 16 + i * 4, v + int64_t(row_of[row].row) * cols + col0 + col, 4);
            break;
          }
          case WeightFormat::fp8_e4m3:
          case WeightFormat::int8: {
            // Word i / 2 of the mma's two; a0, a2 from its odd bytes, a1, a3 from its even ones.
            uint8_t* word = out + q / 2 * 512 + lane * 16 + (q % 2 * 2 + i / 2) * 4;
            uint8_t flip = format == WeightFormat::int8 ? 0x80 : 0;
            word[i % 2 ? 0 : 1] = byte_at(row, col) ^ flip;
            word[i % 2 ? 2 : 3] = byte_at(row, col + 1) ^ flip;
            break;
          }
          case WeightFormat::int4:
          case WeightFormat::mxfp4: {
            uint32_t word;
            std::memcpy(&word, out + lane * 16 + q * 4, 4);
            if (i == 0) word = 0;
            for (int h = 0; h < 2; ++h) {
              uint32_t v = nibble_at(row, col + h), bits;
              if (format == WeightFormat::int4) bits = v << 4 * i;
              else bits = (v & 7) << kMxfp4Magnitude[i] | (v >> 3) << kMxfp4Sign[i];
              word |= bits << 16 * h;
            }
            std::memcpy(out + lane * 16 + q * 4, &word, 4);
            break;
          }
          default: throw std::runtime_error("this weight format has no expert kernel on the card");
        }
      }
    }
  }
  if (format == WeightFormat::fp8_e4m3) {
    float scale[4] = {1, 1, 0, 0};
    for (int half = 0; half < 2; ++half)
      if (const auto* s = static_cast<const float*>(row_of[half * 8].matrix.scales))
        scale[half] = s[int64_t(row_of[half * 8].row / 128) * ((cols + 127) / 128) + col0 / 128];
    std::memcpy(out + 1024, scale, 16);
  } else if (format == WeightFormat::int4) {
    for (int r = 0; r < 16; ++r) {
      const MoeMatrix& m = row_of[r].matrix;
      float s = static_cast<const float*>(m.scales)[int64_t(row_of[r].row) * (cols / m.group) + col0 / m.group];
      uint16_t h = to_half(s);
      std::memcpy(out + 512 + r % 8 * 4 + r / 8 * 2, &h, 2);
    }
  } else if (format == WeightFormat::mxfp4) {
    for (int r = 0; r < 16; ++r)
      for (int kb = 0; kb < 2; ++kb) {
        const auto* s = static_cast<const uint8_t*>(row_of[r].matrix.scales);
        out[512 + r % 8 * 4 + r / 8 * 2 + kb] = s[int64_t(row_of[r].row) * (cols / 32) + col0 / 32 + kb];
      }
  }
}

}  // namespace

void moe_pack(WeightFormat format, const MoeMatrix& first, const MoeMatrix* up, int32_t rows, int32_t cols,
              std::byte* out) {
  const int unit = moe_unit_bytes(format);
  if (!unit) throw std::runtime_error("this weight format has no expert kernel on the card");
  const int step = up ? 8 : 16;
  if (rows % step || cols % 64) throw std::runtime_error("expert matrices need rows in 16s and columns in 64s");
  if (format == WeightFormat::int4 && (first.group % 64 || cols % first.group))
    throw std::runtime_error("int4 groups must be multiples of 64 columns");
  auto* to = reinterpret_cast<uint8_t*>(out);
  for (int32_t row = 0; row < rows; row += step) {
    auto source = [&](int r) { return r < 8 || !up ? Source{first, row + r} : Source{*up, row + r - 8}; };
    const Source row_of[16] = {source(0), source(1), source(2),  source(3),  source(4),  source(5),  source(6),  source(7),
                               source(8), source(9), source(10), source(11), source(12), source(13), source(14), source(15)};
    for (int32_t col = 0; col < cols; col += 64, to += unit) pack_unit(format, row_of, cols, col, to);
  }
}

void moe_pack_rows(const float* first, const float* up, int32_t rows, float* out) {
  for (int32_t r = 0; r < rows; ++r) {
    if (up) {
      out[r / 8 * 16 + r % 8] = first[r];
      out[r / 8 * 16 + 8 + r % 8] = up[r];
    } else {
      out[r] = first[r];
    }
  }
}

}  // namespace sluice::cuda
