#include "ops/cpu/moe_route.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <stdexcept>

namespace sluice::cpu {

namespace {

using Ranks = std::array<double, kMaxExperts>;  // -inf = cannot be chosen

int best_of(const Ranks& ranks, int begin, int end) {
  return static_cast<int>(std::max_element(ranks.begin() + begin, ranks.begin() + end) - ranks.begin());
}

// Leaves only the experts of the best groups. Softmax keeps the order of the logits, so `ranks` may be those.
void keep_best_groups(const MoeSpec& spec, Ranks& ranks) {
  const int size = spec.n_experts / spec.n_groups;
  Ranks groups{};
  for (int g = 0; g < spec.n_groups; ++g) {
    const int begin = g * size, best = best_of(ranks, begin, begin + size);
    groups[static_cast<size_t>(g)] = ranks[static_cast<size_t>(best)];
    if (spec.route != RouteKind::sigmoid_bias_grouped) continue;
    double second = -INFINITY;
    for (int e = begin; e < begin + size; ++e) {
      if (e != best) second = std::max(second, ranks[static_cast<size_t>(e)]);
    }
    groups[static_cast<size_t>(g)] += second;
  }
  std::array<bool, kMaxExperts> kept{};
  for (int i = 0; i < spec.top_groups; ++i) {
    const auto best = static_cast<size_t>(best_of(groups, 0, spec.n_groups));
    kept[best] = true;
    groups[best] = -INFINITY;
  }
  for (int e = 0; e < spec.n_experts; ++e) {
    if (!kept[static_cast<size_t>(e / size)]) ranks[static_cast<size_t>(e)] = -INFINITY;
  }
}

}  // namespace

void check_moe_spec(const MoeSpec& spec) {
  const auto require = [](bool ok, const char* what) {
    if (!ok) throw std::runtime_error(std::string("mixture of experts: ") + what);
  };
  require(spec.n_experts >= 1 && spec.n_experts <= kMaxExperts, "the number of experts is outside 1 to 1024");
  require(spec.top_k >= 1 && spec.top_k <= spec.n_experts, "top-k is outside 1 to the number of experts");
  require(spec.n_groups >= 1 && spec.n_experts % spec.n_groups == 0, "the groups do not divide the experts");
  require(spec.top_groups >= 1 && spec.top_groups <= spec.n_groups, "more groups are to be kept than there are");
  require(spec.top_k <= spec.top_groups * (spec.n_experts / spec.n_groups), "the kept groups hold fewer than top-k experts");
  require(spec.route != RouteKind::sigmoid_bias_grouped || spec.n_groups == 1 || spec.n_experts / spec.n_groups >= 2,
          "a group needs two experts");
  require(spec.n_shared >= 0, "a negative number of shared experts");
}

void choose_experts(const MoeSpec& spec, const float* logits, const float* selection_bias, int32_t* ids, float* weights) {
  Ranks ranks;
  std::array<double, kMaxExperts> scores;
  const double largest = *std::max_element(logits, logits + spec.n_experts);
  double total = 0;
  for (int e = 0; e < spec.n_experts; ++e) {
    const auto i = static_cast<size_t>(e);
    const double logit = logits[e];
    if (spec.route == RouteKind::sigmoid_bias_grouped) {
      scores[i] = 1.0 / (1.0 + std::exp(-logit));
      ranks[i] = scores[i] + (selection_bias != nullptr ? static_cast<double>(selection_bias[e]) : 0.0);
    } else {
      scores[i] = std::exp(logit - largest);
      ranks[i] = logit;
    }
    total += scores[i];
  }
  if (spec.n_groups > 1) keep_best_groups(spec, ranks);

  double chosen = 0;
  std::array<bool, kMaxExperts> taken{};
  for (int k = 0; k < spec.top_k; ++k) {
    int best = -1;
    for (int e = 0; e < spec.n_experts; ++e) {
      if (!taken[static_cast<size_t>(e)] && (best < 0 || ranks[static_cast<size_t>(e)] > ranks[static_cast<size_t>(best)])) best = e;
    }
    taken[static_cast<size_t>(best)] = true;
    ids[k] = best;
    chosen += scores[static_cast<size_t>(best)];
  }
  const bool sums_to_one = spec.renormalise || spec.route == RouteKind::topk_softmax;
  const double divisor = sums_to_one ? chosen : spec.route == RouteKind::softmax_topk ? total : 1.0;
  for (int k = 0; k < spec.top_k; ++k) {
    weights[k] = static_cast<float>(scores[static_cast<size_t>(ids[k])] / divisor * static_cast<double>(spec.scale));
  }
}

}  // namespace sluice::cpu
