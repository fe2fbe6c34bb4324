// What changed in the prefix cache, for routers: numbered deltas in a bounded ring and a mirror for snapshots.
#pragma once

#include <cstdint>
#include <deque>
#include <list>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

#include "sluice/engine.h"

namespace sluice {

class KvLog {
 public:
  // `first_seq`: the number before the first delta. Take it from the clock, so that a reader of a former process asks for
  // a number below it and is told to take a snapshot. `max_records`: stored + removed entries the ring holds.
  KvLog(int64_t first_seq, size_t max_records);

  // Engine thread.
  void stored(KvBlockRecord record);
  void removed(uint64_t key);
  // Publishes what was told since the last call as one delta; false when there was nothing.
  bool flush();

  // Any thread.
  std::optional<std::vector<KvDelta>> since(int64_t seq) const;
  KvDelta snapshot() const;

 private:
  KvDelta pending_;
  size_t max_records_;

  mutable std::mutex mutex_;  // everything below
  int64_t seq_;
  std::deque<KvDelta> ring_;
  size_t ring_records_ = 0;
  // In order of insertion: a block enters after its parent and leaves before it, so parents come first.
  std::list<KvBlockRecord> mirror_;
  std::unordered_map<uint64_t, std::list<KvBlockRecord>::iterator> by_key_;
};

}  // namespace sluice
