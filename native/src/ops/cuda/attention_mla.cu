// Multi-head latent attention of single queries, absorbed form: all heads read one vector of 512 + 64 a token.
//
//   s(j) = scale q c(j), over 576;  out = sum_j e^s(j) c(j)[0 .. 512) / sum_j e^s(j)       (DeepSeek-V2, arXiv:2405.04434)
//
// Bytes: 1152 a key, once for every 16 heads: 64 rows of 4096 keys, 16 heads: 302 MB. The floor is those bytes over the read
// rate. With 128 heads the same keys are read eight times, mostly from L2, and arithmetic has the larger share.
//
// Launch: one block a multiprocessor: eight warps that compute, one that issues bulk copies of 18 KB, a KV block each. Work is
//   divided as in attention_decode.cuh. Four KV blocks (64 keys) at a time:
//   - warp w takes the scores of KV block w mod 4 for heads 8 (w / 4) ..:  S^T = C Q^T, its queries stay in registers;
//   - the warps agree on the largest score a head, and leave their probabilities in shared memory as mma operands;
//   - warp w adds up values 64 w .. 64 w + 63 of all heads:  O^T += C^T P^T.
#include <algorithm>

#include "ops/cuda/attention_join.cuh"

namespace sluice::cuda::attend {
namespace {

constexpr int kDim = kMlaLatentDim + kMlaRopeDim, kRow = kDim * 2, kValueDim = kMlaLatentDim;
constexpr int kWarps = 8, kConsumers = kWarps * 32, kThreads = kConsumers + 32;
constexpr int kHeads = 16, kTogether = 4;  // heads of a group; KV blocks that are worked on at a time
constexpr int kStage = kBlockTokens * kRow, kMaxStages = 12;
constexpr int kResultRow = kValueDim + 4;  // floats
constexpr int kValues = kValueDim / kWarps / 16;  // tiles of values of a warp
constexpr int kSteps = kDim / 16;

// Behind the ring.
struct Shared {
  float result[kHeads * kResultRow];
  uint2 probabilities[kTogether][2][32];
  float top[kTogether][kHeads];
  float sum[kTogether][kHeads];
  uint64_t full[kMaxStages], free[kMaxStages];
  uint32_t ticket;
};

__global__ __launch_bounds__(kThreads, 1) void mla_kernel(const __grid_constant__ AttentionStep step,
                                                          const __grid_constant__ AttentionArgs p,
                                                          const AttentionSplits splits, const int stages) {
  uint8_t* ring = ptx::dynamic_shared();
  Shared& shared = *reinterpret_cast<Shared*>(ring + stages * kStage);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  if (threadIdx.x == 0) {
    for (int i = 0; i < stages; ++i) {
      ptx::mbarrier_init(&shared.full[i], ptx::stage_arrivals(1));
      ptx::mbarrier_init(&shared.free[i], kWarps);
    }
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const int n_groups = (p.n_heads + kHeads - 1) / kHeads;
  RunWalk walk(step, *p.plan, p.window, n_groups, splits);
  Run run;
  int stage = 0;
  uint32_t parity = 0;
  auto advance = [&](int n) {
    stage += n;
    if (stage >= stages) stage -= stages, parity ^= 1;
  };

  if (warp == kWarps) {
    while (walk.next(run)) {
      const int64_t row = step.rows[step.token_rows[run.token]].row;
      const int32_t* table = step.blocks + row * step.blocks_per_row + run.first_block;
      for (int j0 = 0; j0 < run.n_blocks; j0 += 32) {
        const int32_t ids = j0 + lane < run.n_blocks ? __ldg(table + j0 + lane) : 0;
        for (int j = j0; j < min(run.n_blocks, j0 + 32); ++j) {
          const int32_t id = __shfl_sync(~0u, ids, j - j0);
          if (lane == 0) {
            ptx::mbarrier_wait(&shared.free[stage], parity ^ 1);
            ptx::stage_begin(&shared.full[stage], kStage);
            ptx::stage_copy(ring + stage * kStage, p.kv + id * p.block_bytes, kStage, &shared.full[stage]);
          }
          advance(1);
        }
      }
    }
    return;
  }

  const int my_block = warp % kTogether, my_tile = warp / kTogether;
  const int k_offset = kv_chunk_offset(kRow, lane % 16, lane / 16);
  const int v_offset = kv_chunk_offset(kRow, lane / 16 * 8 + lane % 8, lane / 8 % 2);
  // The same rows, 2 * pair chunks on: panels are 128 bytes wide.
  auto chunk_pair = [](int offset, int pair) { return (offset ^ (pair % 4 * 32)) + pair / 4 * (kBlockTokens * 128); };
  const float to_exponent = p.scale * 1.44269504f;
  const uint32_t base = ptx::shared_address(ring);

  while (walk.next(run)) {
    const int head0 = run.head * kHeads, n_heads = min(kHeads, p.n_heads - head0);
    uint32_t q[kSteps][2];
    {
      const bool real = my_tile * 8 + g < n_heads;
      const __nv_bfloat16* from = p.q + (int64_t(run.token) * p.n_heads + head0 + (real ? my_tile * 8 + g : 0)) * kDim + 2 * t;
#pragma unroll
      for (int m = 0; m < kSteps; ++m) {
        q[m][0] = real ? *reinterpret_cast<const uint32_t*>(from + m * 16) : 0;
        q[m][1] = real ? *reinterpret_cast<const uint32_t*>(from + m * 16 + 8) : 0;
      }
    }
    float o[2][kValues][4] = {};
    float top[2][2], sum[2] = {};  // top: of heads 2t and 2t + 1 of both tiles; sum: of this warp's keys, its tile
    top[0][0] = top[0][1] = top[1][0] = top[1][1] = -INFINITY;
    for (int j = 0; j < run.n_blocks; j += kTogether) {
      const int n = min(kTogether, run.n_blocks - j);
      int at = stage;  // of each KV block; a ring may end among them
      uint32_t at_parity = parity;
      auto place = [&](int b) {
        const int s = stage + b;
        return s >= stages ? s - stages : s;
      };
      auto seen = [&](int b, int key) {
        const int k = (run.first_block + j + b) * kBlockTokens + key;
        return k >= run.first_key && k <= run.last_key;
      };
      for (int b = 0; b < n; ++b) {
        ptx::mbarrier_wait(&shared.full[at], at_parity);
        if (++at == stages) at = 0, at_parity ^= 1;
      }
      // Scores of keys g and g + 8 for heads 2t and 2t + 1.
      float s[4][4] = {};
      if (my_block < n) {
        const uint32_t k = base + place(my_block) * kStage;
#pragma unroll
        for (int m = 0; m < kSteps; ++m) {
          uint32_t a[4];
          ptx::ldmatrix_x4(a, k + chunk_pair(k_offset, m));
          ptx::mma_bf16(s[m % 4], a, q[m][0], q[m][1]);
        }
      }
      float score[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        score[i] = my_block < n && seen(my_block, g + i / 2 * 8) ? ((s[0][i] + s[1][i]) + (s[2][i] + s[3][i])) * to_exponent : -INFINITY;
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float m = fmaxf(score[c], score[c + 2]);
#pragma unroll
        for (int d = 4; d < 32; d <<= 1) m = fmaxf(m, __shfl_xor_sync(~0u, m, d));
        if (g == 0) shared.top[my_block][my_tile * 8 + 2 * t + c] = m;
      }
      ptx::named_barrier(1, kConsumers);
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float larger = top[i][c];
#pragma unroll
          for (int b = 0; b < kTogether; ++b) larger = fmaxf(larger, shared.top[b][i * 8 + 2 * t + c]);
          const float keep = ptx::exp2_approx(top[i][c] - larger);
          top[i][c] = larger;
          if (i == my_tile) sum[c] *= keep;
#pragma unroll
          for (int m = 0; m < kValues; ++m) o[i][m][c] *= keep, o[i][m][c + 2] *= keep;
        }
      float e[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        e[i] = ptx::exp2_approx(score[i] - (my_tile ? top[1][i % 2] : top[0][i % 2]));
        sum[i % 2] += e[i];
      }
      shared.probabilities[my_block][my_tile][lane] = {ptx::movmatrix_trans(ptx::pack_bf16x2(e[0], e[1])), ptx::movmatrix_trans(ptx::pack_bf16x2(e[2], e[3]))};
      ptx::named_barrier(1, kConsumers);
      for (int b = 0; b < n; ++b) {
        const uint32_t v = base + place(b) * kStage;
        const uint2 p0 = shared.probabilities[b][0][lane], p1 = shared.probabilities[b][1][lane];
        // A value that is not seen may be NaN, and 0 * NaN is one.
        uint32_t keep[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) keep[h] = (seen(b, 8 * h + 2 * t) ? 0xffffu : 0) | (seen(b, 8 * h + 2 * t + 1) ? 0xffff0000u : 0);
#pragma unroll
        for (int m = 0; m < kValues; ++m) {
          uint32_t a[4];
          ptx::ldmatrix_x4_trans(a, v + chunk_pair(v_offset, warp * kValues + m));
          a[0] &= keep[0], a[1] &= keep[0], a[2] &= keep[1], a[3] &= keep[1];
          ptx::mma_bf16(o[0][m], a, p0.x, p0.y);
          ptx::mma_bf16(o[1][m], a, p1.x, p1.y);
        }
      }
      __syncwarp();
      if (lane == 0)
        for (int b = 0; b < n; ++b) ptx::mbarrier_arrive(&shared.free[place(b)]);
      advance(n);
    }

#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float all = sum[c];
#pragma unroll
      for (int d = 4; d < 32; d <<= 1) all += __shfl_xor_sync(~0u, all, d);
      const int head = my_tile * 8 + 2 * t + c;
      if (g == 0) shared.sum[my_block][head] = all;
      if (g == 0 && my_block == 0) shared.top[0][head] = my_tile ? top[1][c] : top[0][c];
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int m = 0; m < kValues; ++m)
#pragma unroll
        for (int k = 0; k < 4; ++k)
          shared.result[(i * 8 + 2 * t + k % 2) * kResultRow + (warp * kValues + m) * 16 + g + k / 2 * 8] = o[i][m][k];
    ptx::named_barrier(1, kConsumers);
    deliver<kHeads, kValueDim, kConsumers>(p, walk, run, head0, n_heads, n_groups, &shared.ticket, [&](int head, int quad, float& m, float& l) {
      m = shared.top[0][head];
      l = (shared.sum[0][head] + shared.sum[1][head]) + (shared.sum[2][head] + shared.sum[3][head]);
      return *reinterpret_cast<const float4*>(shared.result + head * kResultRow + quad * 4);
    });
    ptx::named_barrier(1, kConsumers);  // before the next run's numbers overwrite these
  }
}

}  // namespace

cudaError_t launch_mla(const AttentionStep& step, const AttentionArgs& args, const AttentionLaunch& launch, cudaStream_t stream) {
  const int stages = std::min(kMaxStages, (launch.shared_kb * 1024 - int(sizeof(Shared))) / kStage);
  if (stages < kTogether + 1) return cudaErrorInvalidConfiguration;
  const int bytes = stages * kStage + int(sizeof(Shared));
  if (cudaError_t error = cudaFuncSetAttribute(mla_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes); error != cudaSuccess) return error;
  return launch_kernel(mla_kernel, dim3(launch.blocks), dim3(kThreads), bytes, launch.overlap, stream, step, args, launch.splits, stages);
}

}  // namespace sluice::cuda::attend
