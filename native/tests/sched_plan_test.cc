// Which rows run how many tokens.
#include <algorithm>
#include <vector>

#include "check.h"
#include "sched/planner.h"
#include "sched/step_budget.h"

using namespace sluice;

namespace {

std::vector<RowWork> plan(std::vector<RowView> rows, StepLimits limits) {
  std::vector<RowWork> work;
  plan_step(rows, limits, work);
  return work;
}

struct Expected {
  int32_t row, first_pos, n_new, n_logits;
};

void check_plan(const std::vector<RowWork>& work, const std::vector<Expected>& expected) {
  CHECK_EQ(work.size(), expected.size());
  for (size_t i = 0; i < std::min(work.size(), expected.size()); ++i) {
    CHECK_EQ(work[i].row, expected[i].row);
    CHECK_EQ(work[i].first_pos, expected[i].first_pos);
    CHECK_EQ(work[i].n_new, expected[i].n_new);
    CHECK_EQ(work[i].n_logits, expected[i].n_logits);
  }
}

// A machine whose steps take base + decode * rows + prefill * tokens milliseconds.
int32_t settled_chunk(double base, double decode, double prefill, int32_t rows, double& slowest) {
  StepBudget budget(40, 512);
  int32_t chunk = 0;
  slowest = 0;
  for (int step = 0; step < 60; ++step) {
    budget.observe(rows, 0, base + decode * rows);
    chunk = budget.prefill_tokens(rows);
    const double ms = base + decode * rows + prefill * chunk;
    if (step > 0) slowest = std::max(slowest, ms);
    budget.observe(rows, chunk, ms);
  }
  return chunk;
}

}  // namespace

TEST(decode_rows_come_first_and_prompts_share_what_is_left_in_order_of_admission) {
  check_plan(plan({{.row = 3, .computed = 0, .known = 50, .drafts = 0},
                   {.row = 1, .computed = 9, .known = 10, .drafts = 0},
                   {.row = 0, .computed = 16, .known = 40, .drafts = 0},
                   {.row = 2, .computed = 80, .known = 81, .drafts = 0}},
                  {.max_tokens = 100, .prefill_tokens = 60}),
             {{1, 9, 1, 1}, {2, 80, 1, 1}, {3, 0, 50, 1}, {0, 16, 10, 0}});
}

TEST(a_prompt_in_pieces_wants_logits_at_its_end_only) {
  check_plan(plan({{.row = 0, .computed = 0, .known = 50, .drafts = 0}}, {.max_tokens = 32, .prefill_tokens = 100}),
             {{0, 0, 32, 0}});
  check_plan(plan({{.row = 0, .computed = 32, .known = 50, .drafts = 0}}, {.max_tokens = 32, .prefill_tokens = 100}),
             {{0, 32, 18, 1}});
}

TEST(drafts_are_verified_with_a_logit_row_each_and_cut_to_the_step) {
  check_plan(plan({{.row = 0, .computed = 9, .known = 10, .drafts = 4}, {.row = 1, .computed = 5, .known = 6, .drafts = 4}},
                  {.max_tokens = 8, .prefill_tokens = 64}),
             {{0, 9, 5, 5}, {1, 5, 3, 3}});
}

TEST(a_last_prompt_token_counts_as_decode) {
  check_plan(plan({{.row = 0, .computed = 48, .known = 49, .drafts = 0}}, {.max_tokens = 8, .prefill_tokens = 0}),
             {{0, 48, 1, 1}});
}

TEST(chunks_settle_so_that_a_step_stays_below_fifty_milliseconds) {
  double slowest = 0;
  const int32_t alone = settled_chunk(8, 0.5, 1.5, 0, slowest);
  CHECK(slowest <= 50);
  CHECK(alone >= 18);
  const int32_t beside_decodes = settled_chunk(8, 0.5, 1.5, 16, slowest);
  CHECK(slowest <= 50);
  CHECK(beside_decodes >= 16 && beside_decodes <= alone);
  CHECK_EQ(settled_chunk(1, 0.01, 0.01, 4, slowest), 512);
  CHECK(slowest <= 50);
}

TEST(a_prompt_advances_even_where_decoding_alone_exceeds_the_target) {
  StepBudget budget(40, 512);
  budget.observe(16, 0, 90);
  budget.observe(16, 32, 140);
  CHECK_EQ(budget.prefill_tokens(16), StepBudget::kMinChunk);
}
