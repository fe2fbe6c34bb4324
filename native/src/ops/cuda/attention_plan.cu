// Divides the keys that a step's queries see among the blocks of the attention kernels.
//
//   units(t) = pieces of the keys of token t (attention_work.cuh) times head groups; before[t] = sum over earlier tokens;
//   block b of B takes the units from floor(b n / B)
//
// Bytes: 4 a token read, 4 written. Launch: one block of 1024 threads, once a step for each KV group and window.
#include "ops/cuda/attention_work.cuh"
#include "ops/cuda/launch.h"

namespace sluice::cuda {
namespace {

constexpr int kThreads = 1024;

__global__ __launch_bounds__(kThreads) void attention_plan_kernel(const __grid_constant__ AttentionStep step, int window,
                                                                  int n_groups, int grid, AttentionSplits splits,
                                                                  AttentionPlan* plan) {
  __shared__ int warp_sums[kThreads / 32];
  __shared__ int total;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const int n_tokens = step.counts->n_tokens;
  int* before = plan->before();
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  for (int base = 0; base < n_tokens; base += kThreads) {
    const int t = base + threadIdx.x;
    const int units = t < n_tokens ? key_range(step.positions[t], window, splits).n_units * n_groups : 0;
    int scan = units;
#pragma unroll
    for (int d = 1; d < 32; d <<= 1) {
      const int other = __shfl_up_sync(~0u, scan, d);
      if (lane >= d) scan += other;
    }
    if (lane == 31) warp_sums[warp] = scan;
    __syncthreads();
    int at = total + scan - units;
    for (int w = 0; w < warp; ++w) at += warp_sums[w];
    if (t < n_tokens) before[t] = at;
    __syncthreads();
    if (threadIdx.x == kThreads - 1) total = at + units;
    __syncthreads();
  }
  const int n_units = total, n_blocks = min(grid, n_units);
  if (threadIdx.x == 0) {
    plan->n_units = n_units;
    plan->n_blocks = n_blocks;
    before[n_tokens] = n_units;
  }
  for (int b = threadIdx.x; b < n_blocks; b += kThreads) {
    const int unit = start_of(b, n_units, n_blocks);
    int low = 0, high = n_tokens - 1;  // the last token that begins at or before `unit`
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (before[middle] <= unit) low = middle;
      else high = middle - 1;
    }
    const int units_a_head = key_range(step.positions[low], window, splits).n_units, inside = unit - before[low];
    plan->starts[b] = {low, inside / units_a_head, inside % units_a_head, start_of(b + 1, n_units, n_blocks) - unit};
  }
}

}  // namespace

cudaError_t attention_plan(const AttentionStep& step, int32_t window, const AttentionLaunch& launch, AttentionPlan* plan,
                           cudaStream_t stream) {
  if (!attention_supported(launch) || launch.blocks < 1 || launch.blocks > kAttentionMaxBlocks) return cudaErrorInvalidValue;
  return launch_kernel(attention_plan_kernel, dim3(1), dim3(kThreads), 0, launch.overlap, stream, step, window,
                       attention_groups(launch), launch.blocks, launch.splits, plan);
}

}  // namespace sluice::cuda
