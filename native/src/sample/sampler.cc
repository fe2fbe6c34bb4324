#include "sample/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "sample/philox.h"
#include "sample/vector_math.h"

namespace sluice {
namespace {

constexpr float kForbidden = -std::numeric_limits<float>::infinity();

// The lowest id among the largest.
Token first_of(std::span<const float> logits, float value) {
  return static_cast<Token>(std::ranges::find(logits, value) - logits.begin());
}

bool ends_with(std::span<const Token> output, std::span<const Token> suffix) {
  return output.size() >= suffix.size() && std::ranges::equal(output.last(suffix.size()), suffix);
}

}  // namespace

Sampler::Sampler(int32_t vocab_size) : logits_(static_cast<size_t>(vocab_size)) {}

// Copies the logits and applies everything before temperature. False when nothing had to be changed, so that greedy
// decoding reads the raw logits only.
bool Sampler::prepare(const SampleInput& input) {
  const SamplingParams& params = input.params;
  const bool penalties = has_penalties(params);
  if (!penalties && params.logit_bias.empty() && params.banned_sequences.empty() && input.mask.empty() &&
      params.temperature == 0)
    return false;
  std::ranges::copy(input.logits, logits_.begin());
  if (penalties) {
    for (const auto& [token, in_output] : input.counts.counts()) {
      float& logit = logits_[static_cast<size_t>(token)];
      // Keskar et al., CTRL (2019): a seen token's logit moves away from it by a factor, whatever its sign.
      logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
      if (in_output > 0)
        logit -= params.presence_penalty + params.frequency_penalty * static_cast<float>(in_output);
    }
  }
  for (const auto& [token, bias] : params.logit_bias) logits_[static_cast<size_t>(token)] += bias;
  for (const auto& sequence : params.banned_sequences) {
    const std::span<const Token> tokens(sequence);
    if (ends_with(input.output, tokens.first(tokens.size() - 1)))
      logits_[static_cast<size_t>(tokens.back())] = kForbidden;
  }
  if (!input.mask.empty()) restrict_to_mask(input.mask);
  return true;
}

void Sampler::restrict_to_mask(std::span<const uint32_t> mask) {
  for (size_t word = 0; word * 32 < logits_.size(); ++word) {
    const uint32_t allowed = mask[word];
    if (allowed == ~uint32_t{0}) continue;
    const size_t end = std::min(logits_.size(), word * 32 + 32);
    if (allowed == 0) {
      std::fill(logits_.begin() + static_cast<std::ptrdiff_t>(word * 32),
                logits_.begin() + static_cast<std::ptrdiff_t>(end), kForbidden);
      continue;
    }
    for (size_t at = word * 32; at < end; ++at)
      if ((allowed >> (at % 32) & 1) == 0) logits_[at] = kForbidden;
  }
}

SampleResult Sampler::sample(const SampleInput& input) {
  SampleResult result;
  const LogitScan raw = scan_logits(input.logits);
  if (raw.has_nan || !std::isfinite(raw.max)) {
    result.status = SampleStatus::invalid_logits;
    return result;
  }
  if (!prepare(input)) {
    result.token = first_of(input.logits, raw.max);
  } else {
    const float max = scan_logits(logits_).max;
    if (max == kForbidden) {
      result.status = SampleStatus::nothing_allowed;
      return result;
    }
    result.token = input.params.temperature == 0
                       ? first_of(logits_, max)
                       : draw(input.params, max, uniform_draw(input.params.seed, input.params.choice, input.position));
  }
  if (input.logprobs >= 0) result.logprob = token_logprob(input.logits, result.token, input.logprobs);
  return result;
}

// Inverse of the cumulative distribution in the order of ids: no sorting, whatever the filters left.
Token Sampler::draw(const SamplingParams& params, float max, double uniform) {
  exp_weights(logits_, max, 1.0f / params.temperature);
  filter(params);
  double left = uniform * block_sums(logits_, sums_);
  size_t block = 0;
  while (block + 1 < sums_.size() && left >= sums_[block]) left -= sums_[block++];
  Token last = -1;
  for (size_t at = block * kSumBlock; at < logits_.size(); ++at) {
    if (logits_[at] == 0) continue;
    last = static_cast<Token>(at);
    left -= logits_[at];
    if (left < 0) return last;
  }
  if (last >= 0) return last;
  // Rounding carried the draw past the last weight.
  return static_cast<Token>(std::find_if(logits_.rbegin(), logits_.rend(), [](float w) { return w > 0; }).base() -
                            logits_.begin() - 1);
}

// Top-k, top-p and min-p each keep an upper part of the distribution, so together they are one cutoff.
void Sampler::filter(const SamplingParams& params) {
  const auto top_k = static_cast<size_t>(params.top_k);
  const bool limits_count = top_k > 0 && top_k < logits_.size();
  if (!limits_count && params.top_p >= 1 && params.min_p == 0) return;
  Cutoff cutoff;
  if (limits_count) {
    histogram(logits_, 0, histogram_);
    cutoff = cutoff_at(top_k, std::numeric_limits<double>::infinity(), cutoff);
  }
  if (params.top_p < 1) {
    double mass = 0;
    if (limits_count) {
      for (size_t at = 0; at < logits_.size(); ++at)
        if (cutoff.keeps(logits_[at], static_cast<Token>(at))) mass += logits_[at];
    } else {
      mass = block_sums(logits_, sums_);
      // All tokens below this weight together hold less than 1 - top_p, so none of them can be needed.
      const double needed = (1.0 - params.top_p) * mass / static_cast<double>(logits_.size());
      histogram(logits_, static_cast<float>(needed * 0.999), histogram_);
    }
    // The smallest set that holds top_p of what top-k left; at least one token.
    cutoff = cutoff_at(logits_.size(), params.top_p * mass, cutoff);
  }
  // The most likely token weighs 1.
  if (params.min_p > cutoff.weight) cutoff = {.weight = params.min_p};
  zero_below(logits_, cutoff.weight);
  for (auto at = static_cast<size_t>(cutoff.token) + 1; at < logits_.size(); ++at)
    if (logits_[at] == cutoff.weight) logits_[at] = 0;
}

Sampler::Cutoff Sampler::cutoff_at(size_t count, double mass, const Cutoff& within) {
  size_t kept = 0;
  double sum = 0;
  size_t bucket = WeightHistogram::kBuckets;
  while (bucket-- > 0) {
    const size_t n = histogram_.counts[bucket];
    if (kept + n >= count || (n > 0 && sum + histogram_.masses[bucket] >= mass)) break;
    kept += n;
    sum += histogram_.masses[bucket];
  }
  if (bucket >= WeightHistogram::kBuckets) return within;  // everything is kept
  // Only the bucket that the cut runs through has to be sorted.
  boundary_.clear();
  for (size_t at = 0; at < logits_.size(); ++at)
    if (WeightHistogram::bucket(logits_[at]) == bucket && within.keeps(logits_[at], static_cast<Token>(at)))
      boundary_.emplace_back(logits_[at], static_cast<Token>(at));
  std::ranges::sort(boundary_, [](const auto& a, const auto& b) {
    return a.first > b.first || (a.first == b.first && a.second < b.second);
  });
  Cutoff cutoff = within;
  for (const auto& [weight, token] : boundary_) {
    cutoff = {.weight = weight, .token = token};
    sum += weight;
    if (++kept >= count || sum >= mass) break;
  }
  return cutoff;
}

}  // namespace sluice
