// How many prefill tokens fit into a step of a given time, learned from the steps themselves.
#pragma once

#include <cstdint>

namespace sluice {

class StepBudget {
 public:
  // `target_ms`: how long a step may take; `max_tokens`: what the model reserved memory for.
  StepBudget(double target_ms, int32_t max_tokens);

  // At least kMinChunk, so that a prompt always advances, and at most twice the largest chunk run so far, so that a slow
  // machine is found out by small steps.
  int32_t prefill_tokens(int32_t decode_rows) const;
  void observe(int32_t decode_rows, int32_t prefill_tokens, double step_ms);

  static constexpr int32_t kMinChunk = 16;

 private:
  double decode_ms(int32_t rows) const;

  double target_ms_;
  int32_t max_tokens_;
  double decode_step_ms_ = 0;  // of pure decode steps with decode_rows_ rows
  int32_t decode_rows_ = 0;
  double prefill_token_ms_ = 0;  // 0 = not seen yet
  int32_t largest_chunk_ = kMinChunk;
};

}  // namespace sluice
