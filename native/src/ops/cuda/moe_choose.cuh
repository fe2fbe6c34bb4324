// Top-k of one token's router logits by one warp.
//
//   softmax_topk          weights = softmax(logits)[chosen]            (renormalise: divided by their sum)
//   topk_softmax          weights = softmax(logits[chosen])
//   sigmoid_bias_grouped  s = sigmoid(logits); choice by s + selection_bias inside the top_groups groups whose two best
//                         sum highest; weights = s[chosen] (/ their sum) * scale       (DeepSeek-V3, arXiv 2412.19437)
//
// Ties go to the smaller expert id. Lane k holds the k-th choice; shared experts follow with weight 1.
#pragma once

#include <cfloat>

#include "ops/cuda/moe.h"
#include "ops/cuda/ptx.cuh"

namespace sluice::cuda::moe {

// Unsigned integers in the order of the floats.
__device__ __forceinline__ uint32_t ordered(float v) {
  uint32_t b = __float_as_uint(v);
  return b & 0x80000000u ? ~b : b | 0x80000000u;
}
__device__ __forceinline__ float from_ordered(uint32_t v) {
  return __uint_as_float(v & 0x80000000u ? v & 0x7fffffffu : ~v);
}
__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int d = 16; d; d >>= 1) v += __shfl_xor_sync(~0u, v, d);
  return v;
}

struct Chosen {
  int expert;
  float weight;
};

// Keys of one warp, a lane each: how many are greater than this lane's, equal ones of smaller lanes counted in.
__device__ __forceinline__ int rank_in_warp(uint32_t key) {
  const int lane = threadIdx.x % 32;
  int rank = 0;
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    uint32_t other = __shfl_sync(~0u, key, i);
    rank += other > key || (other == key && i < lane);
  }
  return rank;
}

// Room of one warp in shared memory.
struct ChooseScratch {
  uint32_t key[32];
  float score[32];
  int id[32];
};

