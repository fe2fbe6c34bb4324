// Mixture-of-experts layers in double precision on the host, for tests and for the checks inside benchmarks.
#pragma once

#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "ops/cuda/moe.h"

namespace sluice::cuda::reference {

inline double from_bf16(uint16_t v) {
  uint32_t b = uint32_t(v) << 16;
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
  int exponent = v >> 3 & 15, mantissa = v & 7;
  double m = exponent ? std::ldexp(1.0 + mantissa / 8.0, exponent - 7) : std::ldexp(mantissa / 8.0, -6);
  return v & 0x80 ? -m : m;
}
inline double from_e2m1(uint8_t v) {
  static const double table[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  return v & 8 ? -table[v & 7] : table[v & 7];
}
inline uint8_t to_e4m3(double v) {  // nearest, by search: test sizes are small
  uint8_t best = 0;
  for (int i = 0; i < 127; ++i)
    if (std::fabs(from_e4m3(uint8_t(i)) - std::fabs(v)) < std::fabs(from_e4m3(best) - std::fabs(v))) best = uint8_t(i);
  return v < 0 ? best | 0x80 : best;
}

// Packed experts read back as numbers: an independent statement of the layout in moe.h.
inline std::vector<float> unpack(WeightFormat format, const std::byte* packed, int rows, int cols) {
  std::vector<float> out(size_t(rows) * cols);
  const auto* unit = reinterpret_cast<const uint8_t*>(packed);
  for (int tile = 0; tile < rows / 16; ++tile)
    for (int col0 = 0; col0 < cols; col0 += 64, unit += moe_unit_bytes(format))
      for (int r = 0; r < 16; ++r)
        for (int c = 0; c < 64; ++c) {
          int g = r % 8, t = c % 32 / 8, lane = g * 4 + t, q = c / 32 * 2 + c % 8 / 4;
          int reg = r / 8 + c % 4 / 2 * 2, half = c % 2;
          double v = 0;
          if (format == WeightFormat::bf16) {
            uint16_t b;
            std::memcpy(&b, unit + q * 512 + lane * 16 + reg * 4 + half * 2, 2);
            v = from_bf16(b);
          } else if (format == WeightFormat::fp8_e4m3 || format == WeightFormat::int8) {
            int byte = (reg % 2 ? 0 : 1) + 2 * half;
            uint8_t b = unit[q / 2 * 512 + lane * 16 + (q % 2 * 2 + reg / 2) * 4 + byte];
            float s = 1;
            if (format == WeightFormat::fp8_e4m3) std::memcpy(&s, unit + 1024 + r / 8 * 4, 4);
            v = format == WeightFormat::int8 ? double(b) - 128 : from_e4m3(b) * s;
          } else {
            uint32_t w;
            std::memcpy(&w, unit + lane * 16 + q * 4, 4);
            w >>= 16 * half;
            if (format == WeightFormat::int4) {
              __half s;
              std::memcpy(&s, unit + 512 + g * 4 + r / 8 * 2, 2);
              v = (double(w >> 4 * reg & 15) - 8) * double(__half2float(s));
            } else {
              static const int sign[4] = {15, 14, 9, 13}, low_bit[4] = {6, 3, 0, 10};
              int magnitude = int(w >> low_bit[reg] & 7);
              v = from_e2m1(uint8_t((w >> sign[reg] & 1) << 3 | magnitude));
              v = std::ldexp(v, int(unit[512 + g * 4 + r / 8 * 2 + c / 32]) - 127);
            }
          }
          out[size_t(tile * 16 + r) * cols + col0 + c] = float(v);
        }
  return out;
}

struct Choice {
  std::vector<int> ids;
  std::vector<double> weights;
  double margin;  // between the last expert chosen and the first one not chosen (or a group's, if smaller)
};

inline Choice route(const std::vector<double>& logits, const MoeRouteArgs& p, const float* selection_bias) {
  const int n = p.n_experts;
  std::vector<double> score(logits), key(logits);
  Choice out;
  out.margin = 1e30;
  if (p.kind == RouteKind::sigmoid_bias_grouped) {
    for (int e = 0; e < n; ++e) {
      score[e] = 1 / (1 + std::exp(-logits[e]));
      key[e] = score[e] + (selection_bias ? selection_bias[e] : 0);
    }
    if (p.n_groups > 1) {
      int size = n / p.n_groups;
      std::vector<std::pair<double, int>> groups;
      for (int i = 0; i < p.n_groups; ++i) {
        std::vector<double> in(key.begin() + i * size, key.begin() + (i + 1) * size);
        std::sort(in.rbegin(), in.rend());
        groups.push_back({-(size > 1 ? in[0] + in[1] : in[0]), i});
      }
      std::sort(groups.begin(), groups.end());
      if (p.top_groups < p.n_groups) out.margin = groups[p.top_groups].first - groups[p.top_groups - 1].first;
      for (int i = p.top_groups; i < p.n_groups; ++i)
        for (int e = 0; e < size; ++e) key[groups[i].second * size + e] = -1e30;
    }
  }
  std::vector<int> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return key[a] > key[b]; });
  for (int k = 0; k + 1 <= p.top_k && k + 1 < n; ++k) out.margin = std::min(out.margin, key[order[k]] - key[order[k + 1]]);
  double top = *std::max_element(logits.begin(), logits.end()), all = 0, sum = 0;
  auto weight = [&](int e) { return p.kind == RouteKind::sigmoid_bias_grouped ? score[e] : std::exp(logits[e] - top); };
  for (int e = 0; e < n; ++e) all += weight(e);
  for (int k = 0; k < p.top_k; ++k) sum += weight(order[k]);
  bool divide = p.renormalise || p.kind == RouteKind::topk_softmax;
  double total = divide ? sum : p.kind == RouteKind::softmax_topk ? all : 1;
  for (int k = 0; k < p.top_k; ++k) {
    out.ids.push_back(order[k]);
    out.weights.push_back(weight(order[k]) / total * p.scale);
  }
  for (int s = 0; s < p.n_shared; ++s) out.ids.push_back(n + s), out.weights.push_back(1);
  return out;
}

