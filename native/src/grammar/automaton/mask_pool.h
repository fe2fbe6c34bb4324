// Masks by what they depend on, shared by all matchers of an engine; bounded by bytes, least recently used out first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <unordered_map>
#include <vector>

namespace sluice::grammar::automaton {

// The tokens of a mask: a few by id, or one bit each.
struct Mask {
  std::vector<int32_t> ids;
  std::vector<uint32_t> words;  // empty where `ids` says all
  size_t bytes() const { return sizeof(Mask) + ids.size() * 4 + words.size() * 4; }
};

// The artifact's number first, then what its matcher made of its configurations.
using MaskKey = std::vector<uint32_t>;

class MaskPool {
 public:
  explicit MaskPool(size_t max_bytes) : max_bytes_(max_bytes) {}
  // Null when unknown. Any thread.
  std::shared_ptr<const Mask> find(const MaskKey& key);
  void add(const MaskKey& key, std::shared_ptr<const Mask> mask);

 private:
  struct Hash {
    size_t operator()(const MaskKey& key) const {
      uint64_t hash = 0xcbf29ce484222325;  // FNV-1a over words
      for (const uint32_t word : key) hash = (hash ^ word) * 0x100000001b3;
      return static_cast<size_t>(hash ^ hash >> 32);
    }
  };
  struct Entry {
    const MaskKey* key;
    std::shared_ptr<const Mask> mask;
  };
  static size_t cost(const MaskKey& key, const Mask& mask) { return key.size() * 4 + mask.bytes() + 128; }

  const size_t max_bytes_;
  std::mutex mutex_;
  std::list<Entry> entries_;  // most recently used first
  std::unordered_map<MaskKey, std::list<Entry>::iterator, Hash> by_key_;
  size_t bytes_ = 0;
};

}  // namespace sluice::grammar::automaton
