// Which KV blocks are free, cached or leased. Freed blocks with reusable content stay where they are and are revived for
// nothing until the space is needed (the idea of nano-vllm's block manager).
#pragma once

#include <cstdint>
#include <vector>

#include "sluice/engine.h"

namespace sluice {

class BlockPool {
 public:
  explicit BlockPool(int32_t n_blocks);

  // A block with one reference: a free one, else the least recently used cached one. -1 when all are leased.
  // `evicted` tells that the block's old content must be forgotten by whoever indexes it.
  int32_t take(bool& evicted);
  // One more reference to a cached or leased block.
  void retain(int32_t block);
  // One reference less. The last one makes the block cached (most recently used) or free.
  void drop(int32_t block, bool keep_content);

  bool is_cached(int32_t block) const { return nodes_[block].state == State::cached; }
  int32_t refs(int32_t block) const { return nodes_[block].refs; }
  int32_t available() const { return counts_.free + counts_.cached; }
  const BlockCounts& counts() const { return counts_; }
  // Counts the blocks one by one; equals counts() unless the accounting is broken.
  BlockCounts recount() const;

 private:
  enum class State : uint8_t { free, cached, leased };
  struct Node {
    int32_t refs = 0;
    int32_t prev = -1;  // in the list of cached blocks, oldest first
    int32_t next = -1;
    State state = State::free;
  };
  void unlink(int32_t block);

  std::vector<Node> nodes_;
  std::vector<int32_t> free_;
  int32_t oldest_ = -1;
  int32_t newest_ = -1;
  BlockCounts counts_;
};

}  // namespace sluice
