// Submitted generations that have no row yet: higher priority first, then first come, first served.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <utility>

#include "engine/generation.h"

namespace sluice {

class WaitingQueue {
 public:
  void push(std::unique_ptr<Generation> generation) {
    tokens_ += generation->known();
    const Key key{-int64_t{generation->request.priority}, next_order_++};
    waiting_.emplace(key, std::move(generation));
  }
  bool empty() const { return waiting_.empty(); }
  int32_t size() const { return static_cast<int32_t>(waiting_.size()); }
  int64_t tokens() const { return tokens_; }
  const Generation& front() const { return *waiting_.begin()->second; }
  std::unique_ptr<Generation> pop() { return take(waiting_.begin()); }

  // Takes out and returns the first that `matches`, or null. The queue is short: bounded by max_queued.
  template <typename Matches>
  std::unique_ptr<Generation> remove_if(Matches matches) {
    for (auto at = waiting_.begin(); at != waiting_.end(); ++at)
      if (matches(*at->second)) return take(at);
    return nullptr;
  }

 private:
  using Key = std::pair<int64_t, uint64_t>;
  using Map = std::map<Key, std::unique_ptr<Generation>>;
  std::unique_ptr<Generation> take(Map::iterator at) {
    auto generation = std::move(at->second);
    tokens_ -= generation->known();
    waiting_.erase(at);
    return generation;
  }
  Map waiting_;
  uint64_t next_order_ = 0;
  int64_t tokens_ = 0;
};

}  // namespace sluice
