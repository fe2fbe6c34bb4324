// Experts of a mixture-of-experts layer for few tokens, in one persistent launch: choice, gate/up, activation, down, combine.
//
//   h[pair] = act(Wgate_e x[t], Wup_e x[t]);   partial[pair] = Wdown_e h[pair];   out[t] = sum_k weight[t][k] partial[pair(t, k)]
//
// Bytes: 3 * hidden * inter weights for each expert hit, once; activations are small beside them. The floor is those bytes
// over the card's read rate, so everything here serves one aim: the weight stream never stops.
//
// Launch: one block a multiprocessor: kConsumers warps that compute and four that only issue bulk copies.
//   - The weight producer walks through the block's share of gate/up and then of down, and fills a ring of stages of up to
//     190 KB. It waits for nothing but free stages, so while a block waits for the others to finish gate/up, its first down
//     weights are already there. No more than a window of bytes is under way at a time: more would only lengthen the
//     queues that activations and counters wait in (192 KB a multiprocessor under way = 4 us).
//   - The activation producers do the same with the tokens' rows (x, then h) in a ring of its own. They alone wait for the
//     grid: h is complete when all blocks have finished gate/up. Three, because a warp takes up to 37 ns to issue a copy.
//   - A consumer warp multiplies kTiles row tiles with all tokens of the expert: weights are the 16-row operand of
//     mma.m16n8k16, tokens the 8 columns. A unit is read from shared memory and unpacked once for up to 8 kNt tokens.
// Stages hold as many columns as fit for the item's row tiles and tokens, so that small items keep as many bytes under way.
// Work: (expert, token pass, row tile) in this order, divided among blocks by cost, computed by each block from the routing.
// Sums: fixed order over K inside one warp; over a token's experts in top-k order by whoever writes that output. No atomics
// but counters. Columns of an mma do not see each other, so a token's bits do not depend on its neighbours.
//
// Idea credits: weights as the row operand at small batch (swap-AB) and masked grouped layouts: DeepGEMM; persistent
// gate-to-combine kernel with routing replicated in each block: FlashInfer MonoMoE; producer/consumer rings: CUTLASS.
#pragma once

#include "ops/cuda/moe_choose.cuh"
#include "ops/cuda/moe_formats.cuh"
#include "ops/cuda/moe_kernels.h"
#include "ops/cuda/moe_plan.cuh"

