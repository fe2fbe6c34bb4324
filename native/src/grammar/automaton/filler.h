// Fills masks: walks the vocabulary's trie with a program's configurations.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <unordered_map>
#include <vector>

#include "grammar/automaton/mask_pool.h"
#include "grammar/automaton/program.h"
#include "grammar/automaton/text_loops.h"
#include "grammar/automaton/vocabulary_trie.h"
#include "grammar/automaton/walker.h"

namespace sluice::grammar::automaton {

// What all matchers of one artifact share. Immutable but for the pool, which has a lock of its own, and `reaches`.
class Shared {
 public:
  Shared(Program program, std::shared_ptr<const VocabularyTrie> trie, std::shared_ptr<MaskPool> pool);

  const Program program;
  const std::vector<TextLoop> loops;
  const std::shared_ptr<const VocabularyTrie> trie;
  const std::shared_ptr<MaskPool> pool;
  const uint32_t number;  // of the artifact within the process

  // How far below the first configuration's top frame masks of this first state have looked so far.
  std::vector<int32_t> reaches(uint32_t state) const;
  void add_reach(uint32_t state, int32_t reach);

 private:
  mutable std::mutex mutex_;
  std::unordered_map<uint32_t, std::vector<int32_t>> reaches_;
};

class Filler {
 public:
  Filler(Shared& shared, Frames& frames) : shared_(shared), frames_(frames), walker_(shared.program, frames) {}

  // ORs into `mask` every token that the configurations allow. `frames` is as before when it returns.
  void fill(std::span<const Configuration> now, std::span<uint32_t> mask);

 private:
  // A slice whose tokens need no walk.
  struct SliceUse {
    int slice = -1;
    size_t configuration = 0;
    uint32_t characters = 0;  // that may still come; kNone: any number
  };
  SliceUse slice_use(std::span<const Configuration> now) const;
  // What the mask depends on, where frames matter down to `reach` below the top of the first configuration's stack.
  void key_of(std::span<const Configuration> now, const SliceUse& use, int32_t reach, MaskKey& key) const;
  uint32_t key_value(const Frame& frame, uint32_t longest) const;
  // Adds to `allowed_` every token below nodes [first, last) of the trie; found_[base, base + count) stands above them, at
  // `depth`. `slices`: the trie is the whole one.
  void walk(const Trie& trie, uint32_t first, uint32_t last, size_t depth, size_t base, size_t count, bool slices);
  // Adds what of node `i`'s branch a slice says without a walk, and walks the rest of it. False where no slice does.
  bool take_branch(uint32_t i, size_t base, size_t count);

  Shared& shared_;
  Frames& frames_;
  Walker walker_;
  std::vector<Configuration> found_;
  std::vector<int32_t> allowed_;
  MaskKey key_;
};

}  // namespace sluice::grammar::automaton
