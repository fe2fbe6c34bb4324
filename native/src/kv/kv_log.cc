#include "kv/kv_log.h"

namespace sluice {

KvLog::KvLog(int64_t first_seq, size_t max_records) : max_records_(max_records), seq_(first_seq) {}

void KvLog::stored(KvBlockRecord record) { pending_.stored.push_back(std::move(record)); }

void KvLog::removed(uint64_t key) {
  // Stored since the last flush: nobody heard of it.
  if (std::erase_if(pending_.stored, [key](const KvBlockRecord& record) { return record.key == key; }) > 0) return;
  pending_.removed.push_back(key);
}

bool KvLog::flush() {
  if (pending_.stored.empty() && pending_.removed.empty()) return false;
  const std::lock_guard lock(mutex_);
  pending_.seq = ++seq_;
  for (const uint64_t key : pending_.removed) {
    const auto found = by_key_.find(key);
    if (found == by_key_.end()) continue;
    mirror_.erase(found->second);
    by_key_.erase(found);
  }
  for (const KvBlockRecord& record : pending_.stored)
    by_key_.emplace(record.key, mirror_.insert(mirror_.end(), record));
  ring_records_ += pending_.stored.size() + pending_.removed.size();
  ring_.push_back(std::move(pending_));
  pending_ = {};
  while (ring_records_ > max_records_ && ring_.size() > 1) {
    ring_records_ -= ring_.front().stored.size() + ring_.front().removed.size();
    ring_.pop_front();
  }
  return true;
}

std::optional<std::vector<KvDelta>> KvLog::since(int64_t seq) const {
  const std::lock_guard lock(mutex_);
  if (seq == seq_) return std::vector<KvDelta>{};
  if (seq > seq_ || ring_.empty() || seq < ring_.front().seq - 1) return std::nullopt;
  return std::vector<KvDelta>(ring_.begin() + (seq - (ring_.front().seq - 1)), ring_.end());
}

KvDelta KvLog::snapshot() const {
  const std::lock_guard lock(mutex_);
  KvDelta all;
  all.seq = seq_;
  all.stored.assign(mirror_.begin(), mirror_.end());
  return all;
}

}  // namespace sluice
