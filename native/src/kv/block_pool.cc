#include "kv/block_pool.h"

namespace sluice {

BlockPool::BlockPool(int32_t n_blocks) : nodes_(n_blocks) {
  counts_.total = n_blocks;
  counts_.free = n_blocks;
  free_.reserve(n_blocks);
  // Popped from the back: low block ids first, so that a small load touches little memory.
  for (int32_t block = n_blocks - 1; block >= 0; --block) free_.push_back(block);
}

void BlockPool::unlink(int32_t block) {
  Node& node = nodes_[block];
  (node.prev >= 0 ? nodes_[node.prev].next : oldest_) = node.next;
  (node.next >= 0 ? nodes_[node.next].prev : newest_) = node.prev;
  node.prev = node.next = -1;
}

int32_t BlockPool::take(bool& evicted) {
  evicted = false;
  int32_t block = -1;
  if (!free_.empty()) {
    block = free_.back();
    free_.pop_back();
    --counts_.free;
  } else if (oldest_ >= 0) {
    block = oldest_;
    unlink(block);
    --counts_.cached;
    evicted = true;
  } else {
    return -1;
  }
  nodes_[block].state = State::leased;
  nodes_[block].refs = 1;
  ++counts_.leased;
  return block;
}

void BlockPool::retain(int32_t block) {
  Node& node = nodes_[block];
  if (node.state == State::cached) {
    unlink(block);
    node.state = State::leased;
    --counts_.cached;
    ++counts_.leased;
  }
  ++node.refs;
}

void BlockPool::drop(int32_t block, bool keep_content) {
  Node& node = nodes_[block];
  if (--node.refs > 0) return;
  --counts_.leased;
  if (!keep_content) {
    node.state = State::free;
    free_.push_back(block);
    ++counts_.free;
    return;
  }
  node.state = State::cached;
  node.prev = newest_;
  node.next = -1;
  (newest_ >= 0 ? nodes_[newest_].next : oldest_) = block;
  newest_ = block;
  ++counts_.cached;
}

BlockCounts BlockPool::recount() const {
  BlockCounts counts;
  counts.total = static_cast<int32_t>(nodes_.size());
  counts.free = static_cast<int32_t>(free_.size());
  for (int32_t block = oldest_; block >= 0; block = nodes_[block].next) ++counts.cached;
  for (const Node& node : nodes_) counts.leased += node.refs > 0 ? 1 : 0;
  return counts;
}

}  // namespace sluice
