// Router: logits of all experts and, for larger batches, the choice.
//
//   logits[t][e] = sum_h x[t][h] Wr[e][h] (+ bias[e]);   ids, weights: moe_choose.cuh
//
// Bytes: experts * hidden * 2 (weights) + tokens * hidden * 2 (x); 0.5 MB for Qwen3-30B at one token.
// Launch: a block of 16 warps for each (16 experts, 8 tokens); the warps share K and their sums are added in a fixed order.
//   The weights are read before the wait on the previous kernel, so that launch and memory latency overlap.
//   Up to kMoeChooseInExperts tokens the blocks of the experts kernel choose for themselves, each for all tokens: that
//   saves a trip through memory. Above, the block that completes a tile of 8 tokens chooses for it, one warp a token.
#include "ops/cuda/moe_choose.cuh"
#include "ops/cuda/moe_kernels.h"

namespace sluice::cuda {
namespace {

constexpr int kWarps = 16;
constexpr int kChunk = 4;  // k32 blocks a warp has in flight

template <bool choose_here>
__global__ __launch_bounds__(kWarps * 32) void route_kernel(const __grid_constant__ MoeRouteArgs p, MoeSync* sync,
                                                            __nv_bfloat16* scaled_x, float token_factor) {
  __shared__ float partial[kWarps][16 * 8];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int expert0 = blockIdx.x * 16, token0 = blockIdx.y * 8;
  const int n_blocks = p.hidden / 32;

  // Rows past the last expert repeat it: their sums are never stored.
  const __nv_bfloat16* w0 = p.weight + int64_t(min(expert0 + g, p.n_experts - 1)) * p.hidden + 8 * t;
  const __nv_bfloat16* w1 = p.weight + int64_t(min(expert0 + g + 8, p.n_experts - 1)) * p.hidden + 8 * t;
  uint4 a0[kChunk], a1[kChunk];
  auto load_weights = [&](int first) {
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      int kb = min(first + i * kWarps, n_blocks - 1);
      a0[i] = __ldg(reinterpret_cast<const uint4*>(w0 + kb * 32));
      a1[i] = __ldg(reinterpret_cast<const uint4*>(w1 + kb * 32));
    }
  };
  load_weights(warp);
  if (n_blocks > kChunk * kWarps && warp == 0 && lane < 16 && expert0 + lane < p.n_experts) {
    const int done = kChunk * kWarps * 32;
    ptx::prefetch_l2(p.weight + int64_t(expert0 + lane) * p.hidden + done, (p.hidden - done) * 2);
  }
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();

  const int n_tokens = *p.n_tokens;
  if (token0 >= n_tokens) return;
  const bool present = token0 + g < n_tokens;
  const __nv_bfloat16* x = p.x + int64_t(token0 + (present ? g : 0)) * p.hidden + 8 * t;
  if (scaled_x && blockIdx.x == 0) {
    const int n = min(8, n_tokens - token0) * p.hidden / 2;
    const auto* from = reinterpret_cast<const uint32_t*>(p.x + int64_t(token0) * p.hidden);
    auto* to = reinterpret_cast<uint32_t*>(scaled_x + int64_t(token0) * p.hidden);
    for (int i = threadIdx.x; i < n; i += kWarps * 32)
      to[i] = ptx::pack_bf16x2(ptx::bf16_low(from[i]) * token_factor, ptx::bf16_high(from[i]) * token_factor);
  }
  float c[4] = {}, d[4] = {};
  for (int first = warp; first < n_blocks; first += kChunk * kWarps) {
    uint4 b[kChunk];
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      int kb = first + i * kWarps;
      b[i] = present && kb < n_blocks ? *reinterpret_cast<const uint4*>(x + kb * 32) : uint4{};
    }
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      uint32_t lo[4] = {a0[i].x, a1[i].x, a0[i].y, a1[i].y}, hi[4] = {a0[i].z, a1[i].z, a0[i].w, a1[i].w};
      ptx::mma_bf16(c, lo, b[i].x, b[i].y);
      ptx::mma_bf16(d, hi, b[i].z, b[i].w);
    }
    if (first + kChunk * kWarps < n_blocks) load_weights(first + kChunk * kWarps);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) partial[warp][(g + i / 2 * 8) * 8 + 2 * t + i % 2] = c[i] + d[i];
  __syncthreads();
  if (threadIdx.x < 128) {
    int e = expert0 + threadIdx.x / 8, token = token0 + threadIdx.x % 8;
    if (e < p.n_experts && token < n_tokens) {
      float v = p.bias ? p.bias[e] : 0.0f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) v += partial[w][threadIdx.x];
      p.logits[int64_t(token) * p.n_experts + e] = v;
    }
  }
  __syncthreads();
  if constexpr (!choose_here) {
    if (threadIdx.x == 0) ptx::red_release_add(&sync->routed, 1);
    return;
  }
  __shared__ bool last;
  if (threadIdx.x == 0) {
    __threadfence();
    last = gridDim.x == 1 || atomicAdd(&sync->tile_done[blockIdx.y], 1u) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (!last) return;
  if (warp < 8 && token0 + warp < n_tokens) {
    static_assert(sizeof(partial[0]) >= sizeof(moe::ChooseScratch));
    auto& scratch = reinterpret_cast<moe::ChooseScratch&>(partial[warp]);
    const moe::Chosen chosen = moe::choose_among<kMoeMaxExperts>(p, token0 + warp, scratch);
    const int width = p.top_k + p.n_shared;
    if (lane < width) {
      p.ids[int64_t(token0 + warp) * width + lane] = chosen.expert;
      p.weights[int64_t(token0 + warp) * width + lane] = chosen.weight;
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    sync->tile_done[blockIdx.y] = 0;
    ptx::red_release_add(&sync->routed, 1);
  }
}

}  // namespace

cudaError_t launch_route(const MoeRouteArgs& args, const MoeWorkspace& work, const MoeLaunch& launch,
                         float token_factor, cudaStream_t stream) {
  if (args.hidden % 32 || args.top_k > args.n_experts || args.n_groups > 32 || args.n_groups < 1 ||
      args.n_experts % args.n_groups)
    return cudaErrorInvalidValue;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3((args.n_experts + 15) / 16, (launch.max_tokens + 7) / 8);
  config.blockDim = dim3(kWarps * 32);
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = launch.overlap ? 1 : 0;
  auto kernel = moe_choose_in_experts(launch.max_tokens, args.n_experts) ? route_kernel<false> : route_kernel<true>;
  return cudaLaunchKernelEx(&config, kernel, args, work.sync,
                            token_factor == 1.0f ? nullptr : work.scaled_x, token_factor);
}

}  // namespace sluice::cuda
