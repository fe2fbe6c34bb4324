#include "grammar/automaton/vocabulary_trie.h"

#include <algorithm>
#include <optional>

namespace sluice::grammar::automaton {
namespace {

// Bytes of the character at `text[0]`, 0 where it is no whole and valid UTF-8.
size_t character_bytes(std::string_view text) {
  const auto at = [&](size_t i) { return i < text.size() ? static_cast<uint8_t>(text[i]) : uint8_t{0}; };
  const auto follows = [&](size_t i, uint8_t low = 0x80, uint8_t high = 0xbf) { return at(i) >= low && at(i) <= high; };
  const uint8_t lead = at(0);
  if (lead < 0x80) return text.empty() ? 0 : 1;
  if (lead >= 0xc2 && lead <= 0xdf) return follows(1) ? 2 : 0;
  if (lead >= 0xe0 && lead <= 0xef)
    return follows(1, lead == 0xe0 ? 0xa0 : 0x80, lead == 0xed ? 0x9f : 0xbf) && follows(2) ? 3 : 0;
  if (lead >= 0xf0 && lead <= 0xf4)
    return follows(1, lead == 0xf0 ? 0x90 : 0x80, lead == 0xf4 ? 0x8f : 0xbf) && follows(2) && follows(3) ? 4 : 0;
  return 0;
}

// Characters of a token that lies in the slice as a whole.
std::optional<uint32_t> slice_characters(SliceKind kind, std::string_view token) {
  uint32_t count = 0;
  while (!token.empty()) {
    const size_t bytes = character_bytes(token);
    if (bytes == 0 || (bytes == 1 ? !in_slice(kind, static_cast<uint8_t>(token[0])) : kind != SliceKind::text)) return {};
    token.remove_prefix(bytes);
    ++count;
  }
  return count;
}

// Bytes before the first that a JSON string cannot hold, or the quote that closes it: no token adds more characters.
uint32_t string_bytes(std::string_view token) {
  uint32_t count = 0;
  bool escaped = false;
  for (const char c : token) {
    if (static_cast<uint8_t>(c) < 0x20 || (c == '"' && !escaped)) break;
    escaped = c == '\\' && !escaped;
    ++count;
  }
  return count;
}

Trie build(const std::vector<std::string>& tokens, std::vector<int32_t> ids) {
  std::sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) {
    const int order = tokens[static_cast<size_t>(a)].compare(tokens[static_cast<size_t>(b)]);
    return order != 0 ? order < 0 : a < b;
  });
  Trie trie;
  std::vector<uint32_t> open;  // nodes from the root to the last token
  std::string_view last;
  const auto close_to = [&](size_t depth) {
    while (open.size() > depth) {
      trie.nodes[open.back()].end = static_cast<uint32_t>(trie.nodes.size());
      open.pop_back();
    }
  };
  for (const int32_t id : ids) {
    const std::string_view token = tokens[static_cast<size_t>(id)];
    size_t shared = 0;
    while (shared < last.size() && shared < token.size() && last[shared] == token[shared]) ++shared;
    close_to(shared);
    for (size_t i = shared; i < token.size(); ++i) {
      open.push_back(static_cast<uint32_t>(trie.nodes.size()));
      trie.nodes.push_back({0, 0, static_cast<uint16_t>(i + 1), static_cast<uint8_t>(token[i]), 0});
    }
    TrieNode& node = trie.nodes[open.back()];
    // Sorted, so tokens with the same bytes follow each other.
    if (node.tokens == 0) node.token = static_cast<uint32_t>(trie.tokens.size());
    if (node.tokens < UINT8_MAX) {
      ++node.tokens;
      trie.tokens.push_back(id);
    }
    last = token;
  }
  close_to(0);
  return trie;
}

