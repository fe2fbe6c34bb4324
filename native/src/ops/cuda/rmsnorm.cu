// Residual addition and RMSNorm.
//
//   r = residual + delta;  residual = r;  out = r / sqrt(mean(r^2) + eps) * weight
//
// Bytes a token: width * (4 + 4 + 2 + 2), read and written once; weights once a block. 64 tokens of 2048: 1.6 MB, so the
// launch and two trips to memory are what it costs.
// Launch: a block of 512 threads a token; a token stays in registers between the sum and the product.
#include "ops/cuda/launch.h"
#include "ops/cuda/layers.h"
#include "ops/cuda/ptx.cuh"

namespace sluice::cuda {
namespace {

constexpr int kThreads = 512, kQuads = kMaxNormWidth / 4 / kThreads;

__global__ __launch_bounds__(kThreads) void rmsnorm_kernel(const __grid_constant__ RmsnormArgs p) {
  __shared__ float sums[kThreads / 32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n = p.width / 4;
  float4 w[2];  // the first weights are read under the previous kernel's end: nothing changes them
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int at = i * kThreads + threadIdx.x;
    w[i] = at < n ? __ldg(reinterpret_cast<const float4*>(p.weight) + at) : float4{};
  }
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const int rows = p.gather ? p.counts->n_logits : p.counts->n_tokens;
  if (int(blockIdx.x) >= rows) return;
  const int64_t token = p.gather ? p.gather[blockIdx.x] : blockIdx.x;
  auto* residual = reinterpret_cast<float4*>(p.residual + token * p.width);
  const auto* delta = reinterpret_cast<const uint2*>(p.delta + token * p.width);
  float4 v[kQuads];
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
    const int at = i * kThreads + threadIdx.x;
    if (at >= n) break;
    v[i] = residual[at];
    if (p.delta) {
      const uint2 d = delta[at];
      v[i].x += ptx::bf16_low(d.x), v[i].y += ptx::bf16_high(d.x);
      v[i].z += ptx::bf16_low(d.y), v[i].w += ptx::bf16_high(d.y);
      residual[at] = v[i];
    }
    sum += v[i].x * v[i].x + v[i].y * v[i].y + v[i].z * v[i].z + v[i].w * v[i].w;
  }
#pragma unroll
  for (int d = 16; d; d >>= 1) sum += __shfl_xor_sync(~0u, sum, d);
  if (lane == 0) sums[warp] = sum;
  __syncthreads();
  float all = 0;
#pragma unroll
  for (int i = 0; i < kThreads / 32; ++i) all += sums[i];
  const float f = rsqrtf(all / float(p.width) + p.eps);
  auto* out = reinterpret_cast<uint2*>(p.out + int64_t(blockIdx.x) * p.width);
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
    const int at = i * kThreads + threadIdx.x;
    if (at >= n) break;
    const float4 g = i < 2 ? w[i < 2 ? i : 0] : __ldg(reinterpret_cast<const float4*>(p.weight) + at);
    out[at] = {ptx::pack_bf16x2(v[i].x * f * g.x, v[i].y * f * g.y), ptx::pack_bf16x2(v[i].z * f * g.z, v[i].w * f * g.w)};
  }
}

}  // namespace

cudaError_t rmsnorm(const RmsnormArgs& args, int max_rows, bool overlap, cudaStream_t stream) {
  if (args.width < 4 || args.width % 4 || args.width > kMaxNormWidth || max_rows < 1) return cudaErrorInvalidValue;
  return launch_kernel(rmsnorm_kernel, dim3(max_rows), dim3(kThreads), 0, overlap, stream, args);
}

}  // namespace sluice::cuda
