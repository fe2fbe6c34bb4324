// The compiling half of XGrammar: source text to artifact bytes. Linked into the grammar addon and tests only, never into
// the engine: what callers send is compiled in a process that can be killed.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "grammar/matcher.h"

namespace sluice::grammar {

// JSON Schema is not among them: src/grammar lowers it to EBNF, since the core's own converter drops keywords silently.
enum class SourceKind { kEbnf, kRegex, kStructuralTag };

struct CompileResult {
  // What seal_envelope returns. Empty when `warnings` is not: the core dropped something, so there is no artifact.
  std::string bytes;
  std::vector<std::string> warnings;
};

// One for each vocabulary. `compile` may be called by several threads; the core's rule cache (bounded by `cache_bytes`) is
// shared. Throws std::runtime_error with the core's message on a source that it refuses.
class XGrammarCompiler {
 public:
  XGrammarCompiler(const Vocabulary& vocabulary, size_t cache_bytes, int threads);
  ~XGrammarCompiler();
  CompileResult compile(SourceKind kind, const std::string& source);
  size_t cache_bytes() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sluice::grammar
