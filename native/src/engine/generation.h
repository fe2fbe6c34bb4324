// One generation from submission to its last event.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/mask_worker.h"
#include "kv/kv_cache.h"
#include "sample/sampler.h"
#include "sluice/engine.h"
#include "sluice/events.h"

namespace sluice {

using Clock = std::chrono::steady_clock;

inline double milliseconds(Clock::duration duration) {
  return std::chrono::duration<double, std::milli>(duration).count();
}

struct Generation {
  GenerationId id = 0;
  Request request;             // its prompt and generated tokens live in `context`
  std::vector<Token> context;  // prompt, generated, sampled
  int32_t n_prompt = 0;
  int32_t n_generated = 0;
  int32_t n_sampled = 0;  // a stop token included
  int32_t computed = 0;   // tokens whose KV is in the cache

  int32_t row = -1;
  std::optional<KvLease> lease;
  TokenCounts counts;
  std::shared_ptr<RowGrammar> grammar;  // null = unconstrained

  Clock::time_point submitted;
  Clock::time_point deadline = Clock::time_point::max();
  Clock::time_point admitted;
  std::optional<Clock::time_point> first_token;
  uint32_t steps = 0;
  double mask_ms = 0;

  int32_t known() const { return static_cast<int32_t>(context.size()); }
  // The last token sampled is never fed back, so it needs no place in the KV cache.
  int32_t kv_capacity() const { return known() + request.max_new_tokens - 1; }
  std::span<const Token> output() const { return std::span<const Token>(context).subspan(static_cast<size_t>(n_prompt)); }
};

}  // namespace sluice
