// The engine as its hosts see it (N-API addon, command line tools, tests): token ids in, packed events out.
// One engine thread owns all scheduling state; every function here may be called from any thread.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "grammar/matcher.h"
#include "model/model.h"
#include "ops/step.h"

namespace sluice {

using GenerationId = uint32_t;

struct EngineOptions {
  int32_t kv_tokens = 16384;      // rounded down to blocks of kBlockTokens
  int32_t max_rows = 16;          // generations that run at once
  int32_t max_step_tokens = 512;  // >= max_rows; steps are shortened further to meet step_target_ms
  int32_t max_queued = 256;       // generations that may wait besides max_rows
  int32_t mask_threads = 1;       // fill grammar masks while the forward pass runs
  size_t grammar_cache_bytes = size_t{256} << 20;
  // Prefill chunks are sized so that a step meets this: a cancelled row is free at the end of the running step, so a
  // step's length is how long a caller who left still holds the machine. 40 leaves room below the promised 50.
  double step_target_ms = 40;
};

// Applied in this order: penalties, bias, bans, grammar mask, temperature, top-k, top-p, min-p, draw.
struct SamplingParams {
  float temperature = 0;        // 0 = greedy: the largest logit, the lowest id on a tie
  int32_t top_k = 0;            // 0 = off
  float top_p = 1;              // 1 = off
  float min_p = 0;              // 0 = off
  float repetition_penalty = 1;  // 1 = off; prompt + output
  float presence_penalty = 0;   // output only
  float frequency_penalty = 0;  // output only
  std::vector<std::pair<Token, float>> logit_bias;
  std::vector<std::vector<Token>> banned_sequences;  // over the output only
  uint64_t seed = 0;    // with choice and position the key of each draw
  uint32_t choice = 0;
};

struct Request {
  std::vector<Token> prompt;     // at least one
  std::vector<Token> generated;  // already sent to the caller: context, output penalties, position, draws and grammar
  int32_t max_new_tokens = 1;    // to be sampled by this call; `generated` does not count
  SamplingParams sampling;
  // End the answer. Under a grammar the grammar's own stop ids end it as well, and none of these does before the grammar
  // may end: an answer that ends in `stop` is complete.
  std::vector<Token> stop_ids;
  std::string grammar;  // hash of a loaded grammar; empty = unconstrained
  int32_t logprobs = -1;  // -1 = none; 0 = the sampled token's; k <= kMaxTopLogprobs = the k most likely as well
  std::string salt;       // prefixes are shared only under an equal salt
  int32_t priority = 0;   // higher goes first
  int64_t deadline_ms = 0;  // left from now; 0 = none
};

inline constexpr int32_t kMaxTopLogprobs = 20;

enum class Refusal : uint8_t {
  none,
  queue_full,
  prompt_too_long,  // prompt + generated + max_new_tokens exceed the context
  kv_too_small,     // they exceed the whole KV cache
  grammar_missing,
  invalid_request,  // a token outside the vocabulary, an empty prompt, a parameter outside its range
  draining,
  engine_failed,
};
const char* refusal_code(Refusal refusal);

struct SubmitResult {
  GenerationId id = 0;  // 0 when refused
  Refusal refusal = Refusal::none;
  std::string message;
};

// Milliseconds in powers of two: bucket i holds values below bound(i), the last one everything above.
struct Histogram {
  static constexpr int kBuckets = 20;
  static constexpr double kFirstMs = 1.0 / 256;  // bounds from 4 microseconds to one second
  std::array<uint64_t, kBuckets> counts{};
  uint64_t count = 0;
  double total_ms = 0;
  double max_ms = 0;
  static double bound(int bucket) { return kFirstMs * static_cast<double>(int64_t{1} << bucket); }
  void add(double ms);
};

struct BlockCounts {
  int32_t total = 0;
  int32_t free = 0;    // hold nothing of use
  int32_t cached = 0;  // unused, but a prefix hit can revive them
  int32_t leased = 0;  // held by a running generation
};

struct EngineStats {
  int32_t running = 0;
  int32_t queued = 0;
  int64_t pending_prefill_tokens = 0;  // running and queued; of queued ones the whole context, hits are not known yet
  BlockCounts blocks;
  uint64_t steps = 0;
  uint64_t generated_tokens = 0;
  uint64_t prefilled_tokens = 0;
  uint64_t cached_tokens = 0;
  Histogram step_ms;
  Histogram mask_ms;
  double stalled_ms = 0;  // since the last finished step while there is work; 0 when idle
  bool healthy = true;
};

struct IntegrityReport {
  bool ok = true;
  std::string detail;  // the first fault, or the counts
};

struct KvBlockRecord {
  uint64_t key = 0;
  uint64_t parent = 0;  // 0 for a first block
  std::shared_ptr<const std::string> salt;
  std::array<Token, kBlockTokens> tokens{};
};

// `removed` applies before `stored`.
struct KvDelta {
  int64_t seq = 0;
  std::vector<KvBlockRecord> stored;  // parents before children
  std::vector<uint64_t> removed;
};

// What the engine needs to constrain answers; without `engine` every grammar is refused.
struct GrammarSupport {
  std::unique_ptr<grammar::Engine> engine;
  int32_t vocab_size = 0;        // of the tokenizer: at most the model's, whose head may be padded
  std::vector<Token> stop_ids;   // of the vocabulary
};

// Receives one packed batch a step (sluice/events.h) on the engine thread; must not block and not call the engine back.
using EventSink = std::function<void(std::span<const uint32_t> words)>;

class Engine {
 public:
  // Takes all memory now. Throws std::runtime_error when it does not fit, and on an option out of range.
  static std::unique_ptr<Engine> create(const EngineOptions& options, std::unique_ptr<Model> model,
                                        GrammarSupport grammars, EventSink sink);
  virtual ~Engine() = default;  // closes

  virtual const ModelInfo& model() const = 0;
  virtual const EngineOptions& options() const = 0;
  virtual SubmitResult submit(Request request) = 0;
  // Unknown ids are ignored. No event follows but those already on their way.
  virtual void cancel(GenerationId id) = 0;

  virtual bool has_grammar(const std::string& hash) const = 0;
  // Throws std::runtime_error on bytes that are no artifact. May take milliseconds: call it off a latency-bound thread.
  virtual void load_grammar(const std::string& hash, std::span<const std::byte> bytes) = 0;
  virtual void drop_grammar(const std::string& hash) = 0;

  virtual EngineStats stats() const = 0;
  // free + cached + leased = total, reference counts equal the leases, the prefix index is closed under parents.
  // Answered by the engine thread: waits for the running step.
  virtual IntegrityReport integrity() = 0;

  // Deltas after `seq`; nullopt when the log no longer (or never) reached there: take a snapshot.
  virtual std::optional<std::vector<KvDelta>> kv_events(int64_t seq) const = 0;
  virtual KvDelta kv_snapshot() const = 0;

  // Refuses new work and waits until all work is done; what still runs after `timeout` ends with `engine_closed`.
  virtual void drain(std::chrono::milliseconds timeout) = 0;
  // Ends what runs with `engine_closed` and joins the engine thread: at most one step. Idempotent.
  virtual void close() = 0;
};

}  // namespace sluice
