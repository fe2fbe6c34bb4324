// Block formats of GGUF, after their definition in ggml (MIT): layouts as documented in ggml-common.h, decoding ours.
#include <cstring>
#include <stdexcept>

#include "base/half.h"
#include "io/tensor.h"

namespace sluice {

FormatLayout format_layout(WeightFormat format) {
  switch (format) {
    case WeightFormat::f32: return {1, 4};
    case WeightFormat::f16: return {1, 2};
    case WeightFormat::bf16: return {1, 2};
    case WeightFormat::fp8_e4m3: return {1, 1};
    case WeightFormat::int8: return {1, 1};
    case WeightFormat::int4: return {2, 1};
    case WeightFormat::mxfp4: return {32, 17};  // GGUF's, with the exponent in front
    case WeightFormat::u8: return {1, 1};
    case WeightFormat::q4_0: return {32, 18};
    case WeightFormat::q4_1: return {32, 20};
    case WeightFormat::q5_0: return {32, 22};
    case WeightFormat::q5_1: return {32, 24};
    case WeightFormat::q8_0: return {32, 34};
    case WeightFormat::q4_k: return {256, 144};
    case WeightFormat::q5_k: return {256, 176};
    case WeightFormat::q6_k: return {256, 210};
  }
  throw std::runtime_error("unknown weight format");
}

std::string_view format_name(WeightFormat format) {
  switch (format) {
    case WeightFormat::f32: return "F32";
    case WeightFormat::f16: return "F16";
    case WeightFormat::bf16: return "BF16";
    case WeightFormat::fp8_e4m3: return "F8_E4M3";
    case WeightFormat::int8: return "I8";
    case WeightFormat::int4: return "I4";
    case WeightFormat::mxfp4: return "MXFP4";
    case WeightFormat::u8: return "U8";
    case WeightFormat::q4_0: return "Q4_0";
    case WeightFormat::q4_1: return "Q4_1";
    case WeightFormat::q5_0: return "Q5_0";
    case WeightFormat::q5_1: return "Q5_1";
    case WeightFormat::q8_0: return "Q8_0";
    case WeightFormat::q4_k: return "Q4_K";
    case WeightFormat::q5_k: return "Q5_K";
    case WeightFormat::q6_k: return "Q6_K";
  }
  return "unknown";
}

namespace {

using Byte = const uint8_t*;

// Blocks need no alignment in the file.
template <class T>
T load(Byte at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}
float load_half(Byte at) { return half_to_float(load<uint16_t>(at)); }

// q4 and q5 blocks of 32: element i < 16 is the low nibble of byte i, element i + 16 its high nibble; a fifth bit of
// element i is bit i of a word.
void q4_0(Byte b, float* out) {
  const float d = load_half(b);
  for (int i = 0; i < 16; ++i) {
    out[i] = static_cast<float>((b[2 + i] & 15) - 8) * d;
    out[i + 16] = static_cast<float>((b[2 + i] >> 4) - 8) * d;
  }
}
void q4_1(Byte b, float* out) {
  const float d = load_half(b), m = load_half(b + 2);
  for (int i = 0; i < 16; ++i) {
    out[i] = static_cast<float>(b[4 + i] & 15) * d + m;
    out[i + 16] = static_cast<float>(b[4 + i] >> 4) * d + m;
  }
}
void q5(Byte low, uint32_t high, int offset, float d, float m, float* out) {
  for (int i = 0; i < 16; ++i) {
    const int a = (low[i] & 15) | static_cast<int>((high >> i & 1) << 4);
    const int b = (low[i] >> 4) | static_cast<int>((high >> (i + 16) & 1) << 4);
    out[i] = static_cast<float>(a - offset) * d + m;
    out[i + 16] = static_cast<float>(b - offset) * d + m;
  }
}
void q5_0(Byte b, float* out) { q5(b + 6, load<uint32_t>(b + 2), 16, load_half(b), 0.0f, out); }
void q5_1(Byte b, float* out) { q5(b + 8, load<uint32_t>(b + 4), 0, load_half(b), load_half(b + 2), out); }
void q8_0(Byte b, float* out) {
  const float d = load_half(b);
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(static_cast<int8_t>(b[2 + i])) * d;
}

// K formats: 256 elements; q4/q5 have 8 sub-blocks with 6-bit scale and minimum, packed in 12 bytes.
struct SubScale {
  int scale, minimum;
};
SubScale sub_scale(Byte packed, int i) {
  if (i < 4) return {packed[i] & 63, packed[i + 4] & 63};
  return {(packed[i + 4] & 15) | (packed[i - 4] >> 6) << 4, (packed[i + 4] >> 4) | (packed[i] >> 6) << 4};
}
void q45_k(Byte b, Byte high, Byte low, float* out) {
  const float d = load_half(b), m = load_half(b + 2);
  for (int half = 0; half < 8; ++half) {
    const SubScale s = sub_scale(b + 4, half);
    const float scale = d * static_cast<float>(s.scale), minimum = m * static_cast<float>(s.minimum);
    Byte q = low + (half / 2) * 32;
    for (int i = 0; i < 32; ++i) {
      int value = half % 2 == 0 ? q[i] & 15 : q[i] >> 4;
      if (high != nullptr) value |= (high[i] >> half & 1) << 4;
      *out++ = scale * static_cast<float>(value) - minimum;
    }
  }
}
void q4_k(Byte b, float* out) { q45_k(b, nullptr, b + 16, out); }
void q5_k(Byte b, float* out) { q45_k(b, b + 16, b + 48, out); }
void q6_k(Byte b, float* out) {
  Byte low = b, high = b + 128, scales = b + 192;
  const float d = load_half(b + 208);
  for (int i = 0; i < 256; ++i) {
    const int part = i / 128, r = i % 128, lane = r % 32, quarter = r / 32;
    const int l = low[part * 64 + (quarter % 2) * 32 + lane];
    const int nibble = quarter < 2 ? l & 15 : l >> 4;
    const int q = (nibble | (high[part * 32 + lane] >> (2 * quarter) & 3) << 4) - 32;
    const auto scale = static_cast<int8_t>(scales[part * 8 + quarter * 2 + lane / 16]);
    out[i] = (d * static_cast<float>(scale)) * static_cast<float>(q);
  }
}

template <void (*decode)(Byte, float*)>
void blocks(WeightFormat format, Byte source, int64_t n, float* out) {
  const FormatLayout layout = format_layout(format);
  for (int64_t i = 0; i < n; i += layout.elements) {
    decode(source, out + i);
    source += layout.bytes;
  }
}

}  // namespace

void dequantize(WeightFormat format, const std::byte* source, int64_t n, float* out) {
  Byte b = reinterpret_cast<Byte>(source);
  switch (format) {
    case WeightFormat::f32: std::memcpy(out, b, static_cast<size_t>(n) * 4); return;
    case WeightFormat::f16:
      for (int64_t i = 0; i < n; ++i) out[i] = load_half(b + 2 * i);
      return;
    case WeightFormat::bf16:
      for (int64_t i = 0; i < n; ++i) out[i] = bfloat_to_float(load<uint16_t>(b + 2 * i));
      return;
    case WeightFormat::q4_0: return blocks<q4_0>(format, b, n, out);
    case WeightFormat::q4_1: return blocks<q4_1>(format, b, n, out);
    case WeightFormat::q5_0: return blocks<q5_0>(format, b, n, out);
    case WeightFormat::q5_1: return blocks<q5_1>(format, b, n, out);
    case WeightFormat::q8_0: return blocks<q8_0>(format, b, n, out);
    case WeightFormat::q4_k: return blocks<q4_k>(format, b, n, out);
    case WeightFormat::q5_k: return blocks<q5_k>(format, b, n, out);
    case WeightFormat::q6_k: return blocks<q6_k>(format, b, n, out);
    case WeightFormat::fp8_e4m3:
    case WeightFormat::int8:
    case WeightFormat::int4:
    case WeightFormat::mxfp4:
    case WeightFormat::u8: break;
  }
  throw std::runtime_error("cannot decode " + std::string(format_name(format)) + " without its scales");
}

}  // namespace sluice
