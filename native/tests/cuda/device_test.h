// What the device tests share: memory that starts as garbage, random numbers, and the count of failures.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#define CHECK_CUDA(call)                                                                    \
  do {                                                                                      \
    cudaError_t error_ = (call);                                                            \
    if (error_ != cudaSuccess) {                                                            \
      std::printf("%s:%d %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(error_)); \
      std::exit(1);                                                                         \
    }                                                                                       \
  } while (0)

namespace sluice::device_test {

template <class T>
struct Buffer {
  T* p = nullptr;
  size_t n = 0;
  Buffer() = default;
  explicit Buffer(size_t count) : n(count) {
    CHECK_CUDA(cudaMalloc(&p, n * sizeof(T) + 16));
    poison();
  }
  explicit Buffer(const std::vector<T>& v) : Buffer(v.size()) { write(v); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer(Buffer&& o) noexcept : p(std::exchange(o.p, nullptr)), n(o.n) {}
  Buffer& operator=(Buffer&& o) noexcept {
    std::swap(p, o.p);
    std::swap(n, o.n);
    return *this;
  }
  ~Buffer() { cudaFree(p); }
  // All ones: NaN as any float, and no plausible count or index.
  void poison() { CHECK_CUDA(cudaMemset(p, 0xff, n * sizeof(T))); }
  void zero() { CHECK_CUDA(cudaMemset(p, 0, n * sizeof(T))); }
  void write(const std::vector<T>& v) { CHECK_CUDA(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice)); }
  std::vector<T> read() const {
    std::vector<T> v(n);
    CHECK_CUDA(cudaMemcpy(v.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
    return v;
  }
};

inline int passes = 0, failures = 0;
inline void expect(bool good, const std::string& what) {
  ++(good ? passes : failures);
  if (!good) std::printf("FAILED %s\n", what.c_str());
}
inline int finish() {
  std::printf("%d checks held, %d did not\n", passes, failures);
  // A program is one test.
  std::printf("%d passed, %d failed\n", failures == 0, failures != 0);
  return failures != 0;
}

inline std::mt19937_64 rng;
inline double normal() {
  static std::normal_distribution<double> d;
  return d(rng);
}

inline float from_bf16(uint16_t v) {
  const uint32_t b = uint32_t(v) << 16;
  float f;
  std::memcpy(&f, &b, 4);
  return f;
}
inline uint16_t to_bf16(float f) {
  uint32_t b;
  std::memcpy(&b, &f, 4);
  return uint16_t((b + 0x7fff + (b >> 16 & 1)) >> 16);
}
inline double from_e4m3(uint8_t v) {
  const int exponent = v >> 3 & 15, mantissa = v & 7;
  const double m = exponent ? std::ldexp(1.0 + mantissa / 8.0, exponent - 7) : std::ldexp(mantissa / 8.0, -6);
  return v & 0x80 ? -m : m;
}
inline std::vector<uint16_t> normal_bf16(size_t n, double scale = 1, double mean = 0) {
  std::vector<uint16_t> v(n);
  for (auto& x : v) x = to_bf16(float(mean + scale * normal()));
  return v;
}
inline std::vector<float> normal_floats(size_t n, double scale = 1, double mean = 0) {
  std::vector<float> v(n);
  for (auto& x : v) x = float(mean + scale * normal());
  return v;
}

// ||a - b|| / ||b||; NaN never passes a bound.
struct Error {
  double difference = 0, norm = 0;
  void add(double got, double want) { difference += (got - want) * (got - want), norm += want * want; }
  double relative() const { return std::sqrt(difference / norm); }
};

// The same launches recorded once and replayed.
inline void replay(cudaStream_t stream, int times, const std::function<void()>& record) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  record();
  CHECK_CUDA(cudaStreamEndCapture(stream, &graph));
  CHECK_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  for (int i = 0; i < times; ++i) CHECK_CUDA(cudaGraphLaunch(exec, stream));
  CHECK_CUDA(cudaStreamSynchronize(stream));
  CHECK_CUDA(cudaGraphExecDestroy(exec));
  CHECK_CUDA(cudaGraphDestroy(graph));
}

}  // namespace sluice::device_test
