// A deterministic model without weights, a grammar engine without a compiler, and a sink that tests can wait on.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "sluice/engine.h"
#include "sluice/events.h"

namespace support {

using namespace sluice;

inline constexpr int32_t kVocab = 97;
inline constexpr Token kStop = 1;
inline constexpr Token kPoison = 96;  // a context that holds it has logits that are not numbers

// Its KV cache holds the tokens themselves with their positions, and its logits are a hash of all of a row's tokens, read
// back through the block tables: a wrong table, a block given to two rows or a prefix not really shared changes the answer.
class FakeModel final : public Model {
 public:
  struct Hooks {
    std::function<void(const StepPlan&)> before_step;  // on the engine thread; may throw
  };
  explicit FakeModel(Hooks hooks = {}, KvGroupKind kind = KvGroupKind::full) : hooks_(std::move(hooks)) {
    info_.name = "fake";
    info_.architecture = "fake";
    info_.vocab_size = kVocab;
    info_.context_length = 2048;
    info_.kv_groups = {{.kind = kind, .n_layers = 1, .window = 0, .bytes_per_block = 128}};
  }
  const ModelInfo& info() const override { return info_; }
  void reserve(int32_t n_blocks, int32_t, int32_t, int32_t) override {
    slots_.assign(static_cast<size_t>(n_blocks) * kBlockTokens, {});
  }
  void forward(const StepPlan& plan, const BlockTables& tables, std::span<float> logits) override {
    if (hooks_.before_step) hooks_.before_step(plan);
    const auto& group = tables.groups[0];
    const auto slot = [&](int32_t row, int32_t pos) -> Slot& {
      const int32_t block = group.blocks[row * group.blocks_per_row + pos / kBlockTokens];
      return slots_[static_cast<size_t>(block) * kBlockTokens + static_cast<size_t>(pos % kBlockTokens)];
    };
    size_t at = 0;
    size_t logit_row = 0;
    for (const RowWork& work : plan.rows) {
      for (int32_t i = 0; i < work.n_new; ++i) {
        const int32_t pos = work.first_pos + i;
        slot(work.row, pos) = {.token = plan.tokens[at++], .pos = pos};
        if (i < work.n_new - work.n_logits) continue;
        write_logits(work.row, pos, slot, logits.subspan(logit_row++ * kVocab, kVocab));
      }
    }
  }

 private:
  struct Slot {
    Token token = -7;
    int32_t pos = -1;
  };
  template <typename SlotOf>
  static void write_logits(int32_t row, int32_t last, const SlotOf& slot, std::span<float> logits) {
    uint64_t hash = 14695981039346656037ULL;
    bool poisoned = false;
    for (int32_t pos = 0; pos <= last; ++pos) {
      const Slot& seen = slot(row, pos);
      poisoned |= seen.token == kPoison;
      hash = (hash ^ static_cast<uint64_t>(static_cast<int64_t>(seen.token) * 4096 + seen.pos)) * 1099511628211ULL;
      hash ^= hash >> 29;
    }
    for (int32_t token = 0; token < kVocab; ++token) {
      uint64_t mixed = (hash + static_cast<uint64_t>(token) * 0x9e3779b97f4a7c15ULL) * 0xbf58476d1ce4e5b9ULL;
      mixed ^= mixed >> 31;
      logits[static_cast<size_t>(token)] = static_cast<float>(mixed % 8192) / 1024.0f - 4.0f;
      // The stop token comes up only where a test asks for it, so that answers have known lengths.
      if (token == kStop || token == kPoison) logits[static_cast<size_t>(token)] = -40.0f;
      if (poisoned) logits[static_cast<size_t>(token)] = std::numeric_limits<float>::quiet_NaN();
    }
  }

  Hooks hooks_;
  ModelInfo info_;
  std::vector<Slot> slots_;
};

struct Answer {
  std::vector<Token> tokens;
  std::vector<TokenLogprob> logprobs;
  std::vector<uint32_t> progress;
  uint32_t cached = 0;
  bool accepted = false;
  bool ended = false;
  FinishReason reason{};
  Usage usage;
  std::string error;  // code; empty when finished well
  bool retryable = false;
};

class Sink {
 public:
  EventSink sink() {
    return [this](std::span<const uint32_t> words) {
      const std::lock_guard lock(mutex_);
      for (const Event& event : decode_events(words)) apply(event);
      changed_.notify_all();
    };
  }
  Answer wait(GenerationId id) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return answers_[id].ended; });
    return answers_[id];
  }
  void wait_tokens(GenerationId id, size_t n) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return answers_[id].ended || answers_[id].tokens.size() >= n; });
  }
  Answer now(GenerationId id) {
    const std::lock_guard lock(mutex_);
    return answers_[id];
  }
  std::vector<GenerationId> end_order() {
    const std::lock_guard lock(mutex_);
    return end_order_;
  }

 private:
  void apply(const Event& event) {
    Answer& answer = answers_[event.id];
    switch (event.kind) {
      case EventKind::accepted:
        answer.accepted = true;
        answer.cached = event.count;
        break;
      case EventKind::progress: answer.progress.push_back(event.count); break;
      case EventKind::tokens:
        answer.tokens.insert(answer.tokens.end(), event.ids.begin(), event.ids.end());
        answer.logprobs.insert(answer.logprobs.end(), event.logprobs.begin(), event.logprobs.end());
        break;
      case EventKind::finish:
        answer.reason = event.reason;
        answer.usage = event.usage;
        answer.ended = true;
        end_order_.push_back(event.id);
        break;
      case EventKind::error:
        answer.error = error_code_name(event.code);
        answer.retryable = event.retryable;
        answer.ended = true;
        end_order_.push_back(event.id);
        break;
      case EventKind::kv_change: break;
    }
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<GenerationId, Answer> answers_;
  std::vector<GenerationId> end_order_;
};

