#include "grammar/automaton/filler.h"

#include <algorithm>
#include <atomic>

namespace sluice::grammar::automaton {
namespace {

constexpr size_t kMaxReaches = 8;
constexpr uint32_t kEndOfStack = kNone - 1;
constexpr uint32_t kBelow = kNone - 2;
constexpr int32_t kNothing = INT32_MIN;  // a reach: no frame was looked at
// With more, what kMaxConfigurations leaves out along a token could be what the slice relies on.
constexpr size_t kMaxBesideSlice = 8;

uint32_t next_number() {
  static std::atomic<uint32_t> next{0};
  return next.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

Shared::Shared(Program loaded, std::shared_ptr<const VocabularyTrie> vocabulary, std::shared_ptr<MaskPool> masks)
    : program(std::move(loaded)),
      loops(find_text_loops(program)),
      trie(std::move(vocabulary)),
      pool(std::move(masks)),
      number(next_number()) {}

std::vector<int32_t> Shared::reaches(uint32_t state) const {
  const std::lock_guard lock(mutex_);
  const auto found = reaches_.find(state);
  return found == reaches_.end() ? std::vector<int32_t>{} : found->second;
}

void Shared::add_reach(uint32_t state, int32_t reach) {
  const std::lock_guard lock(mutex_);
  std::vector<int32_t>& known = reaches_[state];
  if (std::ranges::find(known, reach) != known.end()) return;
  if (known.size() == kMaxReaches) known.erase(known.begin());
  known.push_back(reach);
}

Filler::SliceUse Filler::slice_use(std::span<const Configuration> now) const {
  SliceUse counted;
  if (now.size() > kMaxBesideSlice) return counted;
  bool alone = true;
  for (size_t i = 0; i < now.size(); ++i) {
    const TextLoop& loop = shared_.loops[now[i].state];
    if (loop.slice < 0) continue;
    if (loop.count == kNone) return {loop.slice, i, kNone};
    if (now[i].stack == 0) continue;
    alone = counted.slice < 0;
    // The counter holds the character that is about to come already.
    const uint32_t max = shared_.program.state(loop.count).args[1];
    const uint32_t value = frames_[now[i].stack].value;
    counted = {loop.slice, i, max == kNone ? kNone : max >= value ? max - value + 1 : 0};
  }
  if (counted.slice < 0 || counted.characters == kNone) return counted;
  // What this one may not take any more, another might.
  for (size_t i = 0; alone && i < now.size(); ++i)
    if (i != counted.configuration) alone = !shared_.loops[now[i].state].takes[counted.slice];
  return alone ? counted : SliceUse{};
}

// A counter far from both its limits acts alike whatever it holds: no token has more than `longest` characters.
uint32_t Filler::key_value(const Frame& frame, uint32_t longest) const {
  const State& owner = shared_.program.state(frame.state);
  if (owner.op != Op::count) return frame.value;
  const uint32_t min = owner.args[0];
  const uint32_t max = owner.args[1];
  const uint32_t wanted = std::min(longest, min > frame.value ? min - frame.value : 0);
  const uint32_t left = max == kNone ? longest : std::min(longest, max > frame.value ? max - frame.value : 0);
  return wanted << 16 | left;
}

void Filler::key_of(std::span<const Configuration> now, const SliceUse& use, int32_t reach, MaskKey& key) const {
  const VocabularyTrie& trie = *shared_.trie;
  const uint32_t longest = std::min(trie.longest + 1, 0x7fffu);
  const auto low = static_cast<int64_t>(frames_[now[0].stack].depth) - reach;
  key.clear();
  key.push_back(shared_.number);
  std::vector<uint32_t> rests;
  for (size_t i = 0; i < now.size(); ++i) {
    key.push_back(now[i].state);
    uint32_t at = now[i].stack;
    // In the slice's own state only tokens of its rest are walked, and those leave the string sooner.
    uint32_t most = use.slice >= 0 && use.configuration == i && use.characters != kNone
                        ? std::min(longest, trie.slices[use.slice].rest_characters + 1)
                        : longest;
    for (; at != 0 && frames_[at].depth >= low; at = frames_[at].below) {
      key.push_back(frames_[at].state);
      key.push_back(key_value(frames_[at], most));
      most = longest;
    }
    key.push_back(at == 0 && low <= 0 ? kEndOfStack : kBelow);
    // Which configurations stand on one and the same rest of the stack decides which become equal later.
    if (now.size() > 1 && at != 0) {
      size_t same = 0;
      while (same < rests.size() && !frames_.same(rests[same], at)) ++same;
      key.push_back(static_cast<uint32_t>(same));
      rests.push_back(at);
    }
  }
}

void Filler::fill(std::span<const Configuration> now, std::span<uint32_t> mask) {
  if (now.empty()) return;
  const SliceUse use = slice_use(now);
  if (use.slice >= 0) {
    const auto& within = shared_.trie->slices[use.slice].within;
    const std::vector<uint32_t>& words = within[std::min<size_t>(use.characters, within.size() - 1)];
    for (size_t i = 0; i < words.size(); ++i) mask[i] |= words[i];
  }
  const auto apply = [&](const Mask& found) {
    for (const int32_t id : found.ids) mask[static_cast<size_t>(id) / 32] |= uint32_t{1} << (id % 32);
    for (size_t i = 0; i < found.words.size(); ++i) mask[i] |= found.words[i];
  };
  const std::vector<int32_t> reaches = shared_.reaches(now[0].state);
  for (const int32_t reach : reaches) {
    key_of(now, use, reach, key_);
    if (const auto known = shared_.pool->find(key_)) return apply(*known);
  }
  allowed_.clear();
  walker_.reset_low();
  const size_t frames_before = frames_.size();
  found_.assign(now.begin(), now.end());
  const Trie& trie = use.slice < 0 ? shared_.trie->all : shared_.trie->slices[use.slice].rest;
  walk(trie, 0, static_cast<uint32_t>(trie.nodes.size()), 0, 0, now.size(), use.slice < 0);
  frames_.drop_to(frames_before);
  auto made = std::make_shared<Mask>();
  if (allowed_.size() <= mask.size() / 2) {
    made->ids = allowed_;
  } else {
    made->words.assign(mask.size(), 0);
    for (const int32_t id : allowed_) made->words[static_cast<size_t>(id) / 32] |= uint32_t{1} << (id % 32);
  }
  apply(*made);
  const auto top = static_cast<int64_t>(frames_[now[0].stack].depth);
  const auto reach = walker_.low() == kNone ? kNothing : static_cast<int32_t>(top - walker_.low());
  key_of(now, use, reach, key_);
  shared_.add_reach(now[0].state, reach);
  shared_.pool->add(key_, std::move(made));
}

void Filler::walk(const Trie& trie, uint32_t first, uint32_t last, size_t depth, size_t base, size_t count, bool slices) {
  struct Level {
    size_t first, end, frames;
  };
  std::vector<Level> levels(depth + 1);
  levels[depth] = {base, base + count, frames_.size()};
  const Program& program = shared_.program;
  for (uint32_t i = first; i < last;) {
    const TrieNode& node = trie.nodes[i];
    const Level above = levels[node.depth - 1];
    Level here{above.end, above.end, above.frames};
    const Configuration* only = above.end - above.first == 1 ? &found_[above.first] : nullptr;
    const uint32_t next = only != nullptr ? program.next(program.state(only->state), node.byte) : 0;
    if (next == kNone) {
      i = node.end;
      continue;
    }
    if (levels.size() <= node.depth) levels.resize(node.depth + size_t{1});
    if (only != nullptr && program.state(next).op == Op::none) {
      // The usual case: one configuration, and only bytes to come.
      if (program.state(next).edge_count == 0 && next != 0) {
        i = node.end;
        continue;
      }
      const Configuration to{next, only->stack};
      if (found_.size() <= here.first) found_.resize(here.first + 1);
      found_[here.first] = to;
      here.end = here.first + 1;
    } else {
      // What the last branch left behind.
      found_.resize(above.end);
      frames_.drop_to(above.frames);
      walker_.step(found_, above.first, above.end, node.byte);
      if (found_.size() == above.end) {
        i = node.end;
        continue;
      }
      here.end = found_.size();
      here.frames = frames_.size();
    }
    levels[node.depth] = here;
    for (uint32_t t = 0; t < node.tokens; ++t) allowed_.push_back(trie.tokens[node.token + t]);
    if (slices && node.end > i + 1 && take_branch(i, here.first, here.end - here.first)) {
      i = node.end;
      continue;
    }
    ++i;
  }
}

bool Filler::take_branch(uint32_t i, size_t base, size_t count) {
  if (count == 1 && shared_.loops[found_[base].state].slice < 0) return false;
  const SliceUse use = slice_use(std::span<const Configuration>(found_).subspan(base, count));
  if (use.slice < 0) return false;
  const Trie& all = shared_.trie->all;
  const Slice& slice = shared_.trie->slices[use.slice];
  const TrieNode& node = all.nodes[i];
  // Tokens of the slice strictly below the node; those that end at it are in the mask already.
  const uint32_t first = slice.first[i + 1];
  const uint32_t last = slice.first[node.end];
  if (first == last) return false;
  uint32_t before = 0;
  if (use.characters != kNone) before = shared_.trie->path_characters[i];
  for (uint32_t t = first; t < last; ++t)
    if (use.characters == kNone || slice.characters[t] - before <= use.characters) allowed_.push_back(slice.tokens[t]);
  const uint32_t rest = slice.in_rest[i];
  if (rest != kNoNode) {
    // What the walk above left behind the configurations is no longer needed; the frames of theirs are.
    found_.resize(base + count);
    const size_t frames = frames_.size();
    walk(slice.rest, rest + 1, slice.rest.nodes[rest].end, node.depth, base, count, false);
    frames_.drop_to(frames);
  }
  return true;
}

}  // namespace sluice::grammar::automaton
