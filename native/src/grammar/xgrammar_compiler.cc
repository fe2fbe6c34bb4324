#include "grammar/xgrammar_compiler.h"

#include <xgrammar/xgrammar.h>

#include <stdexcept>
#include <utility>
#include <variant>

#include "grammar/envelope.h"
#include "grammar/xgrammar_log.h"

namespace sluice::grammar {

struct XGrammarCompiler::State {
  uint64_t fingerprint;
  xgrammar::GrammarCompiler compiler;
};

XGrammarCompiler::XGrammarCompiler(const Vocabulary& vocabulary, size_t cache_bytes, int threads)
    : state_(new State{
          vocabulary_fingerprint(vocabulary),
          xgrammar::GrammarCompiler(
              xgrammar::TokenizerInfo(vocabulary.tokens, xgrammar::VocabType::RAW,
                                      static_cast<int>(vocabulary.tokens.size()), vocabulary.stop_ids),
              threads, true, static_cast<int64_t>(cache_bytes))}) {}

XGrammarCompiler::~XGrammarCompiler() = default;

namespace {

// Parses the source outside the core's cache: a cached grammar would repeat the artifact but not its warnings.
xgrammar::Grammar parse(SourceKind kind, const std::string& source) {
  switch (kind) {
    case SourceKind::kEbnf:
      return xgrammar::Grammar::FromEBNF(source);
    case SourceKind::kRegex:
      return xgrammar::Grammar::FromRegex(source);
    case SourceKind::kStructuralTag: {
      auto parsed = xgrammar::Grammar::FromStructuralTag(source);
      if (auto* error = std::get_if<xgrammar::StructuralTagError>(&parsed)) {
        throw std::runtime_error(std::visit([](const auto& e) { return std::string(e.what()); }, *error));
      }
      return std::get<xgrammar::Grammar>(std::move(parsed));
    }
  }
  throw std::invalid_argument("unknown grammar kind");
}

}  // namespace

CompileResult XGrammarCompiler::compile(SourceKind kind, const std::string& source) {
  WarningScope scope;
  const xgrammar::Grammar grammar = parse(kind, source);
  if (!scope.warnings().empty()) return {{}, scope.warnings()};
  const xgrammar::CompiledGrammar compiled = state_->compiler.CompileGrammar(grammar);
  if (!scope.warnings().empty()) {
    // The optimiser warned, and the core has cached the grammar by now: forget it, so that the next try warns too.
    state_->compiler.ClearCache();
    return {{}, scope.warnings()};
  }
  return {seal_envelope(state_->fingerprint, compiled.SerializeJSON()), {}};
}

size_t XGrammarCompiler::cache_bytes() const { return static_cast<size_t>(state_->compiler.GetCacheSizeBytes()); }

}  // namespace sluice::grammar