// Grammar bytes are text: one set of token ids a step ("5|6 7 * -"): `*` allows all, `-` none; after the last the stop id.
class FakeMatcher final : public grammar::Matcher {
 public:
  explicit FakeMatcher(const std::vector<std::string>& steps) : steps_(steps) {}
  bool accept(int32_t token) override {
    if (ended_ || !allows(token)) return false;
    if (at_ == steps_.size()) ended_ = true;
    else ++at_;
    return true;
  }
  bool fill_mask(std::span<uint32_t> mask) override {
    if (!ended_ && at_ < steps_.size() && steps_[at_] == "*") return false;
    std::ranges::fill(mask, 0);
    for (Token token = 0; token < kVocab; ++token)
      if (!ended_ && allows(token)) mask[static_cast<size_t>(token) / 32] |= uint32_t{1} << (token % 32);
    return true;
  }
  bool terminated() const override { return ended_; }
  bool completed() override { return at_ == steps_.size(); }
  void rollback(int n) override { at_ -= static_cast<size_t>(n); }
  std::unique_ptr<Matcher> fork() const override { return std::make_unique<FakeMatcher>(*this); }

 private:
  bool allows(Token token) const {
    if (at_ == steps_.size()) return token == kStop;
    if (steps_[at_] == "*") return true;
    std::istringstream ids(steps_[at_]);
    for (std::string id; std::getline(ids, id, '|');)
      if (id != "-" && std::stoi(id) == token) return true;
    return false;
  }
  std::vector<std::string> steps_;
  size_t at_ = 0;
  bool ended_ = false;
};

class FakeArtifact final : public grammar::Artifact {
 public:
  explicit FakeArtifact(std::vector<std::string> steps) : steps_(std::move(steps)) {}
  std::unique_ptr<grammar::Matcher> matcher() const override { return std::make_unique<FakeMatcher>(steps_); }
  size_t memory_bytes() const override { return 1000; }

 private:
  std::vector<std::string> steps_;
};

class FakeGrammars final : public grammar::Engine {
 public:
  std::shared_ptr<const grammar::Artifact> load(std::span<const std::byte> bytes) const override {
    std::istringstream text(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
    std::vector<std::string> steps;
    for (std::string step; text >> step;) steps.push_back(step);
    if (steps.empty()) throw std::runtime_error("an artifact without steps");
    return std::make_shared<FakeArtifact>(std::move(steps));
  }
};

inline GrammarSupport grammars() {
  return {.engine = std::make_unique<FakeGrammars>(), .vocab_size = kVocab, .stop_ids = {kStop}};
}

inline void load_grammar(Engine& engine, const std::string& hash, const std::string& text) {
  engine.load_grammar(hash, std::as_bytes(std::span(text)));
}

inline std::vector<Token> tokens(size_t n, uint32_t seed) {
  std::vector<Token> out;
  for (size_t i = 0; i < n; ++i) {
    seed = seed * 1664525 + 1013904223;
    out.push_back(static_cast<Token>(2 + (seed >> 8) % 90));
  }
  return out;
}

inline Request request(std::vector<Token> prompt, int32_t max_new_tokens) {
  Request out;
  out.prompt = std::move(prompt);
  out.max_new_tokens = max_new_tokens;
  out.stop_ids = {kStop};
  return out;
}

inline GenerationId submit(Engine& engine, Request what) {
  const SubmitResult result = engine.submit(std::move(what));
  if (result.refusal != Refusal::none) throw std::runtime_error("refused: " + result.message);
  return result.id;
}

// The engine runs no step while this is held.
class Gate {
 public:
  void pass() {
    std::unique_lock lock(mutex_);
    ++arrived_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return open_ || allowed_ > 0; });
    if (!open_) --allowed_;
  }
  // Returns when `n` steps in all have come this far.
  void wait_arrived(int n) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return arrived_ >= n; });
  }
  void allow(int steps) {
    const std::lock_guard lock(mutex_);
    allowed_ += steps;
    changed_.notify_all();
  }
  void open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int arrived_ = 0;
  int allowed_ = 0;
  bool open_ = false;
};

}  // namespace support
