#include "sched/step_budget.h"

#include <algorithm>
#include <cmath>

namespace sluice {
namespace {

// Slower steps count at once, faster ones gradually: a chunk too large breaks a promise, one too small costs little.
double follow(double current, double seen) {
  if (current == 0) return seen;
  return current + (seen > current ? 0.5 : 0.15) * (seen - current);
}

}  // namespace

StepBudget::StepBudget(double target_ms, int32_t max_tokens) : target_ms_(target_ms), max_tokens_(max_tokens) {}

// A decode step reads all weights once whatever its rows, so fewer rows are not assumed to be faster, more rows are
// assumed to be proportionally slower: both err to the safe side until they have been seen.
double StepBudget::decode_ms(int32_t rows) const {
  if (rows == 0 || decode_rows_ == 0) return 0;
  return decode_step_ms_ * std::max(1.0, static_cast<double>(rows) / decode_rows_);
}

int32_t StepBudget::prefill_tokens(int32_t decode_rows) const {
  const int32_t ceiling = std::min(max_tokens_, 2 * largest_chunk_);
  if (prefill_token_ms_ == 0) return std::min(ceiling, kMinChunk * 2);
  const double room = (target_ms_ - decode_ms(decode_rows)) / prefill_token_ms_;
  return std::clamp(static_cast<int32_t>(std::clamp(room, 0.0, 1e6)), std::min(kMinChunk, ceiling), ceiling);
}

void StepBudget::observe(int32_t decode_rows, int32_t prefill_tokens, double step_ms) {
  if (prefill_tokens == 0) {
    // Another number of rows starts a new estimate.
    decode_step_ms_ = decode_rows == decode_rows_ ? follow(decode_step_ms_, step_ms) : step_ms;
    decode_rows_ = decode_rows;
    return;
  }
  // The last chunk of a prompt may be a few tokens: its time is mostly the reading of weights.
  if (prefill_tokens < kMinChunk / 2 && prefill_token_ms_ > 0) return;
  const double rest = step_ms - decode_ms(decode_rows);
  const double whole = step_ms / (prefill_tokens + decode_rows);
  prefill_token_ms_ = follow(prefill_token_ms_, std::max(rest / prefill_tokens, whole / 2));
  largest_chunk_ = std::max(largest_chunk_, prefill_tokens);
}

}  // namespace sluice
