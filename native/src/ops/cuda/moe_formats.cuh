// How one packed unit (16 rows x 64 columns, moe_pack.h) becomes the A operands of four mma.m16n8k16, a format each.
//
// Lane (g = lane / 4, t = lane % 4) holds rows g and g + 8. Columns are dealt so that the token side needs no shuffling:
// in block kb of 32 columns a lane owns columns 8t .. 8t + 7, the first four for mma 2kb, the last four for mma 2kb + 1, so
// its B operands are one 16-byte load from a row-major activation. Of each four columns, a0/a1 take the first two (row g /
// g + 8) and a2/a3 the last two.
#pragma once

#include <cuda_fp16.h>

#include "ops/cuda/moe.h"
#include "ops/cuda/ptx.cuh"

namespace sluice::cuda {

template <WeightFormat format>
struct UnitReader;

enum class Sums { plain, unit_scaled, half_scaled };

// kSums: how products become sums.
//   plain        two chains over all of K (even and odd mma), added at the end
//   unit_scaled  the sums of a unit are multiplied by scales(..) (row g, row g + 8) and added to the total
//   half_scaled  likewise the sums of each 32 columns, half_scales(..)
// kTokenFactor: activations are multiplied by this power of two beforehand, and kOutputFactor makes the values true again.
// row_tile_cost: time of one row tile for n tokens, relative: reading it, or, for many tokens, computing it.

template <>
struct UnitReader<WeightFormat::bf16> {
  static constexpr Sums kSums = Sums::plain;
  static constexpr float kTokenFactor = 1.0f, kOutputFactor = 1.0f;
  __device__ static __forceinline__ int row_tile_cost(int n) { return n <= 32 ? 16 : 18; }
  __device__ static __forceinline__ void read(uint32_t unit, int lane, uint32_t (&a)[4][4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint4 v = ptx::load_shared_v4(unit + i * 512 + lane * 16);
      a[i][0] = v.x, a[i][1] = v.y, a[i][2] = v.z, a[i][3] = v.w;
    }
  }
};

// 4 bytes b0..b3 give the pairs {b1, b3} and {b0, b2}. The 7 low bits of an e4m3 moved to the top of a bf16's exponent and
// mantissa read as value * 2^-120, subnormals included.
template <>
struct UnitReader<WeightFormat::fp8_e4m3> {
  static constexpr Sums kSums = Sums::unit_scaled;
  static constexpr float kTokenFactor = 1.0f, kOutputFactor = 1.0f;
  __device__ static __forceinline__ int row_tile_cost(int n) { return n <= 8 ? 16 : n <= 16 ? 18 : n <= 24 ? 22 : n <= 32 ? 26 : 46; }
  __device__ static __forceinline__ void read(uint32_t unit, int lane, uint32_t (&a)[4][4]) {
    constexpr uint32_t kTwoTo120 = 0x7b807b80;
    constexpr uint32_t kAndOr = (ptx::kLutA & ptx::kLutB) | ptx::kLutC;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint4 v = ptx::load_shared_v4(unit + i * 512 + lane * 16);
      uint32_t w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        uint32_t odd = ptx::lop3<kAndOr>(w[q], 0x80008000, (w[q] >> 4) & 0x07f007f0);
        uint32_t even = ptx::lop3<kAndOr>(w[q] << 8, 0x80008000, (w[q] << 4) & 0x07f007f0);
        a[2 * i + q / 2][q % 2 * 2] = ptx::mul_bf16x2(odd, kTwoTo120);
        a[2 * i + q / 2][q % 2 * 2 + 1] = ptx::mul_bf16x2(even, kTwoTo120);
      }
    }
  }
  __device__ static __forceinline__ float2 scales(uint32_t unit, int) {
    return {__uint_as_float(ptx::load_shared(unit + 1024)), __uint_as_float(ptx::load_shared(unit + 1028))};
  }
};

// Byte u = value + 128. As the low byte of 0x4b0000uu it reads as 2^23 + u in fp32.
template <>
struct UnitReader<WeightFormat::int8> {
  static constexpr Sums kSums = Sums::plain;
  static constexpr float kTokenFactor = 1.0f, kOutputFactor = 1.0f;
  __device__ static __forceinline__ int row_tile_cost(int n) { return n <= 8 ? 16 : n <= 16 ? 18 : n <= 24 ? 22 : n <= 32 ? 26 : 46; }
  __device__ static __forceinline__ void read(uint32_t unit, int lane, uint32_t (&a)[4][4]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint4 v = ptx::load_shared_v4(unit + i * 512 + lane * 16);
      uint32_t w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        float f[4];
#pragma unroll
        for (int b = 0; b < 4; ++b)
          f[b] = __uint_as_float(__byte_perm(w[q], 0x4b000000, 0x7440 + b)) - (8388608.0f + 128.0f);
        // Integers up to 128 have no low bits in fp32: the upper half is the exact bf16.
        a[2 * i + q / 2][q % 2 * 2] = __byte_perm(__float_as_uint(f[1]), __float_as_uint(f[3]), 0x7632);
        a[2 * i + q / 2][q % 2 * 2 + 1] = __byte_perm(__float_as_uint(f[0]), __float_as_uint(f[2]), 0x7632);
      }
    }
  }
};

