#include "grammar/automaton/program.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace sluice::grammar::automaton {
namespace {

constexpr uint32_t kMaxCount = 0x7fff;
constexpr uint32_t kMaxNumber = 0x7fffffff;
constexpr size_t kManyEdges = 6;
constexpr size_t kMaxRows = 4096;  // 4 MiB

[[noreturn]] void fault(const char* what) { throw std::runtime_error(std::string("grammar artifact: ") + what); }

}  // namespace

class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  Program read() {
    for (const char c : kMagic)
      if (byte() != static_cast<uint8_t>(c)) fault("not an automaton");
    if (byte() != kFormatVersion) fault("another version of the automaton format");
    // A state and a set take at least a byte each, so these bounds keep memory in proportion to the input.
    const auto limit = static_cast<uint32_t>(std::min<size_t>(bytes_.size(), kMaxNumber / 4));
    state_count_ = number(limit);
    set_count_ = number(limit);
    if (state_count_ == 0) fault("no states");
    Program program;
    program.start_ = number(state_count_ - 1);
    program.sets_.reserve(set_count_);
    for (uint32_t i = 0; i < set_count_; ++i) program.sets_.push_back(set(limit));
    program.states_.reserve(state_count_);
    for (uint32_t i = 0; i < state_count_; ++i) program.states_.push_back(state(program, i));
    if (at_ != bytes_.size()) fault("bytes after the last state");
    if (program.states_[0].op != Op::none || program.states_[0].edge_count != 0) fault("state 0 is not the end");
    program.prepare_rows();
    return program;
  }

 private:
  uint8_t byte() {
    if (at_ >= bytes_.size()) fault("ends too early");
    return static_cast<uint8_t>(bytes_[at_++]);
  }

  // LEB128, at most `limit`.
  uint32_t number(uint32_t limit) {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const uint8_t part = byte();
      value |= uint64_t{part & 0x7fu} << shift;
      if (value > limit) fault("a number is out of bounds");
      if (part < 0x80) return static_cast<uint32_t>(value);
      if (shift >= 28) fault("a number is too long");
    }
  }

  // One more than the limit; 0 = none.
  uint32_t limit(uint32_t most) {
    const uint32_t value = number(most + 1);
    return value == 0 ? kNone : value - 1;
  }

  uint32_t target(uint32_t from) {
    const uint32_t value = number(state_count_ * 2);
    const int64_t to = value % 2 == 0 ? int64_t{from} + value / 2 : int64_t{from} - (int64_t{value} + 1) / 2;
    if (to < 0 || to >= state_count_) fault("a target is out of bounds");
    return static_cast<uint32_t>(to);
  }

  Set set(uint32_t most) {
    Set set;
    const uint8_t flags = byte();
    if (flags > 7) fault("unknown set flags");
    set.ordered_ = (flags & 1) != 0;
    set.others_ = (flags & 2) != 0;
    set.counted_ = (flags & 4) != 0;
    const uint32_t count = number(most);
    set.min_ = number(kMaxCount);
    set.max_ = limit(kMaxCount);
    set.by_order_.assign(count, kNone);
    for (uint32_t i = 0; i < count; ++i) {
      const uint32_t value = number(count * 4 - 1);
      const uint32_t order = value >> 2;
      if (set.by_order_[order] != kNone) fault("two members in one place");
      set.by_order_[order] = i;
      set.order_.push_back(order);
      set.required_.push_back(value >> 1 & 1);
      set.forbidden_.push_back(value & 1);
    }
    set.prepare();
    return set;
  }

  State state(Program& program, uint32_t id) {
    const uint8_t head = byte();
    if ((head & 15) > static_cast<uint8_t>(Op::take)) fault("unknown op");
    State state;
    state.op = static_cast<Op>(head & 15);
    state.edge_count = static_cast<uint16_t>(head >> 4 == 15 ? number(256) : head >> 4);
    state.first_edge = static_cast<uint32_t>(program.edges_.size());
    uint32_t next = 0;
    for (uint32_t i = 0; i < state.edge_count; ++i) {
      const uint32_t low = byte();
      const uint32_t high = low + byte();
      if (low < next || high > 255) fault("edges out of order");
      next = high + 1;
      program.edges_.push_back({static_cast<uint8_t>(low), static_cast<uint8_t>(high), target(id)});
    }
    uint32_t* a = state.args;
    switch (state.op) {
      case Op::none:
      case Op::ret: break;
      case Op::jump:
      case Op::push: a[0] = target(id); break;
      case Op::call: a[0] = target(id), a[1] = target(id); break;
      case Op::split:
        a[0] = static_cast<uint32_t>(program.targets_.size());
        a[1] = number(state_count_);
        for (uint32_t i = 0; i < a[1]; ++i) program.targets_.push_back(target(id));
        break;
      case Op::count:
        a[0] = number(kMaxNumber), a[1] = limit(kMaxNumber), a[2] = target(id), a[3] = target(id);
        break;
      case Op::open: a[0] = set_id(), a[1] = target(id); break;
      case Op::head: a[0] = set_id(), a[1] = target(id), a[2] = target(id); break;
      case Op::key: {
        a[0] = set_id();
        const uint32_t members = program.sets_[a[0]].members();
        a[1] = number(members), a[2] = number(members), a[3] = number(1), a[4] = target(id);
        if (a[1] > a[2]) fault("key range out of bounds");
        break;
      }
      case Op::take: a[0] = set_id(), a[1] = number(program.sets_[a[0]].members()), a[2] = target(id); break;
    }
    return state;
  }

  uint32_t set_id() {
    if (set_count_ == 0) fault("no sets");
    return number(set_count_ - 1);
  }

  std::span<const std::byte> bytes_;
  size_t at_ = 0;
  uint32_t state_count_ = 0;
  uint32_t set_count_ = 0;
};

Program Program::read(std::span<const std::byte> bytes) { return Reader(bytes).read(); }

void Program::prepare_rows() {
  size_t rows = 0;
  for (State& state : states_) {
    if (state.edge_count <= kManyEdges || rows == kMaxRows) continue;
    state.row = static_cast<uint32_t>(rows++);
    rows_.resize(rows * 256, kNone);
    uint32_t* row = rows_.data() + (rows - 1) * 256;
    for (const Edge& edge : edges(state)) std::fill(row + edge.low, row + edge.high + 1, edge.target);
  }
}

size_t Program::memory_bytes() const {
  size_t bytes = states_.size() * sizeof(State) + edges_.size() * sizeof(Edge) + (targets_.size() + rows_.size()) * 4;
  for (const Set& set : sets_) bytes += set.memory_bytes();
  return bytes;
}

}  // namespace sluice::grammar::automaton
