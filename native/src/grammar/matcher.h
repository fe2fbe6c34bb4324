// The face every grammar engine shows to the scheduler: an artifact makes matchers, a matcher follows one generation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace sluice::grammar {

// Token bytes and stop ids, in id order. `tokens[i]` is empty for special tokens: a grammar never produces those.
struct Vocabulary {
  std::vector<std::string> tokens;
  std::vector<int32_t> stop_ids;
};

// Follows one generation. Not thread safe; one owner at a time. Masks are bitsets of ceil(V / 32) words, bit = allowed.
class Matcher {
 public:
  virtual ~Matcher() = default;
  // False (and no change) when the token is not allowed here. Stop ids are accepted where the grammar may end.
  virtual bool accept(int32_t token) = 0;
  // Fills the whole mask. Returns false when every token is allowed, so that the mask need not be applied.
  virtual bool fill_mask(std::span<uint32_t> mask) = 0;
  // True after a stop token was accepted.
  virtual bool terminated() const = 0;
  // True where the grammar may end now.
  virtual bool completed() = 0;
  // Takes back the last n accepted tokens.
  virtual void rollback(int n) = 0;
  virtual std::unique_ptr<Matcher> fork() const = 0;
};

// Compiled and immutable; shared by all generations that use it, from any thread.
class Artifact {
 public:
  virtual ~Artifact() = default;
  virtual std::unique_ptr<Matcher> matcher() const = 0;
  virtual size_t memory_bytes() const = 0;
};

// One engine for one vocabulary. `load` throws std::runtime_error on bytes that are not an artifact of this version
// and vocabulary. Callers check the artifact's MAC first: loading is not a trust boundary.
class Engine {
 public:
  virtual ~Engine() = default;
  virtual std::shared_ptr<const Artifact> load(std::span<const std::byte> bytes) const = 0;
};

// XGrammar (native/src/grammar/xgrammar_engine.cc).
std::unique_ptr<Engine> make_xgrammar_engine(const Vocabulary& vocabulary);

}  // namespace sluice::grammar
