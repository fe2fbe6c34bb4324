// From logits to tokens on the card, one launch: penalties, bias, bans, grammar mask, temperature, top-k, top-p, min-p, the
// draw, and log probabilities of the raw logits. The token is the one that sample/sampler.h draws from the same logits.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "ops/ops.h"

namespace sluice::cuda {

inline constexpr int kSampleMaxLogprobs = 20;
inline constexpr int kSampleMaxVocab = 1 << 19;

// Instead of a token.
inline constexpr Token kInvalidLogits = -1;   // NaN, or no finite number
inline constexpr Token kNothingAllowed = -2;  // bans and mask leave no token

// A token that a row has seen; each at most once in its list.
struct SeenToken {
  Token token;
  int32_t in_output;  // times; 0 = only in the prompt
};

struct SampleArgs {
  const StepCounts* counts;       // n_logits
  const float* logits;            // [n_logits][stride]
  int32_t vocab;
  int64_t stride;                 // floats from a row to the next: at least vocab, a multiple of 4
  const int32_t* logit_tokens;    // StepView's
  const int32_t* positions;
  const int32_t* token_rows;
  const RowWork* rows;
  const SamplingRow* params;      // by row id
  const uint32_t* masks;          // pool of [ceil(vocab / 32)] words, bit = allowed
  const int32_t* mask_ids;        // [n_logits], -1 = unconstrained; null = none is
  const SeenToken* seen;          // by row id, [seen_capacity] each; null = no row has penalties
  const int32_t* n_seen;          // by row id
  int32_t seen_capacity;
  const Token* bias_tokens;       // by row id, through offsets; a token at most once in a row; null = none
  const float* bias_values;
  const int32_t* bias_offsets;
  const Token* banned_tokens;     // by logit, through offsets; null = none
  const int32_t* banned_offsets;
  Token* tokens;                  // out [n_logits]
  float* logprobs;                // out [n_logits][1 + max_logprobs]: the token's, then the most likely ones'
  Token* logprob_tokens;          // out [n_logits][max_logprobs], likelier first, ties to the smaller id
  int32_t max_logprobs;           // at most kSampleMaxLogprobs; SamplingRow::n_logprobs is at most this
};

struct SampleLaunch {
  int32_t max_logits = 0;
  int32_t parts = 8;    // blocks a row, a cluster: 1, 2, 4 or 8. Changes no result
  bool overlap = true;  // programmatic dependent launch
};

cudaError_t sample(const SampleArgs& args, const SampleLaunch& launch, cudaStream_t stream);

}  // namespace sluice::cuda