namespace sluice::cuda {

// kNt: most tiles of 8 tokens a warp takes at once.
template <WeightFormat format, int kConsumers, int kTiles, int kNt>
__global__ __launch_bounds__((kConsumers + moe::kProducers) * 32, 1) void moe_experts_kernel(
    const __grid_constant__ MoeRouteArgs r, const __grid_constant__ MoeExpertsArgs p,
    const __grid_constant__ MoeWorkspace work, const __grid_constant__ moe::Pipeline pipe,
    const __grid_constant__ moe::SharedMap map) {
  using namespace moe;
  using Reader = UnitReader<format>;
  constexpr int kUnitBytes = moe_unit_bytes(format);
  constexpr int kItemTiles = kConsumers * kTiles;
  constexpr int kThreads = (kConsumers + kProducers) * 32;
  constexpr int kCapacity = 8 * kNt;
  static_assert(kItemTiles <= 32 && kCapacity <= 64);

  uint8_t* shared = ptx::dynamic_shared();
  uint64_t* weight_full = reinterpret_cast<uint64_t*>(shared + map.barriers);
  uint64_t* weight_free = weight_full + pipe.weight_stages;
  uint64_t* token_full = weight_free + pipe.weight_stages;
  uint64_t* token_free = token_full + pipe.token_stages;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  ptx::allow_next_kernel();
  if (threadIdx.x == 0) {
    for (int i = 0; i < pipe.weight_stages; ++i) {
      ptx::mbarrier_init(&weight_full[i], 1);
      ptx::mbarrier_init(&weight_free[i], kConsumers);
    }
    for (int i = 0; i < pipe.token_stages; ++i) {
      ptx::mbarrier_init(&token_full[i], kProducers - 1);
      ptx::mbarrier_init(&token_free[i], kConsumers);
    }
    ptx::fence_mbarrier_init();
  }
  const int width = r.top_k + r.n_shared;
  const int n_tokens = *r.n_tokens;
  const PlanView plan = make_plan<kThreads, kCapacity, kItemTiles, kUnitBytes, Reader>(r, p, work, pipe, n_tokens, shared, map);

  if (warp == kConsumers) {
    // --- weight producer ---------------------------------------------------------------------------------------------
    const uint64_t policy = ptx::evict_first_policy();
    ptx::fence_proxy_async();  // the ring's memory was scratch until here
    RingPosition at, arrived;
    int under_way = 0;
    for (int phase = 0; phase < 2; ++phase) {
      Walk<kItemTiles, kCapacity> walk(plan, p, phase);
      const int units = walk.units;
      const std::byte* base = phase ? p.down : p.gate_up;
      Item item;
      while (walk.next(item)) {
        const std::byte* source = base + (int64_t(item.expert) * walk.tiles + item.tile + lane) * units * kUnitBytes;
        // Equal bytes under way for every block: one with less would get a smaller share of the memory's time.
        const int stage_bytes = item.weight_units * kUnitBytes * item.count;
        const int window = min((pipe.window_bytes + stage_bytes - 1) / stage_bytes, pipe.weight_stages);
        for (int u = 0; u < units; u += item.weight_units) {
          uint32_t bytes = min(item.weight_units, units - u) * kUnitBytes;
          for (; under_way >= window; --under_way) {
            ptx::mbarrier_wait(&weight_full[arrived.stage], arrived.parity);
            arrived.advance(pipe.weight_stages);
          }
          ++under_way;
          ptx::mbarrier_wait(&weight_free[at.stage], at.parity ^ 1);
          if (lane == 0) ptx::mbarrier_arrive_expect_tx(&weight_full[at.stage], bytes * item.count);
          __syncwarp();
          if (lane < item.count)
            ptx::bulk_load(shared + map.weights + at.stage * pipe.weight_stage_bytes + lane * item.weight_units * kUnitBytes,
                           source + int64_t(u) * kUnitBytes, bytes, &weight_full[at.stage], policy);
          at.advance(pipe.weight_stages);
        }
      }
    }
  } else if (warp > kConsumers) {
    // --- activation producers: rows are dealt to them in turn --------------------------------------------------------
    const int first_row = warp - kConsumers - 1 + lane * (kProducers - 1);
    RingPosition at;
    for (int phase = 0; phase < 2; ++phase) {
      if (phase == 1 && lane == 0) ptx::wait_until_equal(&work.sync->gated, gridDim.x);
      __syncwarp();
      ptx::fence_proxy_async();
      Walk<kItemTiles, kCapacity> walk(plan, p, phase);
      const int units = walk.units;
      const __nv_bfloat16* rows = phase ? work.activated : Reader::kTokenFactor == 1.0f ? r.x : work.scaled_x;
      Item item;
      while (walk.next(item)) {
        const bool mine = first_row < item.n;
        const int n_mine = __popc(__ballot_sync(~0u, mine));
        const int place = !mine ? 0 : phase ? item.pair + first_row : plan.list[item.pair + first_row];
        const __nv_bfloat16* source = rows + int64_t(place) * (units * 64);
        const int row_bytes = item.token_units * 128 + 64;
        for (int u = 0; u < units; u += item.token_units) {
          const uint32_t bytes = min(item.token_units, units - u) * 128;
          ptx::mbarrier_wait(&token_free[at.stage], at.parity ^ 1);
          if (lane == 0) ptx::mbarrier_arrive_expect_tx(&token_full[at.stage], bytes * n_mine);
          __syncwarp();
          if (mine)
            ptx::bulk_load(shared + map.tokens + at.stage * pipe.token_stage_bytes + first_row * row_bytes,
                           source + u * 64, bytes, &token_full[at.stage]);
          at.advance(pipe.token_stages);
        }
      }
    }
  } else {
    // --- consumers ---------------------------------------------------------------------------------------------------
    const int g = lane / 4, t = lane % 4;
    RingPosition weights_at, tokens_at;
    const uint32_t weights_base = ptx::shared_address(shared + map.weights);
    const uint32_t tokens_base = ptx::shared_address(shared + map.tokens) + t * 16;

    for (int phase = 0; phase < 2; ++phase) {
      Walk<kItemTiles, kCapacity> walk(plan, p, phase);
      const int units = walk.units;
      const float* row_scale = phase ? p.down_scale : p.gate_up_scale;
      const float* row_bias = phase ? p.down_bias : p.gate_up_bias;

      // One item with kN token tiles: its main loop over K and its epilogue.
      auto run = [&]<int kN>(const Item& item) {
        const int mine = item.count - warp * kTiles;  // row tiles of this warp, if positive
        const int64_t row0 = (int64_t(item.expert) * walk.tiles + item.tile + warp * kTiles) * 16 + g;
        float scale[kTiles][2], bias[kTiles][2];
#pragma unroll
        for (int m = 0; m < kTiles; ++m)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            bool real = m < mine;
            scale[m][i] = (row_scale && real ? row_scale[row0 + m * 16 + i * 8] : 1.0f) * Reader::kOutputFactor;
            bias[m][i] = row_bias && real ? row_bias[row0 + m * 16 + i * 8] : 0.0f;
          }
        // A missing second tile is computed as the first again, and dropped.
        const uint32_t tile_bytes = item.weight_units * kUnitBytes, next_tile = mine < kTiles ? 0 : tile_bytes;
        static_assert(kTiles <= 2);
        const uint32_t row_bytes = item.token_units * 128 + 64;
        float c[kTiles][kN][4] = {}, d[kTiles][kN][4] = {};
        int weights_left = 0, tokens_left = 0;  // units left in the stages at hand
        uint32_t w = 0, x = 0;
        for (int u0 = 0; u0 < units;) {
          if (tokens_left == 0) {
            ptx::mbarrier_wait(&token_full[tokens_at.stage], tokens_at.parity);
            tokens_left = min(item.token_units, units - u0);
            x = tokens_base + tokens_at.stage * pipe.token_stage_bytes + g * row_bytes;
          }
          if (weights_left == 0) {
            ptx::mbarrier_wait(&weight_full[weights_at.stage], weights_at.parity);
            weights_left = min(item.weight_units, units - u0);
            w = weights_base + weights_at.stage * pipe.weight_stage_bytes + warp * kTiles * tile_bytes;
          }
          const int n = min(tokens_left, weights_left);
          if (mine > 0) {
#pragma unroll(kN >= 3 ? 1 : kN == 2 ? 2 : 4)
            for (int u = 0; u < n; ++u, w += kUnitBytes, x += 128) {
              uint32_t a[kTiles][4][4];
              [[maybe_unused]] float2 s[kTiles][2];
#pragma unroll
              for (int m = 0; m < kTiles; ++m) {
                Reader::read(w + m * next_tile, lane, a[m]);
                if constexpr (Reader::kSums == Sums::unit_scaled) s[m][0] = Reader::scales(w + m * next_tile, lane);
                if constexpr (Reader::kSums == Sums::half_scaled) Reader::half_scales(w + m * next_tile, lane, s[m]);
              }
#pragma unroll
              for (int i = 0; i < kN; ++i) {
                const uint4 b0 = ptx::load_shared_v4(x + i * 8 * row_bytes);
                const uint4 b1 = ptx::load_shared_v4(x + i * 8 * row_bytes + 64);
#pragma unroll
                for (int m = 0; m < kTiles; ++m) {
                  if constexpr (Reader::kSums != Sums::plain) {
                    constexpr bool kHalves = Reader::kSums == Sums::half_scaled;
                    float e[4] = {}, f[4] = {};
                    ptx::mma_bf16(e, a[m][0], b0.x, b0.y);
                    ptx::mma_bf16(kHalves ? e : f, a[m][1], b0.z, b0.w);
                    ptx::mma_bf16(kHalves ? f : e, a[m][2], b1.x, b1.y);
                    ptx::mma_bf16(f, a[m][3], b1.z, b1.w);
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                      const float low = j < 2 ? s[m][0].x : s[m][0].y;
                      if constexpr (kHalves) {
                        c[m][i][j] = fmaf(e[j], low, c[m][i][j]);
                        d[m][i][j] = fmaf(f[j], j < 2 ? s[m][1].x : s[m][1].y, d[m][i][j]);
                      } else {
                        c[m][i][j] = fmaf(e[j] + f[j], low, c[m][i][j]);
                      }
                    }
                  } else {
                    ptx::mma_bf16(c[m][i], a[m][0], b0.x, b0.y);
                    ptx::mma_bf16(d[m][i], a[m][1], b0.z, b0.w);
                    ptx::mma_bf16(c[m][i], a[m][2], b1.x, b1.y);
                    ptx::mma_bf16(d[m][i], a[m][3], b1.z, b1.w);
                  }
                }
              }
            }
          }
          u0 += n, weights_left -= n, tokens_left -= n;
          __syncwarp();
          if (weights_left == 0) {
            if (lane == 0) ptx::mbarrier_arrive(&weight_free[weights_at.stage]);
            weights_at.advance(pipe.weight_stages);
          }
          if (tokens_left == 0) {
            if (lane == 0) ptx::mbarrier_arrive(&token_free[tokens_at.stage]);
            tokens_at.advance(pipe.token_stages);
          }
        }
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
          if (m >= mine) break;
          const int tile = item.tile + warp * kTiles + m;
#pragma unroll
          for (int i = 0; i < kN; ++i)
#pragma unroll
            for (int col = 0; col < 2; ++col) {
              int token = i * 8 + 2 * t + col;
              if (token >= item.n) continue;
              float low = (c[m][i][col] + d[m][i][col]) * scale[m][0] + bias[m][0];
              float high = (c[m][i][2 + col] + d[m][i][2 + col]) * scale[m][1] + bias[m][1];
              int64_t pair = item.pair + token;
              if (phase == 0) {
                float v;
                if (p.activation.kind == ActivationKind::swiglu) {
                  v = low / (1.0f + __expf(-low)) * high;
                } else {
                  low = fminf(low, p.activation.limit);
                  high = fminf(fmaxf(high, -p.activation.limit), p.activation.limit);
                  v = low / (1.0f + __expf(-p.activation.alpha * low)) * (high + 1.0f);
                }
                work.activated[pair * p.inter + tile * 8 + g] = __float2bfloat16(v * Reader::kTokenFactor);
              } else {
                float* to = work.partial + pair * p.hidden + tile * 16 + g;
                __stcg(to, low);
                __stcg(to + 8, high);
              }
            }
        }
      };

