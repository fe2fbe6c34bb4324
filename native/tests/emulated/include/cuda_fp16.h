#pragma once

#include "cuda_runtime.h"

struct __half {
  uint16_t bits;
};
struct __half2 {
  __half x, y;
};
inline float __half2float(__half v) {
  const uint32_t magnitude = v.bits & 0x7fffu;
  float f = __uint_as_float(magnitude << 13) * 0x1p112f;
  if (magnitude >= 0x7c00) f = __uint_as_float(magnitude << 13 | 0x7f800000u);
  return v.bits & 0x8000 ? -f : f;
}
inline __half __float2half(float v) {
  const uint32_t b = __float_as_uint(v), sign = b >> 16 & 0x8000, m = b & 0x7fffffffu;
  if (m > 0x7f800000u) return {0x7fff};
  if (m >= 0x477ff000u) return {uint16_t(sign | 0x7c00)};  // 65520 and above
  if (m < 0x38800000u)  // subnormal: a multiple of 2^-24, ties to even
    return {uint16_t(sign | uint32_t(std::nearbyint(__uint_as_float(m) * 0x1p24f)))};
  return {uint16_t(sign | ((m - 0x38000000u + 0xfff + (m >> 13 & 1)) >> 13))};
}
inline __half __float2half_rn(float v) { return __float2half(v); }
inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }
