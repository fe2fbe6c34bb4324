// What the card itself can do, measured in the run that is judged by it: copy, read, and one kernel that reads N bytes.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include "ops/cuda/ptx.cuh"

#define CHECK_CUDA(call)                                                                    \
  do {                                                                                      \
    cudaError_t error_ = (call);                                                            \
    if (error_ != cudaSuccess) {                                                            \
      std::printf("%s:%d %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(error_)); \
      std::exit(1);                                                                         \
    }                                                                                       \
  } while (0)

namespace sluice::bench {

__global__ __launch_bounds__(512) void copy_kernel(const uint4* from, uint4* to, size_t n) {
  for (size_t i = blockIdx.x * size_t(512 * 4) + threadIdx.x; i < n; i += size_t(gridDim.x) * 512 * 4) {
    uint4 v[4];
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (i + j * 512 < n) v[j] = __ldcs(from + i + j * 512);
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (i + j * 512 < n) __stcs(to + i + j * 512, v[j]);
  }
}

// Reads n 16-byte words. The sum is stored only if it has one certain value, so nothing is written and nothing dropped.
__global__ __launch_bounds__(512) void read_kernel(const uint4* from, uint32_t* to, size_t n) {
  uint32_t sum = 0;
  for (size_t i = blockIdx.x * size_t(512 * 8) + threadIdx.x; i < n; i += size_t(gridDim.x) * 512 * 8) {
    uint4 v[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = i + j * 512 < n ? __ldcs(from + i + j * 512) : uint4{};
#pragma unroll
    for (int j = 0; j < 8; ++j) sum += v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  if (sum == 0x12345678) *to = sum;
}

// The same through bulk copies into shared memory: one warp a multiprocessor, `stages` copies of `piece` bytes in flight.
__global__ __launch_bounds__(32) void bulk_read_kernel(const std::byte* from, uint32_t* to, size_t bytes, int piece, int stages) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ uint64_t full[64];
  namespace ptx = cuda::ptx;
  if (threadIdx.x == 0) {
    for (int i = 0; i < stages; ++i) ptx::mbarrier_init(&full[i], 1);
    ptx::fence_mbarrier_init();
  }
  __syncwarp();
  const uint64_t policy = ptx::evict_first_policy();
  size_t pieces = bytes / piece, first = pieces * blockIdx.x / gridDim.x, end = pieces * (blockIdx.x + 1) / gridDim.x;
  uint32_t parity = 0;
  if (threadIdx.x == 0) {
    auto load = [&](size_t i, int s) {
      ptx::mbarrier_arrive_expect_tx(&full[s], piece);
      ptx::bulk_load(shared + s * piece, from + i * piece, piece, &full[s], policy);
    };
    for (int s = 0; s < stages && first + s < end; ++s) load(first + s, s);
    int s = 0;
    for (size_t i = first; i < end; ++i) {
      ptx::mbarrier_wait(&full[s], parity);
      if (i + stages < end) load(i + stages, s);
      if (++s == stages) s = 0, parity ^= 1;
    }
    if (shared[0] == 1 && shared[1] == 2 && shared[2] == 3 && shared[5] == 77 && shared[9] == 33) *to = 1;
  }
}

// Median time of one of `count` steps recorded by `record`, replayed as a graph, in microseconds.
inline double graph_time(cudaStream_t stream, int count, const std::function<void(int)>& record, int replays = 25) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < count; ++i) record(i);
  CHECK_CUDA(cudaStreamEndCapture(stream, &graph));
  CHECK_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t begin, end;
  CHECK_CUDA(cudaEventCreate(&begin));
  CHECK_CUDA(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < replays + 3; ++i) {
    CHECK_CUDA(cudaEventRecord(begin, stream));
    CHECK_CUDA(cudaGraphLaunch(exec, stream));
    CHECK_CUDA(cudaEventRecord(end, stream));
    CHECK_CUDA(cudaEventSynchronize(end));
    float ms;
    CHECK_CUDA(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 3) times.push_back(ms);
  }
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  CHECK_CUDA(cudaEventDestroy(begin));
  CHECK_CUDA(cudaEventDestroy(end));
  CHECK_CUDA(cudaGraphExecDestroy(exec));
  CHECK_CUDA(cudaGraphDestroy(graph));
  return times[times.size() / 2] * 1000.0 / count;
}

struct Ceilings {
  double copy = 0, read = 0;  // bytes per microsecond = MB/s * 1e-6 ... 4.6e6 = 4.6 TB/s
  std::byte* data = nullptr;
  size_t bytes = size_t(4) << 30;
  uint32_t* sink = nullptr;
  int blocks = 132;
  cudaStream_t stream{};

  void measure() {
    CHECK_CUDA(cudaFuncSetAttribute(bulk_read_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 200 * 1024));
    size_t half = bytes / 2, n = half / 16;
    for (int per : {2, 4}) {
      double us = graph_time(stream, 2, [&](int) { copy_kernel<<<blocks * per, 512, 0, stream>>>((uint4*)data, (uint4*)(data + half), n); }, 10);
      copy = std::max(copy, 2.0 * half / us);
    }
    for (int per : {2, 3, 4}) {
      double us = graph_time(stream, 2, [&](int i) { read_kernel<<<blocks * per, 512, 0, stream>>>((uint4*)(data + i * half), sink, n); }, 10);
      std::printf("read, %d x 512 threads a multiprocessor: %.3f TB/s\n", per, half / us / 1e6);
      read = std::max(read, half / us);
    }
    for (auto [piece, kb] : {std::pair{2048, 64}, {4096, 32}, {4096, 48}, {4096, 64}, {4096, 96}, {4096, 192}, {16384, 192}}) {
      double us = graph_time(stream, 2, [&](int i) { bulk_read_kernel<<<blocks, 32, 192 * 1024, stream>>>(data + i * half, sink, half, piece, kb * 1024 / piece); }, 10);
      std::printf("bulk read, pieces of %d, %d KB a multiprocessor under way: %.3f TB/s\n", piece, kb, half / us / 1e6);
      read = std::max(read, half / us);
    }
    std::printf("ceilings: copy %.3f TB/s (read + write), read %.3f TB/s\n", copy / 1e6, read / 1e6);
  }

  // One kernel that reads `n` bytes, its launch in a graph included; the better of two kinds. Buffers rotate past L2.
  double read_once(size_t n) {
    size_t pieces = n / 4096, span = pieces * 4096;
    int places = std::max<size_t>(1, std::min<size_t>(16, bytes / span));
    double best = 1e30;
    for (int per : {2, 4})
      best = std::min(best, graph_time(stream, 16, [&](int i) { read_kernel<<<blocks * per, 512, 0, stream>>>((uint4*)(data + i % places * span), sink, span / 16); }));
    best = std::min(best, graph_time(stream, 16, [&](int i) { bulk_read_kernel<<<blocks, 32, 192 * 1024, stream>>>(data + i % places * span, sink, span, 4096, 48); }));
    return best;
  }
};

}  // namespace sluice::bench