// Expert j * 32 + lane is in slot j of the lane.
template <int kPerLane>
__device__ Chosen choose(const MoeRouteArgs& p, int token, ChooseScratch& scratch) {
  const int lane = threadIdx.x % 32;
  float score[kPerLane];   // what becomes the weight
  uint32_t key[kPerLane];  // what decides; 0 = out of the running
  float top = -FLT_MAX;
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    int e = j * 32 + lane;
    score[j] = e < p.n_experts ? __ldcg(&p.logits[int64_t(token) * p.n_experts + e]) : -FLT_MAX;
    top = fmaxf(top, score[j]);
  }
  if (p.kind == RouteKind::sigmoid_bias_grouped) {
    float selection[kPerLane];
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      int e = j * 32 + lane;
      score[j] = 1.0f / (1.0f + __expf(-score[j]));
      selection[j] = score[j] + (p.selection_bias && e < p.n_experts ? p.selection_bias[e] : 0.0f);
      key[j] = e < p.n_experts ? ordered(selection[j]) : 0;
    }
    if (p.n_groups > 1) {
      // The two best of every group, one group after the other; lane i keeps group i's sum.
      const int size = p.n_experts / p.n_groups;
      uint32_t mine = 0;
      for (int i = 0; i < p.n_groups; ++i) {
        uint32_t best = 0, second = 0;
#pragma unroll
        for (int j = 0; j < kPerLane; ++j) {
          uint32_t v = (j * 32 + lane) / size == i ? key[j] : 0;
          second = max(second, min(best, v));
          best = max(best, v);
        }
        uint32_t a = __reduce_max_sync(~0u, best);
        int owner = __ffs(__ballot_sync(~0u, best == a)) - 1;
        uint32_t b = __reduce_max_sync(~0u, lane == owner ? second : best);
        if (lane == i) mine = ordered(size > 1 ? from_ordered(a) + from_ordered(b) : from_ordered(a));
      }
      uint32_t allowed = 0;
      for (int i = 0; i < p.top_groups; ++i) {
        uint32_t best = __reduce_max_sync(~0u, mine);
        int winner = __ffs(__ballot_sync(~0u, mine == best && lane < p.n_groups)) - 1;
        allowed |= 1u << winner;
        if (lane == winner) mine = 0;
      }
#pragma unroll
      for (int j = 0; j < kPerLane; ++j)
        if (j * 32 + lane < p.n_experts && !(allowed >> (j * 32 + lane) / size & 1)) key[j] = 0;
    }
  } else {
    top = from_ordered(__reduce_max_sync(~0u, ordered(top)));
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      bool real = j * 32 + lane < p.n_experts;
      key[j] = real ? ordered(score[j]) : 0;
      score[j] = real ? __expf(score[j] - top) : 0.0f;
    }
  }

  float all = 1.0f;
  if (p.kind == RouteKind::softmax_topk && !p.renormalise) {
    all = 0.0f;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) all += score[j];
    all = warp_sum(all);
  }
  // The k-th best of the lanes' own best is a threshold that all chosen pass and few others do. What passes moves together,
  // in the order of ids, one a lane, and is ranked.
  uint32_t one = key[0];
  float one_score = score[0];
  int one_id = lane;
  bool few = true;
  if constexpr (kPerLane > 1) {
    uint32_t best = 0;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) best = max(best, key[j]);
    const uint32_t last = __ballot_sync(~0u, rank_in_warp(best) == p.top_k - 1);
    const uint32_t threshold = max(__shfl_sync(~0u, best, __ffs(last) - 1), 1u);
    int n = 0;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      const bool passes = key[j] >= threshold;
      const uint32_t vote = __ballot_sync(~0u, passes);
      const int at = n + __popc(vote & ((1u << lane) - 1));
      if (passes && at < 32) scratch.key[at] = key[j], scratch.score[at] = score[j], scratch.id[at] = j * 32 + lane;
      n += __popc(vote);
    }
    __syncwarp();
    few = n <= 32;
    one = lane < n ? scratch.key[lane] : 0, one_score = scratch.score[lane], one_id = scratch.id[lane];
    __syncwarp();
  }
  float my_weight = 0.0f;
  int my_id = 0;
  if (few) {
    const int rank = rank_in_warp(one);
    if (rank < p.top_k) scratch.score[rank] = one_score, scratch.id[rank] = one_id;
    __syncwarp();
    if (lane < p.top_k) my_id = scratch.id[lane], my_weight = scratch.score[lane];
    __syncwarp();
  } else {  // many equal logits: one after the other
#pragma unroll 1
    for (int k = 0; k < p.top_k; ++k) {
      uint32_t best = 0;
      float w = 0;
      int e = INT32_MAX;
#pragma unroll
      for (int j = 0; j < kPerLane; ++j)
        if (key[j] > best) best = key[j], w = score[j], e = j * 32 + lane;
      const uint32_t winner_key = __reduce_max_sync(~0u, best);
      const int winner = __reduce_min_sync(~0u, best == winner_key ? e : INT32_MAX);
      w = __shfl_sync(~0u, w, winner % 32);
#pragma unroll
      for (int j = 0; j < kPerLane; ++j)
        if (winner == j * 32 + lane) key[j] = 0;
      if (lane == k) my_id = winner, my_weight = w;
    }
  }
  const float sum = warp_sum(lane < p.top_k ? my_weight : 0.0f);
  const bool divide = p.renormalise || p.kind == RouteKind::topk_softmax;
  const float factor =
      p.scale / (divide ? sum + (p.kind == RouteKind::sigmoid_bias_grouped ? 1e-20f : 0.0f) : all);
  if (lane < p.top_k) return {my_id, my_weight * factor};
  return {p.n_experts + lane - p.top_k, 1.0f};
}

// For up to kMaxExperts experts.
template <int kMaxExperts>
__device__ __forceinline__ Chosen choose_among(const MoeRouteArgs& p, int token, ChooseScratch& scratch) {
  if (p.n_experts <= 32) return choose<1>(p, token, scratch);
  if (p.n_experts <= 64) return choose<2>(p, token, scratch);
  if (p.n_experts <= 128) return choose<4>(p, token, scratch);
  if (kMaxExperts <= 256 || p.n_experts <= 256) return choose<8>(p, token, scratch);
  return choose<kMaxExperts / 32>(p, token, scratch);
}

}  // namespace sluice::cuda::moe
