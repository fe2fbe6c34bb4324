#include "sluice/events.h"

#include <bit>
#include <cstring>
#include <stdexcept>

namespace sluice {

const char* error_code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::deadline_exceeded: return "deadline_exceeded";
    case ErrorCode::engine_failed: return "engine_failed";
    case ErrorCode::engine_closed: return "engine_closed";
    case ErrorCode::grammar_dead_end: return "grammar_dead_end";
    case ErrorCode::grammar_mismatch: return "grammar_mismatch";
    case ErrorCode::grammar_failed: return "grammar_failed";
    case ErrorCode::invalid_logits: return "invalid_logits";
    case ErrorCode::no_token_allowed: return "no_token_allowed";
  }
  return "engine_failed";
}

size_t EventWriter::begin(EventKind kind, GenerationId id) {
  const size_t start = words_.size();
  words_.push_back(static_cast<uint32_t>(kind));
  words_.push_back(id);
  return start;
}

void EventWriter::end(size_t start) { words_[start] |= static_cast<uint32_t>(words_.size() - start) << 8; }

void EventWriter::put_float(float value) { words_.push_back(std::bit_cast<uint32_t>(value)); }

void EventWriter::accepted(GenerationId id, int32_t cached_tokens) {
  const size_t start = begin(EventKind::accepted, id);
  words_.push_back(static_cast<uint32_t>(cached_tokens));
  end(start);
}

void EventWriter::progress(GenerationId id, int32_t prefilled) {
  const size_t start = begin(EventKind::progress, id);
  words_.push_back(static_cast<uint32_t>(prefilled));
  end(start);
}

void EventWriter::tokens(GenerationId id, std::span<const Token> ids, std::span<const TokenLogprob> logprobs) {
  const size_t start = begin(EventKind::tokens, id);
  words_.push_back(static_cast<uint32_t>(ids.size()));
  words_.push_back(logprobs.empty() ? 0 : 1);
  for (const Token token : ids) words_.push_back(static_cast<uint32_t>(token));
  for (const TokenLogprob& entry : logprobs) {
    put_float(entry.logprob);
    words_.push_back(static_cast<uint32_t>(entry.top.size()));
    for (const auto& [token, logprob] : entry.top) {
      words_.push_back(static_cast<uint32_t>(token));
      put_float(logprob);
    }
  }
  end(start);
}

void EventWriter::finish(GenerationId id, FinishReason reason, const Usage& usage, const Timings& timings) {
  const size_t start = begin(EventKind::finish, id);
  words_.push_back(static_cast<uint32_t>(reason));
  words_.push_back(static_cast<uint32_t>(usage.prompt_tokens));
  words_.push_back(static_cast<uint32_t>(usage.cached_tokens));
  words_.push_back(static_cast<uint32_t>(usage.completion_tokens));
  put_float(timings.queued_ms);
  put_float(timings.prefill_ms);
  put_float(timings.decode_ms);
  put_float(timings.mask_ms);
  words_.push_back(timings.steps);
  end(start);
}

void EventWriter::error(GenerationId id, ErrorCode code, bool retryable, std::string_view message) {
  const size_t start = begin(EventKind::error, id);
  words_.push_back(static_cast<uint32_t>(code));
  words_.push_back(retryable ? 1 : 0);
  words_.push_back(static_cast<uint32_t>(message.size()));
  const size_t at = words_.size();
  words_.resize(at + (message.size() + 3) / 4, 0);
  if (!message.empty()) std::memcpy(&words_[at], message.data(), message.size());
  end(start);
}

void EventWriter::kv_change() { end(begin(EventKind::kv_change, 0)); }

namespace {

class Reader {
 public:
  explicit Reader(std::span<const uint32_t> words) : words_(words) {}
  bool done() const { return at_ == words_.size(); }
  uint32_t word() {
    if (done()) throw std::runtime_error("the event batch ends inside a record");
    return words_[at_++];
  }
  float real() { return std::bit_cast<float>(word()); }
  std::string text(size_t bytes) {
    std::string out;
    for (size_t i = 0; i < bytes; i += 4) {
      const uint32_t four = word();
      out.append(reinterpret_cast<const char*>(&four), std::min<size_t>(4, bytes - i));
    }
    return out;
  }

 private:
  std::span<const uint32_t> words_;
  size_t at_ = 0;
};

void read_tokens(Reader& reader, Event& event) {
  const uint32_t n = reader.word();
  const bool has_logprobs = reader.word() != 0;
  for (uint32_t i = 0; i < n; ++i) event.ids.push_back(static_cast<Token>(reader.word()));
  for (uint32_t i = 0; has_logprobs && i < n; ++i) {
    TokenLogprob entry;
    entry.logprob = reader.real();
    const uint32_t n_top = reader.word();
    for (uint32_t k = 0; k < n_top; ++k) {
      const auto token = static_cast<Token>(reader.word());
      entry.top.emplace_back(token, reader.real());
    }
    event.logprobs.push_back(std::move(entry));
  }
}

void read_finish(Reader& reader, Event& event) {
  event.reason = static_cast<FinishReason>(reader.word());
  event.usage.prompt_tokens = static_cast<int32_t>(reader.word());
  event.usage.cached_tokens = static_cast<int32_t>(reader.word());
  event.usage.completion_tokens = static_cast<int32_t>(reader.word());
  event.timings.queued_ms = reader.real();
  event.timings.prefill_ms = reader.real();
  event.timings.decode_ms = reader.real();
  event.timings.mask_ms = reader.real();
  event.timings.steps = reader.word();
}

}  // namespace

std::vector<Event> decode_events(std::span<const uint32_t> words) {
  std::vector<Event> events;
  Reader reader(words);
  while (!reader.done()) {
    Event event;
    event.kind = static_cast<EventKind>(reader.word() & 0xff);
    event.id = reader.word();
    switch (event.kind) {
      case EventKind::accepted:
      case EventKind::progress: event.count = reader.word(); break;
      case EventKind::tokens: read_tokens(reader, event); break;
      case EventKind::finish: read_finish(reader, event); break;
      case EventKind::error:
        event.code = static_cast<ErrorCode>(reader.word());
        event.retryable = reader.word() != 0;
        event.message = reader.text(reader.word());
        break;
      case EventKind::kv_change: break;
      default: throw std::runtime_error("unknown record in an event batch");
    }
    events.push_back(std::move(event));
  }
  return events;
}

}  // namespace sluice
