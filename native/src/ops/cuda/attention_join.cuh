// The end of a run: its result becomes the output, or a piece of it that the last block to arrive joins with the others.
#pragma once

#include "ops/cuda/attention_work.cuh"
#include "ops/cuda/launch.h"

namespace sluice::cuda::attend {

// All kThreads consumers of the block. get(head, quad, m, l): the run's sum of e^(s - m) v for values 4 quad .. 4 quad + 3, in
// exponents of 2, and l, the sum of e^(s - m).
template <int kHeads, int kDim, int kThreads, class Get>
__device__ __forceinline__ void deliver(const AttentionArgs& p, const RunWalk& walk, const Run& run, int head0, int n_heads,
                                        int n_groups, uint32_t* ticket, Get get) {
  constexpr int kQuads = kDim / 4, kSlot = kHeads * (kDim + 2);
  auto finish = [&](int head, int quad, float4 v, float m, float l) {
    if (p.sinks) {
      const float sink = p.sinks[head0 + head] * 1.44269504f, m2 = fmaxf(m, sink);
      const float keep = ptx::exp2_approx(m - m2);
      l = l * keep + ptx::exp2_approx(sink - m2);
      v.x *= keep, v.y *= keep, v.z *= keep, v.w *= keep;
    }
    const float f = 1.0f / l;
    *reinterpret_cast<uint2*>(p.out + (int64_t(run.token) * p.n_heads + head0 + head) * kDim + quad * 4) = {
        ptx::pack_bf16x2(v.x * f, v.y * f), ptx::pack_bf16x2(v.z * f, v.w * f)};
  };
  float* partial = p.partial + int64_t(run.slot) * kSlot;
  for (int i = threadIdx.x; i < n_heads * kQuads; i += kThreads) {
    const int head = i / kQuads, quad = i % kQuads;
    float m, l;
    const float4 v = get(head, quad, m, l);
    if (run.pieces == 1) {
      finish(head, quad, v, m, l);
    } else {
      __stcg(reinterpret_cast<float4*>(partial + head * kDim + quad * 4), v);
      if (quad == 0) __stcg(partial + kHeads * kDim + head, m), __stcg(partial + kHeads * (kDim + 1) + head, l);
    }
  }
  if (run.pieces == 1) return;
  __threadfence();
  ptx::named_barrier(1, kThreads);
  uint32_t* counter = p.tickets + int64_t(run.token) * n_groups + run.head;
  if (threadIdx.x == 0) *ticket = atomicAdd(counter, 1u);
  ptx::named_barrier(1, kThreads);
  if (*ticket != uint32_t(run.pieces - 1)) return;
  __threadfence();
  // In the order of the keys, whoever came last.
  for (int i = threadIdx.x; i < n_heads * kQuads; i += kThreads) {
    const int head = i / kQuads, quad = i % kQuads;
    float m = -INFINITY, l = 0;
    float4 v{};
    for (int piece = 0; piece < run.pieces; piece += 8) {
      float4 part[8];
      float part_max[8], part_sum[8];
      float larger = m;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float* from = p.partial + int64_t(walk.slot_of(run, min(piece + j, run.pieces - 1))) * kSlot;
        part[j] = __ldcg(reinterpret_cast<const float4*>(from + head * kDim + quad * 4));
        part_max[j] = __ldcg(from + kHeads * kDim + head);
        part_sum[j] = __ldcg(from + kHeads * (kDim + 1) + head);
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) larger = piece + j < run.pieces ? fmaxf(larger, part_max[j]) : larger;
      const float keep = ptx::exp2_approx(m - larger);
      l *= keep, v.x *= keep, v.y *= keep, v.z *= keep, v.w *= keep;
      m = larger;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float f = piece + j < run.pieces ? ptx::exp2_approx(part_max[j] - m) : 0.0f;
        l = fmaf(f, part_sum[j], l);
        v.x = fmaf(f, part[j].x, v.x), v.y = fmaf(f, part[j].y, v.y), v.z = fmaf(f, part[j].z, v.z), v.w = fmaf(f, part[j].w, v.w);
      }
    }
    finish(head, quad, v, m, l);
  }
  if (threadIdx.x == 0) *counter = 0;
}

}  // namespace sluice::cuda::attend
