#include <algorithm>
#include <cmath>
#include <vector>

#include "sample/sampler.h"
#include "sample/vector_math.h"

namespace sluice {

TokenLogprob token_logprob(std::span<const float> logits, Token token, int32_t top) {
  const float max = scan_logits(logits).max;
  const double log_total = std::log(exp_sum(logits, max)) + max;
  const auto logprob = [&](Token id) { return static_cast<float>(logits[static_cast<size_t>(id)] - log_total); };

  TokenLogprob result;
  result.logprob = logprob(token);
  if (top <= 0) return result;
  const auto better = [&](Token a, Token b) {
    const float x = logits[static_cast<size_t>(a)];
    const float y = logits[static_cast<size_t>(b)];
    return x > y || (x == y && a < b);
  };
  // A heap of the best so far with the worst of them on top: nearly every token fails its one comparison.
  std::vector<Token> best;
  const auto wanted = std::min<size_t>(static_cast<size_t>(top), logits.size());
  for (Token id = 0; id < static_cast<Token>(logits.size()); ++id) {
    if (best.size() == wanted) {
      if (!better(id, best.front())) continue;
      std::ranges::pop_heap(best, better);
      best.pop_back();
    }
    best.push_back(id);
    std::ranges::push_heap(best, better);
  }
  std::ranges::sort(best, better);
  for (const Token id : best) result.top.emplace_back(id, logprob(id));
  return result;
}

}  // namespace sluice
