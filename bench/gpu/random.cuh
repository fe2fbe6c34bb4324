// Random data made on the card, and other small things that the benchmarks share.
#pragma once

#include <cuda_bf16.h>

#include <ctime>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "ceilings.cuh"

namespace sluice::bench {

__device__ inline uint64_t mix(uint64_t v) {
  v += 0x9e3779b97f4a7c15ull;
  v = (v ^ v >> 30) * 0xbf58476d1ce4e5b9ull;
  v = (v ^ v >> 27) * 0x94d049bb133111ebull;
  return v ^ v >> 31;
}
__device__ inline float2 normal_pair(uint64_t seed) {
  const uint64_t r = mix(seed);
  const float a = (uint32_t(r) + 1.0f) * 2.3283064e-10f, b = uint32_t(r >> 32) * 2.3283064e-10f;
  const float m = sqrtf(-2 * logf(fminf(a, 1.0f)));
  float s, c;
  sincospif(2 * b, &s, &c);
  return {m * c, m * s};
}
__global__ void fill_normal(__nv_bfloat16* out, size_t n, float scale, uint64_t seed) {
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < n; i += size_t(gridDim.x) * blockDim.x) out[i] = __float2bfloat16(normal_pair(seed + i).x * scale);
}
__global__ void fill_float(float* out, size_t n, float mean, float scale, uint64_t seed) {
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < n; i += size_t(gridDim.x) * blockDim.x) out[i] = mean + normal_pair(seed + i).x * scale;
}

template <class T>
T* allocate(size_t n) {
  T* p;
  CHECK_CUDA(cudaMalloc(&p, n * sizeof(T) + 256));
  return p;
}
template <class T>
T* upload(const std::vector<T>& v) {
  T* p = allocate<T>(v.size());
  CHECK_CUDA(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
  return p;
}
template <class T>
std::vector<T> download(const T* p, size_t n) {
  std::vector<T> v(n);
  CHECK_CUDA(cudaMemcpy(v.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
  return v;
}

inline std::vector<std::string> split(const std::string& s) {
  std::vector<std::string> out;
  std::stringstream in(s);
  for (std::string part; std::getline(in, part, ',');) out.push_back(part);
  return out;
}

// --name value pairs; a list option that is not given chooses everything.
struct Options {
  std::map<std::string, std::string> values;
  Options(int argc, char** argv) {
    for (int i = 1; i + 1 < argc; i += 2) values[argv[i]] = argv[i + 1];
  }
  bool has(const char* option) const { return values.count(option) != 0; }
  bool chosen(const char* option, const std::string& name) const {
    if (!has(option)) return true;
    const auto list = split(values.at(option));
    return std::find(list.begin(), list.end(), name) != list.end();
  }
};

// Names the machine, makes a stream and measures what it can do.
inline Ceilings begin_run() {
  cudaDeviceProp device;
  CHECK_CUDA(cudaGetDeviceProperties(&device, 0));
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver), cudaRuntimeGetVersion(&runtime);
  const std::time_t now = std::time(nullptr);
  char date[32];
  std::strftime(date, sizeof date, "%Y-%m-%d %H:%M UTC", std::gmtime(&now));
  std::printf("%s, %s, %d multiprocessors, L2 %d MB, CUDA driver %d, runtime %d\n", date, device.name, device.multiProcessorCount, device.l2CacheSize >> 20, driver, runtime);
  Ceilings c;
  c.blocks = device.multiProcessorCount;
  CHECK_CUDA(cudaStreamCreateWithFlags(&c.stream, cudaStreamNonBlocking));
  c.data = allocate<std::byte>(c.bytes);
  c.sink = allocate<uint32_t>(64);
  fill_normal<<<1320, 256, 0, c.stream>>>(reinterpret_cast<__nv_bfloat16*>(c.data), c.bytes / 2, 0.02f, 3);
  CHECK_CUDA(cudaStreamSynchronize(c.stream));
  c.measure();
  return c;
}

}  // namespace sluice::bench