      Item item;
      while (walk.next(item)) {
        if (kNt == 1 || item.n <= 8) run.template operator()<1>(item);
        else if (kNt == 2 || item.n <= 16) run.template operator()<(kNt < 2 ? kNt : 2)>(item);
        else if (kNt == 8 && item.n <= 24) run.template operator()<3>(item);
        else if (kNt == 4 || item.n <= 32) run.template operator()<(kNt < 4 ? kNt : 4)>(item);
        else run.template operator()<kNt>(item);
      }
      ptx::fence_proxy_async();
      ptx::named_barrier(1, kConsumers * 32);
      if (threadIdx.x == 0) ptx::red_release_add(phase ? &work.sync->reduced : &work.sync->gated, 1);
    }

    // --- combine: each warp sums 128 outputs of a token over its experts, in top-k order -------------------------------
    const int pieces = (p.hidden + 127) / 128;
    if (int(blockIdx.x) < n_tokens * pieces) {
      if (threadIdx.x == 0) ptx::wait_until_equal(&work.sync->reduced, gridDim.x);
      ptx::named_barrier(1, kConsumers * 32);
      for (int i = warp * gridDim.x + blockIdx.x; i < n_tokens * pieces; i += gridDim.x * kConsumers) {
        int token = i / pieces, column = i % pieces * 128 + lane * 4;
        if (column >= p.hidden) continue;
        float4 sum{};
        if (p.residual) {
          uint2 v = *reinterpret_cast<const uint2*>(p.residual + int64_t(token) * p.hidden + column);
          sum = {ptx::bf16_low(v.x), ptx::bf16_high(v.x), ptx::bf16_low(v.y), ptx::bf16_high(v.y)};
        }
        for (int k0 = 0; k0 < width; k0 += 8) {
          float4 v[8];
          float w[8];
#pragma unroll
          for (int k = 0; k < 8; ++k) {
            bool real = k0 + k < width;
            int at = token * width + (real ? k0 + k : 0);
            w[k] = !real ? 0.0f : pipe.choose ? plan.weights[at] : __ldcg(&r.weights[at]);
            v[k] = __ldcg(reinterpret_cast<const float4*>(work.partial + int64_t(plan.slots[at]) * p.hidden + column));
          }
#pragma unroll
          for (int k = 0; k < 8; ++k) {
            if (k0 + k >= width) break;
            sum.x = fmaf(w[k], v[k].x, sum.x), sum.y = fmaf(w[k], v[k].y, sum.y);
            sum.z = fmaf(w[k], v[k].z, sum.z), sum.w = fmaf(w[k], v[k].w, sum.w);
          }
        }
        *reinterpret_cast<uint2*>(p.out + int64_t(token) * p.hidden + column) = {ptx::pack_bf16x2(sum.x, sum.y),
                                                                                 ptx::pack_bf16x2(sum.z, sum.w)};
      }
    }
    if (threadIdx.x == 0 && atomicAdd(&work.sync->left, 1u) == gridDim.x - 1) {
      // Every block has seen all it waits for: the counters are ready for the next layer.
      work.sync->routed = work.sync->gated = work.sync->reduced = work.sync->left = 0;
    }
    ptx::wait_for_previous_kernel();
  }
}

}  // namespace sluice::cuda
