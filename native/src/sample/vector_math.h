// Passes over a vocabulary's worth of floats. Each has one body compiled for several instruction sets and chosen at run
// time; none may fuse or reorder additions, so all give the same bits.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace sluice {

// e^x for x <= 0, relative error below 2e-7 while the result is normal; 0 below -87.7. Range reduction by ln 2 in two parts and the degree-5
// polynomial of Cephes expf.
float exp_nonpositive(float x);

struct LogitScan {
  float max;
  bool has_nan;
};
LogitScan scan_logits(std::span<const float> logits);

// Logits become weights in place: e^((logit - max) * scale).
void exp_weights(std::span<float> values, float max, float scale);

// Sum of e^(logits[i] - max), added in 8 fixed lanes of double.
double exp_sum(std::span<const float> logits, float max);

// Sets what lies below `cutoff` to zero.
void zero_below(std::span<float> weights, float cutoff);

// Sums of `kSumBlock` neighbours each, in 8 fixed lanes of double; returns their total.
inline constexpr size_t kSumBlock = 512;
double block_sums(std::span<const float> weights, std::vector<double>& sums);

// How many weights fall into each bucket, and their sum. Buckets rise with the weight: the exponent and the first three
// bits of the mantissa; what is zero or below `floor` is in none. Weights lie in [0, 1].
struct WeightHistogram {
  static constexpr int kShift = 20;
  static constexpr size_t kBuckets = (0x3f800000u >> kShift) + 1;
  static size_t bucket(float weight);
  std::array<uint32_t, kBuckets> counts;
  std::array<double, kBuckets> masses;
};
void histogram(std::span<const float> weights, float floor, WeightHistogram& out);

}  // namespace sluice
