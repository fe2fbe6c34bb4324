// Our own grammar engine: an artifact is a small pushdown automaton over bytes, free of any vocabulary; masks are filled when
// they are asked for. Format and meaning: src/grammar/automaton/README.md.
#pragma once

#include <cstddef>
#include <memory>

#include "grammar/matcher.h"

namespace sluice::grammar {

// `pool_bytes` bounds the masks that are kept, over all artifacts of the engine.
std::unique_ptr<Engine> make_automaton_engine(const Vocabulary& vocabulary, size_t pool_bytes = size_t{256} << 20);

// Loads each artifact with the engine that its first bytes name. `xgrammar` may be null: then its artifacts are refused.
std::unique_ptr<Engine> make_engine_by_artifact(std::unique_ptr<Engine> automaton, std::unique_ptr<Engine> xgrammar);

}  // namespace sluice::grammar
