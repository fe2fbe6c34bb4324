// From logits to a token: order of the steps, distributions, logprobs.
#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <set>

#include "check.h"
#include "sample/philox.h"
#include "sample/sampler.h"

using namespace sluice;

namespace {

struct Case {
  std::vector<float> logits;
  SamplingParams params{};
  TokenCounts counts{};
  std::vector<Token> output{};
  std::vector<uint32_t> mask{};
  int32_t logprobs = -1;

  SampleResult at(uint32_t position) const {
    Sampler sampler(static_cast<int32_t>(logits.size()));
    return sampler.sample({.logits = logits,
                           .mask = mask,
                           .params = params,
                           .counts = counts,
                           .output = output,
                           .position = position,
                           .logprobs = logprobs});
  }
  Token token() const { return at(0).token; }
};

std::vector<float> bumpy_logits(size_t n, float spread) {
  std::mt19937 random(11);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> out(n);
  for (float& logit : out) logit = normal(random);
  return out;
}

// Probability of each token by the definition: sort, cut, renormalise, all in double.
std::vector<double> expected_distribution(const Case& c) {
  std::vector<double> weight(c.logits.size());
  for (size_t i = 0; i < weight.size(); ++i) weight[i] = std::exp(double{c.logits[i]} / c.params.temperature);
  std::vector<size_t> order(weight.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return weight[a] > weight[b]; });
  if (c.params.top_k > 0) order.resize(std::min<size_t>(order.size(), static_cast<size_t>(c.params.top_k)));
  double mass = 0;
  for (const size_t i : order) mass += weight[i];
  if (c.params.top_p < 1) {
    double sum = 0;
    size_t kept = 0;
    while (kept < order.size() && (kept == 0 || sum < c.params.top_p * mass)) sum += weight[order[kept++]];
    order.resize(kept);
  }
  std::vector<double> out(weight.size(), 0);
  double sum = 0;
  for (const size_t i : order)
    if (weight[i] >= c.params.min_p * weight[order[0]]) sum += out[i] = weight[i];
  for (double& p : out) p /= sum;
  return out;
}

// Pearson's statistic over `draws`, tokens with fewer than 5 expected pooled, as z of its normal approximation.
double chi_square_z(const Case& c, int draws) {
  const auto expected = expected_distribution(c);
  std::vector<double> seen(expected.size(), 0);
  Sampler sampler(static_cast<int32_t>(c.logits.size()));
  for (int i = 0; i < draws; ++i) {
    const auto token = sampler.sample({.logits = c.logits, .mask = c.mask, .params = c.params, .counts = c.counts,
                                       .output = c.output, .position = static_cast<uint32_t>(i), .logprobs = -1}).token;
    ++seen[static_cast<size_t>(token)];
  }
  double statistic = 0, pooled_seen = 0, pooled_expected = 0;
  int cells = 0;
  for (size_t i = 0; i < seen.size(); ++i) {
    const double wanted = expected[i] * draws;
    if (wanted == 0 && seen[i] > 0) return std::numeric_limits<double>::infinity();
    if (wanted < 5) {
      pooled_seen += seen[i];
      pooled_expected += wanted;
      continue;
    }
    statistic += (seen[i] - wanted) * (seen[i] - wanted) / wanted;
    ++cells;
  }
  if (pooled_expected > 0) {
    statistic += (pooled_seen - pooled_expected) * (pooled_seen - pooled_expected) / pooled_expected;
    ++cells;
  }
  const double freedom = cells - 1;
  return freedom == 0 ? 0 : (statistic - freedom) / std::sqrt(2 * freedom);
}

std::vector<uint32_t> mask_of(size_t n, std::initializer_list<Token> allowed) {
  std::vector<uint32_t> mask((n + 31) / 32, 0);
  for (const Token token : allowed) mask[static_cast<size_t>(token) / 32] |= uint32_t{1} << (token % 32);
  return mask;
}

}  // namespace