// One expert for one token. gate_up in packed order (8 gate rows, 8 up rows), row-major floats; scales and biases likewise.
inline std::vector<double> expert(const std::vector<float>& gate_up, const std::vector<float>& down, const double* x,
                                  int hidden, int inter, const Activation& activation, const float* gate_up_scale,
                                  const float* down_scale, const float* gate_up_bias, const float* down_bias) {
  std::vector<double> h(inter), y(hidden);
  auto dot = [](const float* w, const double* v, int n) {
    double s = 0;
    for (int i = 0; i < n; ++i) s += double(w[i]) * v[i];
    return s;
  };
  for (int i = 0; i < inter; ++i) {
    double v[2];
    for (int part = 0; part < 2; ++part) {
      int row = i / 8 * 16 + part * 8 + i % 8;
      v[part] = dot(&gate_up[size_t(row) * hidden], x, hidden) * (gate_up_scale ? gate_up_scale[row] : 1) +
                (gate_up_bias ? gate_up_bias[row] : 0);
    }
    if (activation.kind == ActivationKind::swiglu) {
      h[i] = v[0] / (1 + std::exp(-v[0])) * v[1];
    } else {
      double gate = std::min(v[0], double(activation.limit));
      double up = std::clamp(v[1], -double(activation.limit), double(activation.limit));
      h[i] = gate / (1 + std::exp(-activation.alpha * gate)) * (up + 1);
    }
  }
  for (int r = 0; r < hidden; ++r)
    y[r] = dot(&down[size_t(r) * inter], h.data(), inter) * (down_scale ? down_scale[r] : 1) + (down_bias ? down_bias[r] : 0);
  return y;
}

}  // namespace sluice::cuda::reference
