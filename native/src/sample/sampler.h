// From a row of logits to a token, on the CPU.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "sample/vector_math.h"
#include "sluice/engine.h"
#include "sluice/events.h"

namespace sluice {

// What a generation has seen, for penalties; empty and unused where none is set.
class TokenCounts {
 public:
  struct Count {
    Token token;
    int32_t in_output;  // 0 = only in the prompt
  };
  void add_prompt(std::span<const Token> tokens);
  void add_output(Token token);
  std::span<const Count> counts() const { return counts_; }

 private:
  Count& at(Token token);
  std::vector<Count> counts_;
  std::unordered_map<Token, size_t> index_;
};

bool has_penalties(const SamplingParams& params);

struct SampleInput {
  std::span<const float> logits;       // raw, one a token of the vocabulary
  std::span<const uint32_t> mask;      // bit = allowed; empty = all
  const SamplingParams& params;
  const TokenCounts& counts;
  std::span<const Token> output;       // generated so far, for banned sequences
  uint32_t position;                   // of the token to be drawn
  int32_t logprobs;                    // -1 none, else how many of the most likely
};

enum class SampleStatus : uint8_t { ok, invalid_logits, nothing_allowed };

struct SampleResult {
  SampleStatus status = SampleStatus::ok;
  Token token = -1;
  TokenLogprob logprob;  // of the raw logits: before penalties, bias, bans and mask
};

// Owns scratch memory for one row; one thread at a time. The result depends on the input alone.
class Sampler {
 public:
  explicit Sampler(int32_t vocab_size);
  SampleResult sample(const SampleInput& input);

 private:
  bool prepare(const SampleInput& input);
  void restrict_to_mask(std::span<const uint32_t> mask);
  Token draw(const SamplingParams& params, float max, double uniform);
  void filter(const SamplingParams& params);

  // The least likely token that is kept; of equal weights the one with the highest id.
  struct Cutoff {
    float weight = 0;
    Token token = std::numeric_limits<Token>::max();
    bool keeps(float other, Token id) const { return other > weight || (other == weight && id <= token); }
  };
  // The cutoff at which the kept tokens, most likely first, reach `count` in number or `mass` in weight.
  Cutoff cutoff_at(size_t count, double mass, const Cutoff& within);

  std::vector<float> logits_;  // processed, then weights: e^((logit - max) / temperature)
  WeightHistogram histogram_;
  std::vector<std::pair<float, Token>> boundary_;
  std::vector<double> sums_;
};

// log softmax of the raw logits at `token` and of the `top` most likely (ties: lower id first).
TokenLogprob token_logprob(std::span<const float> logits, Token token, int32_t top);

}  // namespace sluice
