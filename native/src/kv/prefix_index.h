// Finds the block that holds the KV of 16 given tokens after a given prefix.
//
// A block's key is a 64-bit hash chained over its parent's key and its tokens; the root of a chain is the salt's hash.
// Keys only find candidates: a hit also compares salt, tokens and the parent block itself, so a collision costs a miss
// and never a wrong answer or another tenant's prefix. The hash is seeded a process, so collisions cannot be prepared.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "ops/step.h"

namespace sluice {

class PrefixIndex {
 public:
  struct Entry {
    uint64_t key = 0;         // 0 = this block is not in the index
    int32_t parent = -1;      // block, -1 for a first block
    std::shared_ptr<const std::string> salt;
    std::array<Token, kBlockTokens> tokens{};
  };

  PrefixIndex(int32_t n_blocks, uint64_t seed) : entries_(n_blocks), seed_(seed) {}

  uint64_t root_key(std::string_view salt) const;
  uint64_t child_key(uint64_t parent_key, std::span<const Token> tokens) const;

  // The block that holds `tokens` after block `parent`, or -1.
  int32_t find(uint64_t key, int32_t parent, std::string_view salt, std::span<const Token> tokens) const;
  bool has_key(uint64_t key) const { return blocks_.contains(key); }
  void insert(int32_t block, uint64_t key, int32_t parent, std::shared_ptr<const std::string> salt,
              std::span<const Token> tokens);
  void erase(int32_t block);

  bool contains(int32_t block) const { return entries_[block].key != 0; }
  const Entry& entry(int32_t block) const { return entries_[block]; }
  size_t size() const { return blocks_.size(); }

 private:
  std::vector<Entry> entries_;  // by block
  std::unordered_map<uint64_t, int32_t> blocks_;
  uint64_t seed_;
};

}  // namespace sluice
