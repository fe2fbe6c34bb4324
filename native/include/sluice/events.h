// The packed event stream: what a step has to tell, in 32-bit words, so that it crosses to another language as one array.
//
//   record    = header id payload
//   header    = kind | words of the whole record << 8
//   accepted  : cached_tokens
//   progress  : prefilled (tokens of the context that are in the KV cache)
//   tokens    : n, has_logprobs, n ids, then with logprobs for each: logprob (f32), n_top, n_top x (id, logprob f32)
//   finish    : reason, prompt_tokens, cached_tokens, completion_tokens, queued, prefill, decode, mask (f32 ms), steps
//   error     : code, retryable, bytes of the message, the message padded to words
//   kv_change : (id 0) something changed in the KV cache
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "sluice/engine.h"

namespace sluice {

enum class EventKind : uint32_t { accepted = 1, progress, tokens, finish, error, kv_change };
enum class FinishReason : uint32_t { stop, length };

enum class ErrorCode : uint32_t {
  deadline_exceeded,
  engine_failed,       // the forward pass threw; another backend may do it
  engine_closed,       // drained or closed while it ran
  grammar_dead_end,    // the mask allows no token
  grammar_mismatch,    // `generated` does not fit the grammar
  grammar_failed,      // the matcher threw
  invalid_logits,      // the model produced NaN
  no_token_allowed,    // bans leave no token
};
const char* error_code_name(ErrorCode code);

struct TokenLogprob {
  float logprob = 0;
  std::vector<std::pair<Token, float>> top;
};

struct Usage {
  int32_t prompt_tokens = 0;
  int32_t cached_tokens = 0;
  int32_t completion_tokens = 0;  // sampled by this call, a stop token included
};

struct Timings {
  float queued_ms = 0;
  float prefill_ms = 0;
  float decode_ms = 0;
  float mask_ms = 0;
  uint32_t steps = 0;
};

// One record, unpacked: for C++ hosts.
struct Event {
  EventKind kind{};
  GenerationId id = 0;
  uint32_t count = 0;  // accepted: cached tokens; progress: prefilled
  std::vector<Token> ids;
  std::vector<TokenLogprob> logprobs;
  FinishReason reason{};
  Usage usage;
  Timings timings;
  ErrorCode code{};
  bool retryable = false;
  std::string message;
};

class EventWriter {
 public:
  void accepted(GenerationId id, int32_t cached_tokens);
  void progress(GenerationId id, int32_t prefilled);
  // `logprobs` is empty or as long as `ids`.
  void tokens(GenerationId id, std::span<const Token> ids, std::span<const TokenLogprob> logprobs);
  void finish(GenerationId id, FinishReason reason, const Usage& usage, const Timings& timings);
  void error(GenerationId id, ErrorCode code, bool retryable, std::string_view message);
  void kv_change();

  bool empty() const { return words_.empty(); }
  std::span<const uint32_t> words() const { return words_; }
  void clear() { words_.clear(); }

 private:
  size_t begin(EventKind kind, GenerationId id);
  void end(size_t start);
  void put_float(float value);
  std::vector<uint32_t> words_;
};

// Throws std::runtime_error on words that are not whole records.
std::vector<Event> decode_events(std::span<const uint32_t> words);

}  // namespace sluice
