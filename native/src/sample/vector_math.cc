#include "sample/vector_math.h"

#include <algorithm>
#include <bit>
#include <limits>

namespace sluice {
namespace {

#define SLUICE_BODY inline __attribute__((always_inline))

SLUICE_BODY float exp_body(float x) {
  // Non-positive floats order like their bits turned round; compared as integers, since a branch on floats that may
  // trap would keep the loops from being vectorised.
  const auto clamped = std::bit_cast<float>(std::min(std::bit_cast<uint32_t>(x), std::bit_cast<uint32_t>(-88.0f)));
  // Conversion cuts towards zero, so this rounds a non-positive number to the nearest.
  const auto n = static_cast<int32_t>(clamped * 1.44269504088896341f - 0.5f);
  const auto whole = static_cast<float>(n);
  const float r = (clamped - whole * 0.693359375f) - whole * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // At the clamp n is -127 and the power's bits are those of zero.
  return p * std::bit_cast<float>((n + 127) << 23);
}

SLUICE_BODY LogitScan scan_body(const float* logits, size_t n) {
  constexpr size_t lanes = 16;
  float max[lanes];
  uint32_t nan[lanes] = {};
  for (float& lane : max) lane = -std::numeric_limits<float>::infinity();
  size_t at = 0;
  for (; at + lanes <= n; at += lanes) {
    for (size_t lane = 0; lane < lanes; ++lane) {
      const float x = logits[at + lane];
      max[lane] = x > max[lane] ? x : max[lane];
      nan[lane] |= static_cast<uint32_t>(x != x);
    }
  }
  for (size_t lane = 0; at < n; ++at, ++lane) {
    max[lane] = logits[at] > max[lane] ? logits[at] : max[lane];
    nan[lane] |= static_cast<uint32_t>(logits[at] != logits[at]);
  }
  LogitScan scan{.max = max[0], .has_nan = false};
  for (size_t lane = 0; lane < lanes; ++lane) {
    scan.max = max[lane] > scan.max ? max[lane] : scan.max;
    scan.has_nan |= nan[lane] != 0;
  }
  return scan;
}

SLUICE_BODY void weights_body(float* values, size_t n, float max, float scale) {
  for (size_t at = 0; at < n; ++at) values[at] = exp_body((values[at] - max) * scale);
}

template <bool exponentiate>
SLUICE_BODY double sum_body(const float* values, size_t n, float max) {
  constexpr size_t lanes = 8;
  double sums[lanes] = {};
  size_t at = 0;
  for (; at + lanes <= n; at += lanes)
    for (size_t lane = 0; lane < lanes; ++lane)
      sums[lane] += exponentiate ? exp_body(values[at + lane] - max) : values[at + lane];
  for (size_t lane = 0; at < n; ++at, ++lane) sums[lane] += exponentiate ? exp_body(values[at] - max) : values[at];
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

SLUICE_BODY void zero_body(float* weights, size_t n, float cutoff) {
  for (size_t at = 0; at < n; ++at) weights[at] = weights[at] < cutoff ? 0.0f : weights[at];
}

#undef SLUICE_BODY

struct Functions {
  LogitScan (*scan)(const float*, size_t);
  void (*weights)(float*, size_t, float, float);
  double (*exp_sum)(const float*, size_t, float);
  double (*sum)(const float*, size_t, float);
  void (*zero)(float*, size_t, float);
};

constexpr Functions kGeneric = {
    .scan = [](const float* x, size_t n) { return scan_body(x, n); },
    .weights = [](float* x, size_t n, float max, float scale) { weights_body(x, n, max, scale); },
    .exp_sum = [](const float* x, size_t n, float max) { return sum_body<true>(x, n, max); },
    .sum = [](const float* x, size_t n, float) { return sum_body<false>(x, n, 0); },
    .zero = [](float* x, size_t n, float cutoff) { zero_body(x, n, cutoff); },
};

#if defined(__x86_64__)
#define SLUICE_AVX2 __attribute__((target("avx2")))
SLUICE_AVX2 LogitScan scan_avx2(const float* x, size_t n) { return scan_body(x, n); }
SLUICE_AVX2 void weights_avx2(float* x, size_t n, float max, float scale) { weights_body(x, n, max, scale); }
SLUICE_AVX2 double exp_sum_avx2(const float* x, size_t n, float max) { return sum_body<true>(x, n, max); }
SLUICE_AVX2 double sum_avx2(const float* x, size_t n, float) { return sum_body<false>(x, n, 0); }
SLUICE_AVX2 void zero_avx2(float* x, size_t n, float cutoff) { zero_body(x, n, cutoff); }
#undef SLUICE_AVX2
#endif

Functions choose() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2"))
    return {.scan = scan_avx2, .weights = weights_avx2, .exp_sum = exp_sum_avx2, .sum = sum_avx2, .zero = zero_avx2};
#endif
  return kGeneric;
}

const Functions& functions() {
  static const Functions chosen = choose();
  return chosen;
}

}  // namespace

float exp_nonpositive(float x) { return exp_body(x); }

LogitScan scan_logits(std::span<const float> logits) { return functions().scan(logits.data(), logits.size()); }

void exp_weights(std::span<float> values, float max, float scale) {
  functions().weights(values.data(), values.size(), max, scale);
}

double exp_sum(std::span<const float> logits, float max) {
  return functions().exp_sum(logits.data(), logits.size(), max);
}

void zero_below(std::span<float> weights, float cutoff) { functions().zero(weights.data(), weights.size(), cutoff); }

double block_sums(std::span<const float> weights, std::vector<double>& sums) {
  sums.clear();
  double total = 0;
  for (size_t at = 0; at < weights.size(); at += kSumBlock) {
    const size_t n = std::min(kSumBlock, weights.size() - at);
    sums.push_back(functions().sum(weights.data() + at, n, 0));
    total += sums.back();
  }
  return total;
}

size_t WeightHistogram::bucket(float weight) { return std::bit_cast<uint32_t>(weight) >> kShift; }

void histogram(std::span<const float> weights, float floor, WeightHistogram& out) {
  out.counts.fill(0);
  out.masses.fill(0);
  for (const float weight : weights) {
    if (weight < floor || weight == 0) continue;
    const size_t at = WeightHistogram::bucket(weight);
    ++out.counts[at];
    out.masses[at] += weight;
  }
}

}  // namespace sluice
