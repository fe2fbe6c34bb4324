#include "sched/planner.h"

#include <algorithm>

namespace sluice {

void plan_step(std::span<const RowView> rows, const StepLimits& limits, std::vector<RowWork>& work) {
  work.clear();
  const auto decodes = static_cast<int32_t>(
      std::ranges::count_if(rows, [](const RowView& row) { return row.known - row.computed == 1; }));
  int32_t spare = limits.max_tokens - decodes;
  for (const RowView& row : rows) {
    if (row.known - row.computed != 1) continue;
    const int32_t drafts = std::min(row.drafts, spare);
    spare -= drafts;
    work.push_back({.row = row.row, .first_pos = row.computed, .n_new = 1 + drafts, .n_logits = 1 + drafts});
  }
  int32_t budget = std::min(spare, limits.prefill_tokens);
  for (const RowView& row : rows) {
    const int32_t remaining = row.known - row.computed;
    if (remaining == 1 || budget <= 0) continue;
    const int32_t chunk = std::min(remaining, budget);
    budget -= chunk;
    work.push_back(
        {.row = row.row, .first_pos = row.computed, .n_new = chunk, .n_logits = chunk == remaining ? 1 : 0});
  }
}

}  // namespace sluice