// Where the slice's tokens and the rest's nodes are, seen from the nodes of the whole trie.
void connect(const Trie& all, const std::vector<uint8_t>& in_slice, Slice& slice) {
  slice.first.reserve(all.nodes.size() + 1);
  slice.in_rest.reserve(all.nodes.size());
  uint32_t rest = 0;
  for (size_t i = 0; i < all.nodes.size(); ++i) {
    const TrieNode& node = all.nodes[i];
    slice.first.push_back(static_cast<uint32_t>(slice.tokens.size()));
    // Both are in depth-first order, and the rest's nodes are some of these. A node with the same depth and byte is the
    // same: were the rest's next node another one, it would lie behind this whole branch or not at this depth.
    const bool shared = rest < slice.rest.nodes.size() && slice.rest.nodes[rest].depth == node.depth &&
                        slice.rest.nodes[rest].byte == node.byte;
    slice.in_rest.push_back(shared ? rest++ : kNoNode);
    for (uint32_t t = 0; t < node.tokens; ++t) {
      const int32_t id = all.tokens[node.token + t];
      if (in_slice[static_cast<size_t>(id)] != 0) slice.tokens.push_back(id);
    }
  }
  slice.first.push_back(static_cast<uint32_t>(slice.tokens.size()));
}

}  // namespace

bool in_slice(SliceKind kind, uint8_t byte) {
  if (kind == SliceKind::text) return byte >= 0x20 && byte != '"' && byte != '\\' && byte < 0x80;
  return (byte >= '0' && byte <= '9') || (byte >= 'A' && byte <= 'Z') || (byte >= 'a' && byte <= 'z') || byte == '_' || byte == '-';
}

VocabularyTrie::VocabularyTrie(const Vocabulary& vocabulary)
    : mask_words((vocabulary.tokens.size() + 31) / 32), tokens(vocabulary.tokens), stop_ids(vocabulary.stop_ids) {
  constexpr size_t kLongestToken = 4096;  // longer ones are no token that a model should write
  for (const int32_t id : stop_ids) tokens.at(static_cast<size_t>(id)).clear();
  std::vector<int32_t> ids;
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (tokens[id].size() > kLongestToken) tokens[id].clear();
    if (tokens[id].empty()) continue;
    ids.push_back(static_cast<int32_t>(id));
    longest = std::max(longest, static_cast<uint32_t>(tokens[id].size()));
  }
  all = build(tokens, ids);
  std::vector<uint16_t> above{0};
  for (const TrieNode& node : all.nodes) {
    above.resize(node.depth);
    above.push_back(static_cast<uint16_t>(above.back() + ((node.byte & 0xc0) == 0x80 ? 0 : 1)));
    path_characters.push_back(above.back());
  }
  for (int i = 0; i < kSlices; ++i) {
    Slice& slice = slices[i];
    std::vector<int32_t> rest;
    std::vector<uint8_t> inside(tokens.size(), 0);
    std::vector<uint16_t> characters_of(tokens.size(), 0);
    std::vector<std::vector<int32_t>> by_length;
    for (const int32_t id : ids) {
      const std::string& token = tokens[static_cast<size_t>(id)];
      const auto characters = slice_characters(static_cast<SliceKind>(i), token);
      if (!characters) {
        rest.push_back(id);
        slice.rest_characters = std::max(slice.rest_characters, string_bytes(token));
        continue;
      }
      if (by_length.size() <= *characters) by_length.resize(*characters + 1);
      by_length[*characters].push_back(id);
      inside[static_cast<size_t>(id)] = 1;
      characters_of[static_cast<size_t>(id)] = static_cast<uint16_t>(*characters);
    }
    slice.rest = build(tokens, rest);
    connect(all, inside, slice);
    for (const int32_t id : slice.tokens) slice.characters.push_back(characters_of[static_cast<size_t>(id)]);
    std::vector<uint32_t> mask(mask_words, 0);
    for (const std::vector<int32_t>& length : by_length) {
      for (const int32_t id : length) mask[static_cast<size_t>(id) / 32] |= uint32_t{1} << (id % 32);
      slice.within.push_back(mask);
    }
    if (slice.within.empty()) slice.within.push_back(mask);
  }
}

}  // namespace sluice::grammar::automaton
