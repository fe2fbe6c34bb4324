#include "kv/prefix_index.h"

#include <algorithm>

namespace sluice {
namespace {

// Folded 128-bit product, the mixing step of wyhash (public domain, Wang Yi).
uint64_t mix(uint64_t a, uint64_t b) {
  __extension__ using uint128 = unsigned __int128;
  const uint128 product = static_cast<uint128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

constexpr uint64_t kA = 0xa0761d6478bd642fULL;
constexpr uint64_t kB = 0xe7037ed1a0b428dbULL;

uint64_t nonzero(uint64_t key) { return key == 0 ? 1 : key; }

}  // namespace

uint64_t PrefixIndex::root_key(std::string_view salt) const {
  uint64_t key = mix(seed_ ^ kA, salt.size() ^ kB);
  for (size_t at = 0; at < salt.size(); at += 8) {
    uint64_t word = 0;
    for (size_t i = 0; i < 8 && at + i < salt.size(); ++i)
      word |= static_cast<uint64_t>(static_cast<uint8_t>(salt[at + i])) << (8 * i);
    key = mix(key ^ kA, word ^ kB ^ seed_);
  }
  return nonzero(key);
}

uint64_t PrefixIndex::child_key(uint64_t parent_key, std::span<const Token> tokens) const {
  uint64_t key = mix(parent_key ^ kA, seed_ ^ kB);
  for (size_t at = 0; at + 1 < tokens.size(); at += 2) {
    const uint64_t word =
        static_cast<uint32_t>(tokens[at]) | static_cast<uint64_t>(static_cast<uint32_t>(tokens[at + 1])) << 32;
    key = mix(key ^ kA, word ^ kB);
  }
  return nonzero(mix(key ^ kB, seed_ ^ kA));
}

int32_t PrefixIndex::find(uint64_t key, int32_t parent, std::string_view salt, std::span<const Token> tokens) const {
  const auto found = blocks_.find(key);
  if (found == blocks_.end()) return -1;
  const Entry& entry = entries_[found->second];
  const bool same = entry.parent == parent && *entry.salt == salt && std::ranges::equal(entry.tokens, tokens);
  return same ? found->second : -1;
}

void PrefixIndex::insert(int32_t block, uint64_t key, int32_t parent, std::shared_ptr<const std::string> salt,
                         std::span<const Token> tokens) {
  Entry& entry = entries_[block];
  entry.key = key;
  entry.parent = parent;
  entry.salt = std::move(salt);
  std::ranges::copy(tokens, entry.tokens.begin());
  blocks_.emplace(key, block);
}

void PrefixIndex::erase(int32_t block) {
  Entry& entry = entries_[block];
  blocks_.erase(entry.key);
  entry.key = 0;
  entry.parent = -1;
  entry.salt.reset();
}

}  // namespace sluice
