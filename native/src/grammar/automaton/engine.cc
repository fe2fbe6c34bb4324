// The automaton behind the matcher face. Threads: an artifact is immutable after loading but for its cache of masks, which
// has a lock; each matcher has frames of its own.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "grammar/automaton/automaton.h"
#include "grammar/automaton/filler.h"

namespace sluice::grammar {
namespace {

using namespace automaton;

class AutomatonMatcher final : public Matcher {
 public:
  explicit AutomatonMatcher(std::shared_ptr<Shared> shared) : shared_(std::move(shared)), walker_(shared_->program, frames_) {
    walker_.start(now_);
  }

  bool accept(int32_t token) override {
    if (terminated_ || token < 0 || static_cast<size_t>(token) >= shared_->trie->tokens.size()) return false;
    const auto& stops = shared_->trie->stop_ids;
    if (std::ranges::find(stops, token) != stops.end()) {
      if (!completed()) return false;
      remember();
      terminated_ = true;
      return true;
    }
    const std::string& bytes = shared_->trie->tokens[static_cast<size_t>(token)];
    if (bytes.empty()) return false;
    const size_t frames = frames_.size();
    std::vector<Configuration> next = now_;
    size_t first = 0;
    for (const char byte : bytes) {
      const size_t last = next.size();
      walker_.step(next, first, last, static_cast<uint8_t>(byte));
      if (next.size() == last) {
        frames_.drop_to(frames);
        return false;
      }
      first = last;
    }
    remember(frames);
    now_.assign(next.begin() + static_cast<std::ptrdiff_t>(first), next.end());
    return true;
  }

  bool fill_mask(std::span<uint32_t> mask) override {
    const VocabularyTrie& trie = *shared_->trie;
    if (mask.size() < trie.mask_words) throw std::invalid_argument("grammar mask: too few words for this vocabulary");
    std::ranges::fill(mask, 0u);
    if (terminated_) return true;
    Filler(*shared_, frames_).fill(now_, mask.first(trie.mask_words));
    if (completed())
      for (const int32_t id : trie.stop_ids) mask[static_cast<size_t>(id) / 32] |= uint32_t{1} << (id % 32);
    return true;
  }

  bool terminated() const override { return terminated_; }

  bool completed() override {
    return std::ranges::any_of(now_, [](const Configuration& at) { return at.state == 0; });
  }

  void rollback(int n) override {
    if (n < 0 || static_cast<size_t>(n) > history_.size()) throw std::invalid_argument("grammar rollback: too far");
    if (n == 0) return;
    const Moment moment = history_[history_.size() - static_cast<size_t>(n)];
    history_.resize(history_.size() - static_cast<size_t>(n));
    terminated_ = false;
    now_.assign(past_.begin() + static_cast<std::ptrdiff_t>(moment.first),
                past_.begin() + static_cast<std::ptrdiff_t>(moment.first + moment.count));
    past_.resize(moment.first);
    frames_.drop_to(moment.frames);
  }

  std::unique_ptr<Matcher> fork() const override {
    auto copy = std::make_unique<AutomatonMatcher>(shared_);
    copy->frames_ = frames_;
    copy->now_ = now_;
    copy->past_ = past_;
    copy->history_ = history_;
    copy->terminated_ = terminated_;
    return copy;
  }

 private:
  // The state before a token: its configurations in `past_`, and how many frames there were.
  struct Moment {
    size_t first;
    size_t count;
    size_t frames;
  };
  void remember() { remember(frames_.size()); }
  void remember(size_t frames) {
    history_.push_back({past_.size(), now_.size(), frames});
    past_.insert(past_.end(), now_.begin(), now_.end());
  }

  std::shared_ptr<Shared> shared_;
  Frames frames_;
  Walker walker_;
  std::vector<Configuration> now_;
  std::vector<Configuration> past_;
  std::vector<Moment> history_;
  bool terminated_ = false;
};

class AutomatonArtifact final : public Artifact {
 public:
  explicit AutomatonArtifact(std::shared_ptr<Shared> shared) : shared_(std::move(shared)) {}
  std::unique_ptr<Matcher> matcher() const override { return std::make_unique<AutomatonMatcher>(shared_); }
  size_t memory_bytes() const override {
    return sizeof(Shared) + shared_->program.memory_bytes() + shared_->loops.size() * sizeof(TextLoop);
  }

 private:
  std::shared_ptr<Shared> shared_;
};

class AutomatonEngine final : public Engine {
 public:
  AutomatonEngine(const Vocabulary& vocabulary, size_t pool_bytes)
      : trie_(std::make_shared<VocabularyTrie>(vocabulary)), pool_(std::make_shared<MaskPool>(pool_bytes)) {}
  std::shared_ptr<const Artifact> load(std::span<const std::byte> bytes) const override {
    return std::make_shared<AutomatonArtifact>(std::make_shared<Shared>(Program::read(bytes), trie_, pool_));
  }

 private:
  std::shared_ptr<const VocabularyTrie> trie_;
  std::shared_ptr<MaskPool> pool_;
};

class EngineByArtifact final : public Engine {
 public:
  EngineByArtifact(std::unique_ptr<Engine> automaton, std::unique_ptr<Engine> xgrammar)
      : automaton_(std::move(automaton)), xgrammar_(std::move(xgrammar)) {}
  std::shared_ptr<const Artifact> load(std::span<const std::byte> bytes) const override {
    if (bytes.size() >= kMagic.size() && std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) == 0)
      return automaton_->load(bytes);
    if (!xgrammar_) throw std::runtime_error("grammar artifact: not one of an engine that is built in");
    return xgrammar_->load(bytes);
  }

 private:
  std::unique_ptr<Engine> automaton_;
  std::unique_ptr<Engine> xgrammar_;
};

}  // namespace

std::unique_ptr<Engine> make_automaton_engine(const Vocabulary& vocabulary, size_t pool_bytes) {
  return std::make_unique<AutomatonEngine>(vocabulary, pool_bytes);
}

std::unique_ptr<Engine> make_engine_by_artifact(std::unique_ptr<Engine> automaton, std::unique_ptr<Engine> xgrammar) {
  return std::make_unique<EngineByArtifact>(std::move(automaton), std::move(xgrammar));
}

}  // namespace sluice::grammar
