// The KV blocks of one KV group: reserve-admission, prefix hits, publication, exact accounting. Engine thread only.
//
// Invariant: whoever holds a published block holds its parent too, and releases children first. So the least recently
// used order evicts children before parents, and no entry of the index ever lacks its parent.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kv/block_pool.h"
#include "kv/kv_log.h"
#include "kv/prefix_index.h"

namespace sluice {

class KvCache;

// Blocks held by one generation; gives them back when destroyed.
class KvLease {
 public:
  KvLease(KvLease&& other) noexcept;
  KvLease& operator=(KvLease&& other) noexcept;
  KvLease(const KvLease&) = delete;
  KvLease& operator=(const KvLease&) = delete;
  ~KvLease();

  // Physical block of each 16 tokens, in order.
  std::span<const int32_t> blocks() const { return blocks_; }
  // Tokens whose KV was found in the cache; whole blocks.
  int32_t cached_tokens() const { return cached_tokens_; }

 private:
  friend class KvCache;
  explicit KvLease(KvCache* cache) : cache_(cache) {}

  KvCache* cache_;
  std::vector<int32_t> blocks_;
  int32_t cached_tokens_ = 0;
  int32_t published_ = 0;        // leading blocks that are in the index
  bool publishes_ = true;        // false after a key collision: children of an unpublished block cannot be found
  uint64_t chain_key_ = 0;       // of block published_ - 1, or the salt's root
  std::shared_ptr<const std::string> salt_;
};

class KvCache {
 public:
  // `log` outlives the cache.
  KvCache(int32_t n_blocks, uint64_t hash_seed, KvLog& log);

  // Blocks for `capacity` tokens, the leading ones shared with an equal prefix of `context` under an equal salt. At least
  // the last token of `context` is left to compute, since its logits are wanted. nullopt when there is no room now.
  std::optional<KvLease> reserve(std::span<const Token> context, const std::string& salt, int32_t capacity);

  // Makes the full blocks of context[0, n_computed) findable. Where an equal block is published already, the lease
  // changes over to it and its own becomes free (equal tokens have equal KV bits). Returns the first index of the lease
  // whose block changed, or -1.
  int32_t publish(KvLease& lease, std::span<const Token> context, int32_t n_computed);

  const BlockCounts& counts() const { return pool_.counts(); }
  IntegrityReport integrity(std::span<const KvLease* const> leases) const;

 private:
  friend class KvLease;
  void release(KvLease& lease);

  BlockPool pool_;
  PrefixIndex index_;
  KvLog& log_;
};

}  // namespace sluice
