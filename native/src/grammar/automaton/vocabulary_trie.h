// A vocabulary as a trie in depth-first order, and slices of it: sets of tokens that stay inside a JSON string wherever one
// is being written, so that their mask is known beforehand and only the rest of the vocabulary is walked
// (the idea is llguidance's, docs/optimizations.md there).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "grammar/matcher.h"

namespace sluice::grammar::automaton {

struct TrieNode {
  uint32_t end;     // index of the first node that is not below this one
  uint32_t token;   // into `tokens`
  uint16_t depth;   // 1 for a first byte
  uint8_t byte;
  uint8_t tokens;   // how many tokens end here
};

struct Trie {
  std::vector<TrieNode> nodes;
  std::vector<int32_t> tokens;
};

// Characters that a slice is made of.
enum class SliceKind : uint8_t {
  text,  // whatever stands for itself in a JSON string, whole characters only
  word,  // [0-9A-Za-z_-]
};
inline constexpr int kSlices = 2;
inline constexpr uint32_t kNoNode = UINT32_MAX;

struct Slice {
  Trie rest;  // every token that is not in the slice
  // Tokens of at most i characters, i = 0, 1, ... up to the longest: words of a mask each.
  std::vector<std::vector<uint32_t>> within;
  // Tokens of the slice in the order of the whole trie, and how many characters each has.
  std::vector<int32_t> tokens;
  std::vector<uint16_t> characters;
  // For each node of the whole trie, and its end: the first token of `tokens` at or below it.
  std::vector<uint32_t> first;
  // For each node of the whole trie: the same node in `rest`, kNoNode where no token of the rest is at or below it.
  std::vector<uint32_t> in_rest;
  // Characters that a token of the rest can add to a string before it leaves it, at most.
  uint32_t rest_characters = 0;
};

struct VocabularyTrie {
  explicit VocabularyTrie(const Vocabulary& vocabulary);

  Trie all;
  Slice slices[kSlices];
  // Characters (bytes that begin one) from the root down to each node of `all`.
  std::vector<uint16_t> path_characters;
  size_t mask_words;
  uint32_t longest = 0;  // bytes of the longest token
  std::vector<std::string> tokens;  // empty for what is no text and for stop ids
  std::vector<int32_t> stop_ids;
};

// True for bytes below 0x80 that the slice may hold.
bool in_slice(SliceKind kind, uint8_t byte);

}  // namespace sluice::grammar::automaton
