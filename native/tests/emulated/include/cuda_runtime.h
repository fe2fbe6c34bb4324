// The part of the CUDA runtime and of CUDA C++ that the kernels and their tests use, on emulator.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static thread_local
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

using emulated::blockDim, emulated::blockIdx, emulated::gridDim, emulated::threadIdx;

// --- vector types ----------------------------------------------------------------------------------------------------
struct alignas(8) uint2 { uint32_t x, y; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };
struct alignas(8) int2 { int32_t x, y; };
struct alignas(16) int4 { int32_t x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// --- warps and blocks ------------------------------------------------------------------------------------------------
inline void __syncthreads() { emulated::barrier(0, 0); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __nanosleep(unsigned) {}

namespace emulated {
// Each lane gives a value and a function from the values of all lanes to its own result.
template <class T, class R, class F>
R exchange(const char* name, uint32_t mask, T value, F from) {
  struct Operand {
    T value;
    R result;
    F* from;
  } operand{value, {}, &from};
  collective(name, mask, &operand, [](void* const operands[32], uint32_t lanes) {
    T values[32] = {};
    for (int i = 0; i < 32; ++i)
      if (lanes >> i & 1) values[i] = static_cast<Operand*>(operands[i])->value;
    for (int i = 0; i < 32; ++i)
      if (lanes >> i & 1) static_cast<Operand*>(operands[i])->result = (*static_cast<Operand*>(operands[i])->from)(values, i);
  });
  return operand.result;
}
template <class T, class F>
T shuffle(const char* name, uint32_t mask, T value, F source) {
  return exchange<T, T>(name, mask, value, [=](const T* values, int lane) {
    const int from = source(lane);
    if (from < 0 || from > 31) return values[lane];
    if (!(mask >> from & 1)) fail("a shuffle reads a lane outside of its mask");
    return values[from];
  });
}
template <class T, class F>
T reduce(const char* name, uint32_t mask, T value, F join) {
  return exchange<T, T>(name, mask, value, [=](const T* values, int lane) {
    T all = values[lane];
    for (int i = 0; i < 32; ++i)
      if ((mask >> i & 1) && i != lane) all = join(all, values[i]);
    return all;
  });
}
}  // namespace emulated

inline void __syncwarp(uint32_t mask = ~0u) {
  int nothing = 0;
  emulated::collective("__syncwarp", mask, &nothing, [](void* const*, uint32_t) {});
}
template <class T> T __shfl_sync(uint32_t mask, T v, int source, int width = 32) { return emulated::shuffle("__shfl_sync", mask, v, [=](int lane) { return lane / width * width + source % width; }); }
template <class T> T __shfl_xor_sync(uint32_t mask, T v, int bits) { return emulated::shuffle("__shfl_xor_sync", mask, v, [=](int lane) { return lane ^ bits; }); }
template <class T> T __shfl_up_sync(uint32_t mask, T v, unsigned d) { return emulated::shuffle("__shfl_up_sync", mask, v, [=](int lane) { return lane - int(d); }); }
template <class T> T __shfl_down_sync(uint32_t mask, T v, unsigned d) { return emulated::shuffle("__shfl_down_sync", mask, v, [=](int lane) { return lane + int(d); }); }
inline uint32_t __ballot_sync(uint32_t mask, int predicate) {
  return emulated::exchange<bool, uint32_t>("__ballot_sync", mask, predicate != 0, [](const bool* votes, int) {
    uint32_t all = 0;
    for (int i = 0; i < 32; ++i) all |= uint32_t(votes[i]) << i;
    return all;
  });
}
inline int __any_sync(uint32_t mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(uint32_t mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }
inline uint32_t __activemask() { return ~0u; }
template <class T> T __reduce_max_sync(uint32_t mask, T v) { return emulated::reduce("__reduce_max_sync", mask, v, [](T a, T b) { return a > b ? a : b; }); }
template <class T> T __reduce_min_sync(uint32_t mask, T v) { return emulated::reduce("__reduce_min_sync", mask, v, [](T a, T b) { return a < b ? a : b; }); }
template <class T> T __reduce_add_sync(uint32_t mask, T v) { return emulated::reduce("__reduce_add_sync", mask, v, [](T a, T b) { return T(a + b); }); }
inline int __syncthreads_or(int predicate) {
  // Two barriers round a flag of the block.
  static thread_local int any;
  __syncthreads();
  any = 0;
  __syncthreads();
  any |= predicate != 0;
  __syncthreads();
  return any;
}

// --- memory ----------------------------------------------------------------------------------------------------------
template <class T> T __ldg(const T* p) { return *p; }
template <class T> T __ldcg(const T* p) { return *p; }
template <class T> T __ldcs(const T* p) { return *p; }
template <class T> void __stcg(T* p, T v) { *p = v; }
template <class T> void __stcs(T* p, T v) { *p = v; }
template <class T, class V> T atomicAdd(T* p, V v) { T old = *p; *p = T(old + T(v)); return old; }
template <class T, class V> T atomicOr(T* p, V v) { T old = *p; *p = T(old | T(v)); return old; }
template <class T, class V> T atomicMax(T* p, V v) { T old = *p; *p = std::max(old, T(v)); return old; }
template <class T, class V> T atomicMin(T* p, V v) { T old = *p; *p = std::min(old, T(v)); return old; }
template <class T, class V> T atomicExch(T* p, V v) { T old = *p; *p = T(v); return old; }

// --- arithmetic ------------------------------------------------------------------------------------------------------
namespace emulated {
template <class To, class From> To bits(From v) { To to; static_assert(sizeof to == sizeof v); std::memcpy(&to, &v, sizeof v); return to; }
}
inline uint32_t __float_as_uint(float v) { return emulated::bits<uint32_t>(v); }
inline int32_t __float_as_int(float v) { return emulated::bits<int32_t>(v); }
inline float __uint_as_float(uint32_t v) { return emulated::bits<float>(v); }
inline float __int_as_float(int32_t v) { return emulated::bits<float>(v); }
inline double __longlong_as_double(int64_t v) { return emulated::bits<double>(v); }
inline int __popc(uint32_t v) { return __builtin_popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __clz(int v) { return v ? __builtin_clz(unsigned(v)) : 32; }
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t both = uint64_t(b) << 32 | a;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) out |= uint32_t(both >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
  return out;
}
inline float __expf(float v) { return std::exp(v); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline int __float2int_rn(float v) { return int(std::nearbyint(v)); }
inline float rsqrtf(float v) { return 1.0f / std::sqrt(v); }
inline float __frcp_rn(float v) { return 1.0f / v; }
template <class A, class B> auto min(A a, B b) -> std::common_type_t<A, B> { using T = std::common_type_t<A, B>; return T(b) < T(a) ? T(b) : T(a); }
template <class A, class B> auto max(A a, B b) -> std::common_type_t<A, B> { using T = std::common_type_t<A, B>; return T(a) < T(b) ? T(b) : T(a); }

// --- host ------------------------------------------------------------------------------------------------------------
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorInvalidConfiguration, cudaErrorMemoryAllocation, cudaErrorNotSupported };
inline const char* cudaGetErrorString(cudaError_t e) { return e == cudaSuccess ? "no error" : "an error"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

namespace emulated {
struct Graph { std::vector<std::function<void()>> launches; };
struct Stream { Graph* capturing = nullptr; };
}
using cudaStream_t = emulated::Stream*;
using cudaGraph_t = emulated::Graph*;
using cudaGraphExec_t = emulated::Graph*;
enum { cudaStreamNonBlocking = 1, cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice, cudaMemcpyDefault };
enum { cudaFuncAttributeMaxDynamicSharedMemorySize = 8, cudaFuncAttributeNonPortableClusterSizeAllowed };
enum { cudaStreamCaptureModeThreadLocal = 1 };
enum { cudaLaunchAttributeProgrammaticStreamSerialization = 6, cudaLaunchAttributeClusterDimension = 4 };

struct cudaDeviceProp {
  char name[256] = "the CPU, emulating";
  int multiProcessorCount = 6;
  int l2CacheSize = 1 << 20;
  int major = 9, minor = 0;
};
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) { *p = {}; return cudaSuccess; }
// Fresh memory is all ones: NaN as any float, and never a count that looks right.
template <class T> cudaError_t cudaMalloc(T** p, size_t n) { *p = static_cast<T*>(std::aligned_alloc(256, (n + 255) / 256 * 256)); if (*p) std::memset(static_cast<void*>(*p), 0xff, n); return *p ? cudaSuccess : cudaErrorMemoryAllocation; }
inline cudaError_t cudaFree(void* p) { std::free(p); return cudaSuccess; }
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t n, int) { if (n) std::memcpy(to, from, n); return cudaSuccess; }
inline cudaError_t cudaMemset(void* to, int v, size_t n) { if (n) std::memset(to, v, n); return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* to, int v, size_t n, cudaStream_t) { return cudaMemset(to, v, n); }
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, int) { static emulated::Stream stream; *s = &stream; return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaStreamBeginCapture(cudaStream_t s, int) { s->capturing = new emulated::Graph; return cudaSuccess; }
inline cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* g) { *g = s->capturing; s->capturing = nullptr; return cudaSuccess; }
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* e, cudaGraph_t g, int) { *e = new emulated::Graph(*g); return cudaSuccess; }
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t) { for (auto& launch : e->launches) launch(); return cudaSuccess; }
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e) { delete e; return cudaSuccess; }
inline cudaError_t cudaGraphDestroy(cudaGraph_t g) { delete g; return cudaSuccess; }
template <class F> cudaError_t cudaFuncSetAttribute(F, int, int) { return cudaSuccess; }

struct cudaLaunchAttribute {
  int id;
  struct {
    int programmaticStreamSerializationAllowed;
    struct { unsigned x, y, z; } clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A&&... arguments) {
  emulated::Launch launch;
  launch.grid = {config->gridDim.x, config->gridDim.y, config->gridDim.z};
  launch.block = {config->blockDim.x, config->blockDim.y, config->blockDim.z};
  launch.shared_bytes = config->dynamicSmemBytes;
  for (unsigned i = 0; i < config->numAttrs; ++i)
    if (config->attrs[i].id == cudaLaunchAttributeClusterDimension) launch.cluster = config->attrs[i].val.clusterDim.x;
  std::tuple<std::decay_t<P>...> values(static_cast<P>(arguments)...);
  auto go = [=] { emulated::run(launch, [&] { std::apply(kernel, values); }); };
  if (config->stream && config->stream->capturing) config->stream->capturing->launches.push_back(go);
  else go();
  return cudaSuccess;
}
