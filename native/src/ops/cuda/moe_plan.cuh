// What each block of the experts kernel works out for itself from the routing: which pairs (token, k) belong to which
// expert, and which row tiles of which experts are this block's share of gate/up and of down. Same code, same input, so all
// blocks agree without a word between them.
#pragma once

#include "ops/cuda/moe_choose.cuh"
#include "ops/cuda/moe_kernels.h"

namespace sluice::cuda::moe {

inline constexpr int kProducers = 4;  // one for weights, the others for activations

// The two rings.
struct Pipeline {
  int weight_stages, weight_stage_bytes;
  int token_stages, token_stage_bytes;
  int window_bytes;  // weights under way at a time
  bool choose;  // this kernel does the top-k
};

// Units of 64 columns that a stage of either ring holds for an item of `count` row tiles and 8 << token_class tokens (the
// groups of rows that consumers read). One is a multiple of the other.
struct Split {
  uint8_t weight_units, token_units;
};
__device__ __forceinline__ Split split_columns(const Pipeline& pipe, int unit_bytes, int count, int token_class) {
  int w = pipe.weight_stage_bytes / (unit_bytes * count);
  int t = (pipe.token_stage_bytes / (8 << token_class) - 64) / 128;
  if (t < 1) return {0, 0};  // such items do not occur in this launch
  if (w >= t) w -= w % t;
  else t -= t % w;
  return {uint8_t(w), uint8_t(t)};
}

// Where things lie in the block's shared memory; the same on the host, which sizes the launch by it.
struct SharedMap {
  uint32_t weights, tokens, barriers, mask, split, offset, hit, list, slots, gates, bytes;
};
inline SharedMap shared_map(const Pipeline& pipe, int n_experts, int max_pairs) {
  SharedMap m{};
  m.tokens = m.weights + pipe.weight_stage_bytes * pipe.weight_stages;
  m.barriers = m.tokens + pipe.token_stage_bytes * pipe.token_stages;
  m.mask = (m.barriers + 8 * 2 * (pipe.weight_stages + pipe.token_stages) + 15) / 16 * 16;
  m.split = m.mask + n_experts * 16;               // Split of every item
  m.offset = m.split + 4 * 33 * sizeof(Split);     // uint16 first pair of an expert
  m.hit = (m.offset + n_experts * 2 + 7) / 8 * 8;  // Hit of each expert hit, and one past the end
  m.list = m.hit + (n_experts + 1) * 8;            // uint8 token of a pair
  m.slots = (m.list + max_pairs + 1) / 2 * 2;      // uint16 pair of (token, k)
  m.gates = (m.slots + max_pairs * 2 + 3) / 4 * 4; // float weight of (token, k), when chosen here
  m.bytes = m.gates + (pipe.choose ? max_pairs * 4 : 0);
  return m;
}

// An expert with work. `before` is the cost of all experts in front of it, for one row tile of each.
struct Hit {
  uint16_t expert;
  uint8_t n_tokens;
  uint8_t cost;  // of one row tile, one pass
  uint32_t before;
};

struct Range {
  int hit, unit, end_hit, end_unit;
};

struct PlanView {
  const Hit* hits;
  const uint16_t* offset;
  const Range* ranges;  // of the two phases
  const uint8_t* list;
  const uint16_t* slots;
  const float* weights;
  const Split* splits;  // [4 token classes][33 counts]
};

// One piece of work of the whole block: `count` consecutive row tiles of one expert for n tokens from pair `pair`.
struct Item {
  int expert, pair, n, tile, count;
  int weight_units, token_units;  // of a stage
};

// A producer's or consumer's place in a ring of stages.
struct RingPosition {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance(int stages) {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

// Walks the block's share of one phase. Every warp runs its own copy and gets the same items.
template <int kItemTiles, int kCapacity>
struct Walk {
  const PlanView& plan;
  Range r;
  int tiles, units;
  __device__ __forceinline__ Walk(const PlanView& plan, const MoeExpertsArgs& p, int phase)
      : plan(plan), r(plan.ranges[phase]), tiles(phase ? p.hidden / 16 : p.inter / 8), units((phase ? p.inter : p.hidden) / 64) {}
  __device__ __forceinline__ bool next(Item& item) {
    for (;;) {
      if (r.hit > r.end_hit || (r.hit == r.end_hit && r.unit >= r.end_unit)) return false;
      Hit h = plan.hits[r.hit];
      int passes = (h.n_tokens + kCapacity - 1) / kCapacity;
      int limit = r.hit == r.end_hit ? r.end_unit : passes * tiles;
      if (r.unit >= limit) {
        ++r.hit, r.unit = 0;
        continue;
      }
      int pass = passes == 1 ? 0 : r.unit / tiles;
      item.expert = h.expert;
      item.tile = r.unit - pass * tiles;
      item.pair = plan.offset[h.expert] + pass * kCapacity;
      item.n = min(kCapacity, h.n_tokens - pass * kCapacity);
      int run = min(limit - r.unit, tiles - item.tile);
      item.count = min(run, kItemTiles);
      const Split split = plan.splits[(item.n > 8) * 33 + (item.n > 16) * 33 + (item.n > 32) * 33 + item.count];
      item.weight_units = split.weight_units, item.token_units = split.token_units;
      r.unit += item.count;
      return true;
    }
  }
};

// All threads of the block. Waits for the routing.
template <int kThreads, int kCapacity, int kItemTiles, int kUnitBytes, class Reader>
__device__ PlanView make_plan(const MoeRouteArgs& r, const MoeExpertsArgs& p, const MoeWorkspace& work, const Pipeline& pipe,
                              int n_tokens, uint8_t* shared, const SharedMap& map) {
  __shared__ Range ranges[2];
  __shared__ uint32_t warp_sums[kThreads / 32][2];
  __shared__ uint32_t carry[2];
  uint32_t* mask = reinterpret_cast<uint32_t*>(shared + map.mask);
  uint16_t* offset = reinterpret_cast<uint16_t*>(shared + map.offset);
  Hit* hits = reinterpret_cast<Hit*>(shared + map.hit);
  uint8_t* list = shared + map.list;
  uint16_t* slots = reinterpret_cast<uint16_t*>(shared + map.slots);
  float* weights = reinterpret_cast<float*>(shared + map.gates);
  Split* splits = reinterpret_cast<Split*>(shared + map.split);
  const PlanView plan{hits, offset, ranges, list, slots, weights, splits};

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int n_experts = r.n_experts + r.n_shared, width = r.top_k + r.n_shared;
  const int n_pairs = n_tokens * width;
  for (int i = threadIdx.x; i < n_experts * 4; i += kThreads) mask[i] = 0;
  for (int i = threadIdx.x; i < 4 * 33; i += kThreads)
    if (i % 33 >= 1 && i % 33 <= kItemTiles) splits[i] = split_columns(pipe, kUnitBytes, i % 33, i / 33);
  if (threadIdx.x < 2) ranges[threadIdx.x] = {0, 0, -1, 0}, carry[threadIdx.x] = 0;
  const int routed = (n_tokens + 7) / 8 * (pipe.choose ? (r.n_experts + 15) / 16 : 1);
  if (threadIdx.x == 0) ptx::wait_until_equal(&work.sync->routed, routed);
  __syncthreads();

  // Token sets by expert; until they are there, `slots` holds expert ids.
  if (pipe.choose) {
    for (int token = warp; token < n_tokens; token += kThreads / 32) {
      Chosen chosen = choose_among<256>(r, token, reinterpret_cast<ChooseScratch*>(shared + map.weights)[warp]);
      if (lane < width) {
        int i = token * width + lane;
        slots[i] = chosen.expert;
        weights[i] = chosen.weight;
        atomicOr(&mask[chosen.expert * 4 + token / 32], 1u << token % 32);
        if (blockIdx.x == 0) r.ids[i] = chosen.expert, r.weights[i] = chosen.weight;
      }
    }
  } else {
    for (int i = threadIdx.x; i < n_pairs; i += kThreads) {
      int t = i / width, e = __ldcg(&r.ids[i]);
      slots[i] = e;
      atomicOr(&mask[e * 4 + t / 32], 1u << t % 32);
    }
  }
  __syncthreads();

  // Exclusive sums over experts: pairs, experts hit, cost.
  int n_hits = 0;
  for (int base = 0; base < n_experts; base += kThreads) {
    const int e = base + threadIdx.x;
    int count = 0;
    if (e < n_experts) {
      uint4 m = *reinterpret_cast<const uint4*>(&mask[e * 4]);
      count = __popc(m.x) + __popc(m.y) + __popc(m.z) + __popc(m.w);
      if (blockIdx.x == 0 && p.expert_tokens && count) p.expert_tokens[e] += count;
    }
    const uint32_t per_pass = Reader::row_tile_cost(min(count, kCapacity));
    const uint32_t cost = (count + kCapacity - 1) / kCapacity * per_pass, both = count << 16 | (count > 0);
    uint32_t both_scan = both, cost_scan = cost;
#pragma unroll
    for (int d = 1; d < 32; d <<= 1) {
      uint32_t a = __shfl_up_sync(~0u, both_scan, d), b = __shfl_up_sync(~0u, cost_scan, d);
      if (lane >= d) both_scan += a, cost_scan += b;
    }
    if (lane == 31) warp_sums[warp][0] = both_scan, warp_sums[warp][1] = cost_scan;
    __syncthreads();
    uint32_t both_before = carry[0], cost_before = carry[1];
    const int used = min(kThreads, n_experts - base + 31) / 32;
    uint32_t both_all = both_before, cost_all = cost_before;
    for (int w = 0; w < used; ++w) {
      uint32_t a = warp_sums[w][0], b = warp_sums[w][1];
      if (w < warp) both_before += a, cost_before += b;
      both_all += a, cost_all += b;
    }
    both_before += both_scan - both, cost_before += cost_scan - cost;
    if (e < n_experts) offset[e] = both_before >> 16;
    if (count) hits[both_before & 0xffff] = {uint16_t(e), uint8_t(count), uint8_t(per_pass), cost_before};
    n_hits = both_all & 0xffff;
    if (threadIdx.x == 0) hits[n_hits] = {0, 0, 1, cost_all};
    __syncthreads();
    if (base + kThreads < n_experts) {
      if (threadIdx.x == 0) carry[0] = both_all, carry[1] = cost_all;
      __syncthreads();
    }
  }

  for (int i = threadIdx.x; i < n_pairs; i += kThreads) {
    int t = i / width, e = slots[i], rank = 0;
    for (int w = 0; w < t / 32; ++w) rank += __popc(mask[e * 4 + w]);
    rank += __popc(mask[e * 4 + t / 32] & ((1u << t % 32) - 1));
    slots[i] = offset[e] + rank;
    list[offset[e] + rank] = t;
  }
  // The ends of the block's two ranges: a cost position falls into exactly one expert.
  for (int i = threadIdx.x; i < n_hits * 4; i += kThreads) {
    const int j = i / 4, phase = i % 2, end = i / 2 % 2;
    const uint32_t tiles = phase ? p.hidden / 16 : p.inter / 8;
    const uint32_t total = hits[n_hits].before * tiles, share = total / gridDim.x, rest = total % gridDim.x;
    const uint32_t at = share * (blockIdx.x + end) + rest * (blockIdx.x + end) / gridDim.x;
    const uint32_t from = hits[j].before * tiles, to = hits[j + 1].before * tiles;
    const bool last = end && blockIdx.x + 1 == gridDim.x && j + 1 == n_hits;
    if ((at >= from && at < to) || last) {
      int unit = last ? (to - from) / hits[j].cost : (at - from + hits[j].cost - 1) / hits[j].cost;
      if (end) ranges[phase].end_hit = j, ranges[phase].end_unit = unit;
      else ranges[phase].hit = j, ranges[phase].unit = unit;
    }
  }
  __syncthreads();
  return plan;
}

}  // namespace sluice::cuda::moe
