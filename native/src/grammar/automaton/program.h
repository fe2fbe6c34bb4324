// The automaton artifact in memory. Format and meaning: src/grammar/automaton/README.md. Reading checks everything that
// following it relies on: whatever the bytes, no index leads outside.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

namespace sluice::grammar::automaton {

inline constexpr std::string_view kMagic = "SLUICEGA";
inline constexpr uint8_t kFormatVersion = 1;
inline constexpr uint32_t kNone = UINT32_MAX;   // no target, no limit, no frame

enum class Op : uint8_t { none, jump, call, ret, split, push, count, open, head, key, take };

struct Edge {
  uint8_t low;
  uint8_t high;
  uint32_t target;
};

// Arguments by op: jump (target), call (target, back), split (first, count into `targets`), push (head),
// count (min, max, body, exit), open (set, next), head (set, exit, more), key (set, low, high, other, next),
// take (set, member, next).
struct State {
  Op op = Op::none;
  uint16_t edge_count = 0;
  uint32_t first_edge = 0;
  uint32_t row = kNone;  // into `rows`: a target for each byte, where edges are many
  uint32_t args[5] = {};
};

// A set with what its decisions need (SetRules in src/grammar/automaton/sets.ts; the same rules).
class Set {
 public:
  uint32_t members() const { return static_cast<uint32_t>(order_.size()); }
  uint32_t width() const { return words_ + (counted_ ? 1 : 0); }
  bool may_end(const uint32_t* frame) const;
  bool may_grow(const uint32_t* frame) const;
  bool may_take(const uint32_t* frame, uint32_t member) const;
  bool may_take_in(const uint32_t* frame, uint32_t low, uint32_t high) const;
  bool may_take_other(const uint32_t* frame) const;
  void take(uint32_t* frame, uint32_t member) const;
  size_t memory_bytes() const;

 private:
  friend class Reader;
  void prepare();
  uint32_t required_left(const uint32_t* frame) const;
  uint32_t available(const uint32_t* frame) const;
  uint32_t effective(const uint32_t* frame) const { return frame[words_] >> 16 & 0x7fff; }

  bool ordered_ = false;
  bool others_ = false;
  bool counted_ = false;
  uint32_t words_ = 0;
  uint32_t min_ = 0;
  uint32_t max_ = kNone;
  std::vector<uint32_t> order_;  // of each member
  std::vector<uint8_t> required_, forbidden_;
  std::vector<uint32_t> by_order_, next_required_, required_from_, available_from_;
  std::vector<uint32_t> required_words_, allowed_words_;
};

class Program {
 public:
  // Throws std::runtime_error on bytes that are no artifact of this version.
  static Program read(std::span<const std::byte> bytes);

  uint32_t start() const { return start_; }
  const std::vector<State>& states() const { return states_; }
  const State& state(uint32_t id) const { return states_[id]; }
  const Set& set(uint32_t id) const { return sets_[id]; }
  std::span<const uint32_t> targets(const State& split) const {
    return std::span<const uint32_t>(targets_).subspan(split.args[0], split.args[1]);
  }
  std::span<const Edge> edges(const State& state) const {
    return std::span<const Edge>(edges_).subspan(state.first_edge, state.edge_count);
  }
  // Where `byte` leads from this state, kNone if nowhere.
  uint32_t next(const State& state, uint8_t byte) const {
    if (state.row != kNone) return rows_[size_t{state.row} * 256 + byte];
    const Edge* edge = edges_.data() + state.first_edge;
    for (const Edge* end = edge + state.edge_count; edge != end; ++edge) {
      if (byte < edge->low) return kNone;
      if (byte <= edge->high) return edge->target;
    }
    return kNone;
  }
  size_t memory_bytes() const;

 private:
  friend class Reader;
  void prepare_rows();

  uint32_t start_ = 0;
  std::vector<State> states_;
  std::vector<Edge> edges_;
  std::vector<uint32_t> targets_;
  std::vector<uint32_t> rows_;
  std::vector<Set> sets_;
};

}  // namespace sluice::grammar::automaton
