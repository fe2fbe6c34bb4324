// XGrammar behind the matcher face. Threads: an artifact is immutable after loading and shared; each matcher has its own
// parser state and reads the artifact only, so any number of threads may each drive their own matchers.
#include <dlpack/dlpack.h>
#include <xgrammar/xgrammar.h>

#include <algorithm>
#include <stdexcept>
#include <utility>
#include <variant>

#include "grammar/envelope.h"
#include "grammar/matcher.h"

namespace sluice::grammar {
namespace {

class XGrammarMatcher final : public Matcher {
 public:
  XGrammarMatcher(xgrammar::GrammarMatcher matcher, int vocabulary_size)
      : matcher_(std::move(matcher)), vocabulary_size_(vocabulary_size) {}

  bool accept(int32_t token) override { return matcher_.AcceptToken(token); }

  bool fill_mask(std::span<uint32_t> mask) override {
    const auto words = static_cast<size_t>(xgrammar::GetBitmaskSize(vocabulary_size_));
    if (mask.size() < words) throw std::invalid_argument("grammar mask: too few words for this vocabulary");
    // A padded logits row may be wider than the vocabulary: ids past its end are never allowed.
    std::fill(mask.begin() + static_cast<std::ptrdiff_t>(words), mask.end(), 0u);
    if (matcher_.IsTerminated()) {
      std::fill(mask.begin(), mask.end(), 0u);
      return true;
    }
    auto shape = static_cast<int64_t>(words);
    int64_t stride = 1;
    DLTensor tensor{};
    tensor.data = mask.data();
    tensor.device = DLDevice{kDLCPU, 0};
    tensor.ndim = 1;
    tensor.dtype = xgrammar::GetBitmaskDLType();
    tensor.shape = &shape;
    tensor.strides = &stride;
    return matcher_.FillNextTokenBitmask(&tensor);
  }

  bool terminated() const override { return matcher_.IsTerminated(); }
  bool completed() override { return matcher_.IsCompleted(); }
  void rollback(int n) override {
    if (n > 0) matcher_.Rollback(n);
  }
  std::unique_ptr<Matcher> fork() const override {
    return std::make_unique<XGrammarMatcher>(matcher_.Fork(), vocabulary_size_);
  }

 private:
  xgrammar::GrammarMatcher matcher_;
  int vocabulary_size_;
};

class XGrammarArtifact final : public Artifact {
 public:
  XGrammarArtifact(xgrammar::CompiledGrammar grammar, int vocabulary_size)
      : grammar_(std::move(grammar)), vocabulary_size_(vocabulary_size) {}

  std::unique_ptr<Matcher> matcher() const override {
    return std::make_unique<XGrammarMatcher>(xgrammar::GrammarMatcher(grammar_), vocabulary_size_);
  }
  size_t memory_bytes() const override { return grammar_.MemorySizeBytes(); }

 private:
  xgrammar::CompiledGrammar grammar_;
  int vocabulary_size_;
};

class XGrammarEngine final : public Engine {
 public:
  explicit XGrammarEngine(const Vocabulary& vocabulary)
      : fingerprint_(vocabulary_fingerprint(vocabulary)),
        vocabulary_size_(static_cast<int>(vocabulary.tokens.size())),
        tokenizer_(vocabulary.tokens, xgrammar::VocabType::RAW, vocabulary_size_, vocabulary.stop_ids) {}

  std::shared_ptr<const Artifact> load(std::span<const std::byte> bytes) const override {
    const std::string payload(open_envelope(bytes, fingerprint_));
    auto loaded = xgrammar::CompiledGrammar::DeserializeJSON(payload, tokenizer_);
    if (auto* error = std::get_if<xgrammar::SerializationError>(&loaded)) {
      const std::string what = std::visit([](const auto& e) { return std::string(e.what()); }, *error);
      throw std::runtime_error("grammar artifact: " + what);
    }
    return std::make_shared<XGrammarArtifact>(std::get<xgrammar::CompiledGrammar>(std::move(loaded)), vocabulary_size_);
  }

 private:
  uint64_t fingerprint_;
  int vocabulary_size_;
  xgrammar::TokenizerInfo tokenizer_;
};

}  // namespace

std::unique_ptr<Engine> make_xgrammar_engine(const Vocabulary& vocabulary) {
  return std::make_unique<XGrammarEngine>(vocabulary);
}

}  // namespace sluice::grammar