// Nibble u = value + 8; pair i of a word lies in bits 4i and 16 + 4i. As the low bits of 0x43uu it reads as 128 + u.
template <>
struct UnitReader<WeightFormat::int4> {
  static constexpr Sums kSums = Sums::unit_scaled;
  static constexpr float kTokenFactor = 1.0f, kOutputFactor = 1.0f;
  __device__ static __forceinline__ int row_tile_cost(int n) { return n <= 8 ? 16 : n <= 16 ? 20 : n <= 24 ? 26 : n <= 32 ? 32 : 60; }
  __device__ static __forceinline__ void read(uint32_t unit, int lane, uint32_t (&a)[4][4]) {
    constexpr uint32_t kAndOr = (ptx::kLutA & ptx::kLutB) | ptx::kLutC;
    uint4 v = ptx::load_shared_v4(unit + lane * 16);
    uint32_t w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int q = 0; q < 4; ++q)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        a[q][i] = ptx::sub_bf16x2(ptx::lop3<kAndOr>(w[q] >> 4 * i, 0x000f000f, 0x43004300), 0x43084308);
  }
  __device__ static __forceinline__ float2 scales(uint32_t unit, int lane) {
    uint32_t v = ptx::load_shared(unit + 512 + lane / 4 * 4);
    return __half22float2(reinterpret_cast<const __half2&>(v));
  }
};

// An e2m1 is sign, two exponent bits and one of mantissa. At bits 15 and 8..6 of a bf16 those read as value * 2^-126, zero
// and the subnormal 0.5 included. The pairs of a word lie so that few instructions bring them there, most of them
// multiplications, which have a pipe of their own:
//   pair 0: sign 15, rest 8..6   pair 1: 14, 5..3   pair 2: 9, 2..0   pair 3: 13, 12..10   (each + 16 for the second value)
// The activations come multiplied by 2^100, so the sums of 32 columns are true * 2^-26, and each is multiplied by its
// row's exponent in fp32: cheaper than 16 multiplications of weights. Activations must stay below 2^27 in magnitude.
template <>
struct UnitReader<WeightFormat::mxfp4> {
  static constexpr Sums kSums = Sums::half_scaled;
  static constexpr float kTokenFactor = 0x1p100f, kOutputFactor = 0x1p26f;
  __device__ static __forceinline__ int row_tile_cost(int n) { return n <= 8 ? 16 : n <= 16 ? 20 : n <= 24 ? 26 : n <= 32 ? 32 : 60; }
  __device__ static __forceinline__ void read(uint32_t unit, int lane, uint32_t (&a)[4][4]) {
    constexpr uint32_t kMask = 0x81c081c0;
    constexpr uint32_t kAndOr = (ptx::kLutA & ptx::kLutB) | ptx::kLutC;
    uint4 v = ptx::load_shared_v4(unit + lane * 16);
    uint32_t w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      a[q][0] = w[q] & kMask;
      a[q][1] = ptx::lop3<kAndOr>(w[q] * 2, 0x80008000, (w[q] * 8) & 0x01c001c0);
      a[q][2] = (w[q] * 64) & kMask;
      a[q][3] = ptx::lop3<kAndOr>(w[q] * 4, 0x80008000, (w[q] >> 4) & 0x01c001c0);
    }
  }
  // {row g, row g + 8} of the first and the second 32 columns. An exponent byte e is 2^(e - 127) as fp32 once it is at
  // bits 30..23; 0 stands for 0 there, which is as good as 2^-127.
  __device__ static __forceinline__ void half_scales(uint32_t unit, int lane, float2 (&s)[2]) {
    uint32_t v = ptx::load_shared(unit + 512 + lane / 4 * 4);
#pragma unroll
    for (int kb = 0; kb < 2; ++kb) {
      s[kb].x = __uint_as_float(__byte_perm(v, 0, 0x4044 + 0x0100 * kb) * 128);
      s[kb].y = __uint_as_float(__byte_perm(v, 0, 0x4244 + 0x0100 * kb) * 128);
    }
  }
};

}  // namespace sluice::cuda
