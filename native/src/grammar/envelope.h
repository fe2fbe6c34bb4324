// The bytes of a compiled XGrammar artifact: a fixed header, then the core's own serialization.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "grammar/matcher.h"

namespace sluice::grammar {

// The core's serialization changes between releases (v14 -> v16 from 0.2.5 to 0.2.8), so versions must be equal. The number
// after + counts our own changes to the core (xgrammar.cmake).
inline constexpr std::string_view kXGrammarVersion = "0.2.8+1";

// FNV-1a (64 bits) over count, each token's length and bytes, and the stop ids. XGrammar's serialization names only the
// tokenizer's metadata: with one token's text replaced it loads and yields wrong masks, hence a fingerprint of our own.
// It guards against a mistake; against an attacker stands the artifact's MAC.
uint64_t vocabulary_fingerprint(const Vocabulary& vocabulary);

// Layout, little endian: "SLUICEXG", u32 envelope version, u32 zero, u64 fingerprint, char[16] compiler version, u64 payload
// bytes, payload.
std::string seal_envelope(uint64_t fingerprint, std::string_view payload);

// The payload, or std::runtime_error that says what does not fit (not an artifact, other version, other vocabulary).
std::string_view open_envelope(std::span<const std::byte> bytes, uint64_t fingerprint);

}  // namespace sluice::grammar
