// Pieces of the sampling kernel: weights, orders of tokens, histograms, and reductions over a block.
#pragma once

#include "ops/cuda/ptx.cuh"
#include "ops/cuda/sampling.h"

namespace sluice::cuda::sampling {

inline constexpr int kThreads = 512, kWarps = kThreads / 32;
inline constexpr int kChunk = 512;  // tokens whose weights are added up first, as the CPU does
inline constexpr int kBuckets = 1024;
inline constexpr int kPieces = 8;   // in which a part of the logits arrives

// e^x for x <= 0: sample/vector_math.h's function, operation by operation, so that weights have the same bits.
__device__ __forceinline__ float exp_nonpositive(float x) {
  const float clamped = __uint_as_float(min(__float_as_uint(x), __float_as_uint(-88.0f)));
  const int n = int(__fsub_rn(__fmul_rn(clamped, 1.44269504088896341f), 0.5f));
  const float whole = float(n);
  const float r = __fsub_rn(__fsub_rn(clamped, __fmul_rn(whole, 0.693359375f)), __fmul_rn(whole, -2.12194440e-4f));
  float p = 1.9875691500e-4f;
  p = __fadd_rn(__fmul_rn(p, r), 1.3981999507e-3f);
  p = __fadd_rn(__fmul_rn(p, r), 8.3334519073e-3f);
  p = __fadd_rn(__fmul_rn(p, r), 4.1665795894e-2f);
  p = __fadd_rn(__fmul_rn(p, r), 1.6666665459e-1f);
  p = __fadd_rn(__fmul_rn(p, r), 5.0000001201e-1f);
  p = __fadd_rn(__fadd_rn(__fmul_rn(__fmul_rn(p, r), r), r), 1.0f);
  return __fmul_rn(p, __int_as_float((n + 127) << 23));
}

// Larger for the larger logit, then for the smaller id. 0 is below all.
__device__ __forceinline__ uint64_t rank_key(float v, int token) {
  const uint32_t b = __float_as_uint(v + 0.0f);  // -0 ranks with 0
  return uint64_t(b & 0x80000000u ? ~b : b | 0x80000000u) << 32 | uint32_t(~token);
}
__device__ __forceinline__ Token key_token(uint64_t key) { return Token(~uint32_t(key)); }
__device__ __forceinline__ float key_value(uint64_t key) {
  const uint32_t v = uint32_t(key >> 32);
  return __uint_as_float(v & 0x80000000u ? v & 0x7fffffffu : ~v);
}

// The least likely token that is kept; of equal weights the one with the highest id. (Sampler::Cutoff)
struct Cutoff {
  uint32_t weight = 0;  // bits: weights are not negative, so they order as integers
  int token = INT32_MAX;
  __device__ __forceinline__ bool keeps(float w, int id) const {
    const uint32_t b = __float_as_uint(w);
    return b > weight || (b == weight && id <= token);
  }
};

// Weights by ten bits of theirs at a time. All in one bucket have one exponent, so their mantissas add up to the exact sum
// in integers, whatever the order: 12 bits of each at a time, since shared memory adds 32 bits in one instruction and 64 in
// a loop. 2^19 tokens fit.
struct Histogram {
  uint32_t low[kBuckets], high[kBuckets], counts[kBuckets];
};
__device__ __forceinline__ uint32_t mantissa(uint32_t bits) { return (bits & 0x7fffffu) | (bits >> 23 ? 0x800000u : 0); }
// 2^(exponent of the bits), for mantissas counted as integers.
__device__ __forceinline__ double mantissa_unit(uint32_t bits) {
  const int exponent = max(int(bits >> 23), 1) - 150;
  return __longlong_as_double(int64_t(exponent + 1023) << 52);
}

// What a part tells the others.
struct PartSummary {
  uint64_t raw_best;   // rank_key of the raw logits, 0 when one is NaN
  uint64_t best;       // after penalties, bias, bans and mask
  double exp_sum;      // of the raw logits over e^(part's largest)
};
struct Found {
  int bucket;          // -1: everything is kept
  uint64_t kept;       // above the bucket
  double mass;
  uint32_t count;      // in the bucket
};
struct Shared {
  uint64_t arrived[kPieces];
  PartSummary summary;
  double weight_sum;
  uint64_t top[kSampleMaxLogprobs];                    // this part's most likely
  uint64_t candidates[8 * kSampleMaxLogprobs];         // leader: all parts'
  Found found;                                         // leader
  uint32_t equals;                                     // tokens of this part that weigh as much as the cutoff
  int cutoff_token;                                    // leader
  uint64_t keys[kWarps];
  double sums[kWarps];
  uint32_t numbers[kWarps];
  int first;
  double chunk_sums[kSampleMaxVocab / kChunk];         // leader
  Histogram histogram;                                 // leader: of all parts
};

// --- over all threads of the block; scratch may be used again after the next barrier --------------------------------------
template <class T>
__device__ __forceinline__ T block_max(T v, T* scratch) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int d = 16; d; d >>= 1) v = max(v, __shfl_xor_sync(~0u, v, d));
  __syncthreads();
  if (lane == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  v = scratch[lane % kWarps];
#pragma unroll
  for (int d = kWarps / 2; d; d >>= 1) v = max(v, __shfl_xor_sync(~0u, v, d));
  return v;
}
template <class T>
__device__ __forceinline__ T block_sum(T v, T* scratch) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int d = 16; d; d >>= 1) v += __shfl_xor_sync(~0u, v, d);
  __syncthreads();
  if (lane == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  T all = scratch[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) all += scratch[w];
  return all;
}
// Sum over the threads before this one.
template <class T>
__device__ __forceinline__ T block_before(T v, T* scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  T scan = v;
#pragma unroll
  for (int d = 1; d < 32; d <<= 1) {
    const T other = __shfl_up_sync(~0u, scan, d);
    if (lane >= d) scan += other;
  }
  __syncthreads();
  if (lane == 31) scratch[warp] = scan;
  __syncthreads();
  T before = 0;
  for (int w = 0; w < warp; ++w) before += scratch[w];
  const T previous = __shfl_up_sync(~0u, scan, 1);
  return lane ? before + previous : before;
}

}  // namespace sluice::cuda::sampling
