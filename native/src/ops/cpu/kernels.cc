#include "ops/cpu/kernels.h"

#include <cmath>

namespace sluice::cpu {

extern const Kernels kGeneric;
#if defined(__x86_64__)
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#endif

const Kernels& kernels(CpuIsa isa) {
#if defined(__x86_64__)
  if (isa == CpuIsa::avx512) return kAvx512;
  if (isa == CpuIsa::avx2) return kAvx2;
#endif
  (void)isa;
  return kGeneric;
}

void rmsnorm_exact(float* residual, const float* delta, const float* weight, int width, float eps, float* out) {
  double sum = 0;
  for (int i = 0; i < width; ++i) {
    if (delta != nullptr) residual[i] += delta[i];
    sum += static_cast<double>(residual[i]) * static_cast<double>(residual[i]);
  }
  const double inverse = 1.0 / std::sqrt(sum / width + static_cast<double>(eps));
  for (int i = 0; i < width; ++i) {
    out[i] = static_cast<float>(static_cast<double>(residual[i]) * inverse * static_cast<double>(weight[i]));
  }
}

void swiglu_exact(const float* gate, const float* up, int n, float* out) {
  for (int i = 0; i < n; ++i) {
    const double g = gate[i];
    out[i] = static_cast<float>(g / (1.0 + std::exp(-g)) * static_cast<double>(up[i]));
  }
}

void swiglu_clamped(const float* gate, const float* up, int n, float alpha, float limit, float* out) {
  const double a = alpha, most = limit;
  for (int i = 0; i < n; ++i) {
    const double g = std::fmin(gate[i], most), u = std::fmax(-most, std::fmin(up[i], most));
    out[i] = static_cast<float>(g / (1.0 + std::exp(-a * g)) * (u + 1.0));
  }
}

void attention_exact(const AttentionSplit& w, const float* sinks, double* scores) {
  for (int i = 0; i < w.n_q; ++i) {
    const int begin = w.key_begin[i], end = w.key_end[i];
    const double sink = sinks != nullptr ? static_cast<double>(sinks[i]) : -INFINITY;
    double largest = sink;
    for (int key = begin; key < end; ++key) {
      const auto* k = static_cast<const float*>(w.k_blocks[key / kBlockTokens]) + key % kBlockTokens;
      double s = 0;
      for (int d = 0; d < w.head_dim; ++d) s += static_cast<double>(w.q[i][d]) * static_cast<double>(k[d * kBlockTokens]);
      scores[key] = s * static_cast<double>(w.scale);
      largest = scores[key] > largest ? scores[key] : largest;
    }
    double total = std::exp(sink - largest);
    for (int key = begin; key < end; ++key) {
      scores[key] = std::exp(scores[key] - largest);
      total += scores[key];
    }
    float* out = w.out + static_cast<int64_t>(i) * w.head_dim;
    for (int c = 0; c < w.head_dim; c += 16) {
      double acc[16] = {};
      const int width = w.head_dim - c < 16 ? w.head_dim - c : 16;
      for (int key = begin; key < end; ++key) {
        const auto* v = static_cast<const float*>(w.v_blocks[key / kBlockTokens]) + (key % kBlockTokens) * w.head_dim + c;
        for (int j = 0; j < width; ++j) acc[j] += scores[key] * static_cast<double>(v[j]);
      }
      for (int j = 0; j < width; ++j) out[c + j] = static_cast<float>(acc[j] / total);
    }
    w.max[i] = static_cast<float>(largest);
    w.sum[i] = static_cast<float>(total);
  }
}

}  // namespace sluice::cpu
