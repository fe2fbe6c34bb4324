// The next step as a pure function of the rows: decode rows first, then prefill chunks up to a budget.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ops/step.h"

namespace sluice {

struct RowView {
  int32_t row;
  int32_t computed;  // tokens in the KV cache
  int32_t known;     // tokens of the context; known - computed >= 1 are to run
  int32_t drafts;    // proposed tokens after them, verified in the same step; only where known - computed == 1
};

struct StepLimits {
  int32_t max_tokens;      // of the whole step: what the model reserved memory for
  int32_t prefill_tokens;  // what the step's time allows
};

// `rows` in order of admission; `work` is overwritten. Every decode row runs (max_tokens >= rows); drafts are cut to what
// fits; of the prefill rows the first gets all it can use, so that first tokens come in order of admission.
void plan_step(std::span<const RowView> rows, const StepLimits& limits, std::vector<RowWork>& work);

}  // namespace sluice
