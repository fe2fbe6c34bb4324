#include "kv/kv_cache.h"

#include <algorithm>
#include <utility>

namespace sluice {

KvLease::KvLease(KvLease&& other) noexcept
    : cache_(std::exchange(other.cache_, nullptr)),
      blocks_(std::move(other.blocks_)),
      cached_tokens_(other.cached_tokens_),
      published_(other.published_),
      publishes_(other.publishes_),
      chain_key_(other.chain_key_),
      salt_(std::move(other.salt_)) {}

KvLease& KvLease::operator=(KvLease&& other) noexcept {
  if (this == &other) return *this;
  if (cache_ != nullptr) cache_->release(*this);
  cache_ = std::exchange(other.cache_, nullptr);
  blocks_ = std::move(other.blocks_);
  cached_tokens_ = other.cached_tokens_;
  published_ = other.published_;
  publishes_ = other.publishes_;
  chain_key_ = other.chain_key_;
  salt_ = std::move(other.salt_);
  return *this;
}

KvLease::~KvLease() {
  if (cache_ != nullptr) cache_->release(*this);
}

KvCache::KvCache(int32_t n_blocks, uint64_t hash_seed, KvLog& log)
    : pool_(n_blocks), index_(n_blocks, hash_seed), log_(log) {}

std::optional<KvLease> KvCache::reserve(std::span<const Token> context, const std::string& salt, int32_t capacity) {
  const auto length = static_cast<int32_t>(context.size());
  const int32_t wanted = (std::max(capacity, length) + kBlockTokens - 1) / kBlockTokens;
  const int32_t hittable = (length - 1) / kBlockTokens;

  KvLease lease(this);
  lease.chain_key_ = index_.root_key(salt);
  int32_t revived = 0;
  int32_t parent = -1;
  while (static_cast<int32_t>(lease.blocks_.size()) < hittable) {
    const auto tokens = context.subspan(lease.blocks_.size() * kBlockTokens, kBlockTokens);
    const uint64_t key = index_.child_key(lease.chain_key_, tokens);
    const int32_t block = index_.find(key, parent, salt, tokens);
    if (block < 0) break;
    revived += pool_.is_cached(block) ? 1 : 0;
    lease.salt_ = index_.entry(block).salt;
    lease.blocks_.push_back(block);
    lease.chain_key_ = key;
    parent = block;
  }
  const auto hits = static_cast<int32_t>(lease.blocks_.size());
  if (wanted - hits > pool_.available() - revived) {
    lease.cache_ = nullptr;
    return std::nullopt;
  }
  // Hits first, so that the blocks taken next cannot evict them.
  for (const int32_t block : lease.blocks_) pool_.retain(block);
  while (static_cast<int32_t>(lease.blocks_.size()) < wanted) {
    bool evicted = false;
    const int32_t block = pool_.take(evicted);
    if (evicted) {
      log_.removed(index_.entry(block).key);
      index_.erase(block);
    }
    lease.blocks_.push_back(block);
  }
  if (!lease.salt_) lease.salt_ = std::make_shared<const std::string>(salt);
  lease.published_ = hits;
  lease.cached_tokens_ = hits * kBlockTokens;
  return lease;
}

int32_t KvCache::publish(KvLease& lease, std::span<const Token> context, int32_t n_computed) {
  int32_t first_changed = -1;
  while (lease.publishes_ && (lease.published_ + 1) * kBlockTokens <= n_computed) {
    const int32_t at = lease.published_;
    const auto tokens = context.subspan(static_cast<size_t>(at) * kBlockTokens, kBlockTokens);
    const int32_t parent = at > 0 ? lease.blocks_[at - 1] : -1;
    const uint64_t key = index_.child_key(lease.chain_key_, tokens);
    const int32_t existing = index_.find(key, parent, *lease.salt_, tokens);
    if (existing >= 0) {
      pool_.retain(existing);
      pool_.drop(lease.blocks_[at], /*keep_content=*/false);
      lease.blocks_[at] = existing;
      if (first_changed < 0) first_changed = at;
    } else if (index_.has_key(key)) {
      lease.publishes_ = false;
      break;
    } else {
      const int32_t block = lease.blocks_[at];
      index_.insert(block, key, parent, lease.salt_, tokens);
      KvBlockRecord record{.key = key, .parent = parent >= 0 ? lease.chain_key_ : 0, .salt = lease.salt_, .tokens = {}};
      std::ranges::copy(tokens, record.tokens.begin());
      log_.stored(std::move(record));
    }
    lease.chain_key_ = key;
    ++lease.published_;
  }
  return first_changed;
}

void KvCache::release(KvLease& lease) {
  // Last block first: children become older than their parents and are evicted before them.
  for (auto at = static_cast<int32_t>(lease.blocks_.size()) - 1; at >= 0; --at)
    pool_.drop(lease.blocks_[at], /*keep_content=*/at < lease.published_);
  lease.blocks_.clear();
  lease.cache_ = nullptr;
}

IntegrityReport KvCache::integrity(std::span<const KvLease* const> leases) const {
  const BlockCounts counts = pool_.counts();
  const BlockCounts real = pool_.recount();
  const auto text = [](const BlockCounts& c) {
    return "free " + std::to_string(c.free) + " + cached " + std::to_string(c.cached) + " + leased " +
           std::to_string(c.leased) + " of " + std::to_string(c.total);
  };
  const auto fault = [](std::string detail) { return IntegrityReport{.ok = false, .detail = std::move(detail)}; };
  if (real.free != counts.free || real.cached != counts.cached || real.leased != counts.leased)
    return fault("counters say " + text(counts) + ", the blocks say " + text(real));
  if (real.free + real.cached + real.leased != real.total) return fault("blocks are lost: " + text(real));

  std::vector<int32_t> held(real.total, 0);
  for (const KvLease* lease : leases)
    for (const int32_t block : lease->blocks_) ++held[block];
  size_t indexed = 0;
  for (int32_t block = 0; block < real.total; ++block) {
    if (held[block] != pool_.refs(block))
      return fault("block " + std::to_string(block) + " counts " + std::to_string(pool_.refs(block)) +
                   " references, leases hold " + std::to_string(held[block]));
    if (pool_.is_cached(block) && !index_.contains(block))
      return fault("cached block " + std::to_string(block) + " cannot be found");
    if (!index_.contains(block)) continue;
    ++indexed;
    if (pool_.refs(block) == 0 && !pool_.is_cached(block))
      return fault("free block " + std::to_string(block) + " is in the index");
    const int32_t parent = index_.entry(block).parent;
    if (parent >= 0 && !index_.contains(parent))
      return fault("block " + std::to_string(block) + " lost its parent " + std::to_string(parent));
  }
  if (indexed != index_.size()) return fault("the index and its keys disagree");
  return {.ok = true, .detail = text(real)};
}

}  // namespace sluice
