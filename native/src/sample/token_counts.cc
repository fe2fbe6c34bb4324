#include "sample/sampler.h"

namespace sluice {

TokenCounts::Count& TokenCounts::at(Token token) {
  const auto [found, inserted] = index_.try_emplace(token, counts_.size());
  if (inserted) counts_.push_back({.token = token, .in_output = 0});
  return counts_[found->second];
}

void TokenCounts::add_prompt(std::span<const Token> tokens) {
  for (const Token token : tokens) at(token);
}

void TokenCounts::add_output(Token token) { ++at(token).in_output; }

bool has_penalties(const SamplingParams& params) {
  return params.repetition_penalty != 1 || params.presence_penalty != 0 || params.frequency_penalty != 0;
}

}  // namespace sluice