TEST(the_generator_gives_the_published_values) {
  // Known answers of the Random123 distribution.
  CHECK((philox4x32({0, 0, 0, 0}, {0, 0}) == std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr uint32_t ones = 0xffffffff;
  CHECK((philox4x32({ones, ones, ones, ones}, {ones, ones}) ==
         std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  CHECK(uniform_draw(1, 0, 5) != uniform_draw(1, 1, 5));
  CHECK(uniform_draw(1, 0, 5) != uniform_draw(2, 0, 5));
  CHECK_EQ(uniform_draw(1, 0, 5), uniform_draw(1, 0, 5));
}

TEST(greedy_takes_the_lowest_id_among_equals) {
  Case c{.logits = bumpy_logits(100, 1)};
  c.logits[70] = c.logits[31] = c.logits[32] = 9;
  CHECK_EQ(c.token(), 31);
  c.mask = mask_of(100, {70, 32, 5});
  CHECK_EQ(c.token(), 32);
}

TEST(draws_follow_the_distribution) {
  for (const float temperature : {0.5f, 1.0f, 1.7f}) {
    Case c{.logits = bumpy_logits(200, 2)};
    c.params.temperature = temperature;
    c.params.seed = 5;
    CHECK(std::fabs(chi_square_z(c, 100000)) < 4);
    c.params.top_k = 20;
    CHECK(std::fabs(chi_square_z(c, 100000)) < 4);
    c.params.top_p = 0.8f;
    CHECK(std::fabs(chi_square_z(c, 100000)) < 4);
    c.params.top_k = 0;
    CHECK(std::fabs(chi_square_z(c, 100000)) < 4);
    c.params.min_p = 0.2f;
    CHECK(std::fabs(chi_square_z(c, 100000)) < 4);
    c.params.top_p = 1;
    CHECK(std::fabs(chi_square_z(c, 100000)) < 4);
    c.params.min_p = 1e-4f;
    CHECK(std::fabs(chi_square_z(c, 100000)) < 4);
  }
}

TEST(a_flat_distribution_is_cut_exactly) {
  Case c{.logits = std::vector<float>(64, 0.0f)};
  c.params.temperature = 1;
  c.params.top_k = 5;
  std::set<Token> seen;
  for (uint32_t i = 0; i < 500; ++i) seen.insert(c.at(i).token);
  CHECK((seen == std::set<Token>{0, 1, 2, 3, 4}));
  c.params.top_k = 0;
  c.params.top_p = 0.125f;
  seen.clear();
  for (uint32_t i = 0; i < 800; ++i) seen.insert(c.at(i).token);
  CHECK((seen == std::set<Token>{0, 1, 2, 3, 4, 5, 6, 7}));
  c.params.top_p = 0;
  CHECK_EQ(c.token(), 0);
}

TEST(a_draw_depends_on_seed_choice_and_position_only) {
  Case c{.logits = bumpy_logits(300, 1)};
  c.params.temperature = 1;
  c.params.seed = 123;
  const Token once = c.at(17).token;
  CHECK_EQ(c.at(17).token, once);
  int differ = 0;
  for (uint32_t choice = 1; choice < 20; ++choice) {
    c.params.choice = choice;
    differ += c.at(17).token != once ? 1 : 0;
  }
  CHECK(differ > 10);
}

TEST(repetition_counts_the_prompt_and_the_other_penalties_the_output_only) {
  Case c{.logits = {0, 4.0f, 3.9f, -1, -1, 0, 0, 0}};
  c.counts.add_prompt(std::vector<Token>{1});
  c.params.presence_penalty = 1;
  CHECK_EQ(c.token(), 1);
  c.params.repetition_penalty = 1.1f;
  CHECK_EQ(c.token(), 2);
  c.counts.add_output(2);
  CHECK_EQ(c.token(), 1);
  // A negative logit of a seen token gets smaller, not larger.
  Case negative{.logits = {-1.0f, -1.05f}};
  negative.counts.add_prompt(std::vector<Token>{0});
  negative.params.repetition_penalty = 1.2f;
  CHECK_EQ(negative.token(), 1);
}

TEST(frequency_grows_with_each_occurrence) {
  Case c{.logits = {2.0f, 1.0f}};
  c.params.frequency_penalty = 0.4f;
  c.counts.add_output(0);
  c.counts.add_output(0);
  CHECK_EQ(c.token(), 0);
  c.counts.add_output(0);
  CHECK_EQ(c.token(), 1);
}

TEST(bias_comes_before_the_mask_and_bans_beat_bias) {
  Case c{.logits = std::vector<float>(40, 0.0f)};
  c.params.logit_bias = {{7, 100.0f}, {9, 50.0f}};
  CHECK_EQ(c.token(), 7);
  c.mask = mask_of(40, {9, 3});
  CHECK_EQ(c.token(), 9);
  c.params.banned_sequences = {{9}};
  CHECK_EQ(c.token(), 3);
}

TEST(the_last_token_of_a_banned_sequence_is_banned_where_the_rest_was_produced) {
  Case c{.logits = {0, 1, 5, 2}};
  c.params.banned_sequences = {{1, 3, 2}};
  c.output = {1, 3};
  CHECK_EQ(c.token(), 3);
  c.output = {3, 1};
  CHECK_EQ(c.token(), 2);
  c.output = {};
  CHECK_EQ(c.token(), 2);
}

TEST(sampling_never_leaves_the_mask) {
  Case c{.logits = bumpy_logits(500, 3)};
  c.params.temperature = 2;
  c.mask = mask_of(500, {3, 31, 32, 63, 64, 499});
  std::set<Token> seen;
  for (uint32_t i = 0; i < 3000; ++i) seen.insert(c.at(i).token);
  CHECK((seen == std::set<Token>{3, 31, 32, 63, 64, 499}));
}

TEST(an_empty_mask_never_reaches_the_softmax) {
  Case c{.logits = bumpy_logits(64, 1)};
  c.mask = mask_of(64, {});
  CHECK(c.at(0).status == SampleStatus::nothing_allowed);
  c.params.temperature = 1;
  CHECK(c.at(0).status == SampleStatus::nothing_allowed);
  c.mask = mask_of(64, {4});
  c.params.banned_sequences = {{4}};
  CHECK(c.at(0).status == SampleStatus::nothing_allowed);
}

TEST(logits_that_are_not_numbers_are_reported) {
  for (const size_t at : {size_t{0}, size_t{37}, size_t{99}}) {
    Case c{.logits = bumpy_logits(100, 1)};
    c.logits[at] = std::nanf("");
    CHECK(c.at(0).status == SampleStatus::invalid_logits);
    c.logits[at] = INFINITY;
    CHECK(c.at(0).status == SampleStatus::invalid_logits);
  }
}

TEST(logprobs_come_from_the_raw_logits) {
  Case c{.logits = bumpy_logits(1000, 2)};
  c.logprobs = 5;
  c.params.temperature = 0.3f;
  c.params.logit_bias = {{123, 100.0f}};
  c.mask = mask_of(1000, {123, 5});
  const auto result = c.at(0);
  CHECK_EQ(result.token, 123);
  double total = 0;
  for (const float logit : c.logits) total += std::exp(double{logit});
  CHECK_NEAR(result.logprob.logprob, c.logits[123] - std::log(total), 1e-5);
  CHECK_EQ(result.logprob.top.size(), size_t{5});
  std::vector<float> sorted = c.logits;
  std::ranges::sort(sorted, std::greater{});
  for (size_t i = 0; i < 5; ++i) CHECK_NEAR(result.logprob.top[i].second, sorted[i] - std::log(total), 1e-5);
  c.logprobs = 0;
  CHECK(c.at(0).logprob.top.empty());
}

TEST(a_tiny_temperature_is_greedy_without_overflow) {
  Case c{.logits = bumpy_logits(100, 1)};
  const Token greedy = c.token();
  c.params.temperature = 1e-5f;
  for (uint32_t i = 0; i < 20; ++i) CHECK_EQ(c.at(i).token, greedy);
}
