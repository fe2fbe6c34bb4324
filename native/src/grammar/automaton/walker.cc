#include "grammar/automaton/walker.h"

#include <algorithm>

namespace sluice::grammar::automaton {

void Walker::start(std::vector<Configuration>& out) {
  found_ = out.size();
  steps_ = 0;
  follow(out, program_.start(), 0, 0);
}

void Walker::step(std::vector<Configuration>& out, size_t first, size_t last, uint8_t byte) {
  found_ = out.size();
  steps_ = 0;
  for (size_t i = first; i < last; ++i) {
    const Configuration from = out[i];
    const uint32_t next = program_.next(program_.state(from.state), byte);
    if (next == kNone) continue;
    const State& state = program_.state(next);
    if (state.op == Op::none && last - first == 1) {
      // The usual case: one configuration, and only bytes to come.
      ++steps_;
      if (state.edge_count > 0 || next == 0) out.push_back({next, from.stack});
      return;
    }
    follow(out, next, from.stack, 0);
  }
}

void Walker::follow(std::vector<Configuration>& out, uint32_t id, uint32_t stack, int depth) {
  if (depth > kMaxNestedSplits) return;
  while (steps_++ < kMaxSilentSteps) {
    const State& state = program_.state(id);
    if ((state.edge_count > 0 || id == 0) && !add(out, id, stack)) return;
    const uint32_t* a = state.args;
    switch (state.op) {
      case Op::none: return;
      case Op::jump: id = a[0]; break;
      case Op::call:
        stack = frames_.push(stack, a[1], 0);
        id = a[0];
        break;
      case Op::ret:
        touch(frames_[stack].depth);
        id = stack == 0 ? 0 : frames_[stack].state;
        stack = frames_[stack].below;
        break;
      case Op::split:
        for (const uint32_t target : program_.targets(state)) follow(out, target, stack, depth + 1);
        return;
      case Op::push:
        stack = frames_.push(stack, a[0], 0);
        id = a[0];
        break;
      case Op::count: {
        touch(frames_[stack].depth);
        if (stack == 0) return;
        const Frame top = frames_[stack];
        if (top.value < a[1]) {
          const uint32_t next = std::min(top.value + 1, a[1] == kNone ? a[0] : a[1]);
          follow(out, a[2], frames_.push(top.below, top.state, next), depth + 1);
        }
        if (top.value < a[0]) return;
        stack = top.below;
        id = a[3];
        break;
      }
      case Op::open:
        for (uint32_t i = program_.set(a[0]).width(); i > 0; --i) stack = frames_.push(stack, id, 0);
        id = a[1];
        break;
      case Op::head: {
        const Set& set = program_.set(a[0]);
        const uint32_t below = view(stack, set.width());
        if (below == kNone) return;
        const bool grows = set.may_grow(values_.data());
        if (set.may_end(values_.data())) follow(out, a[1], below, depth + 1);
        if (!grows) return;
        id = a[2];
        break;
      }
      case Op::key: {
        const Set& set = program_.set(a[0]);
        if (view(stack, set.width()) == kNone) return;
        if (!set.may_take_in(values_.data(), a[1], a[2]) && !(a[3] == 1 && set.may_take_other(values_.data()))) return;
        id = a[4];
        break;
      }
      case Op::take: {
        const Set& set = program_.set(a[0]);
        const uint32_t below = view(stack, set.width());
        if (below == kNone) return;
        const bool allowed =
            a[1] == set.members() ? set.may_take_other(values_.data()) : set.may_take(values_.data(), a[1]);
        if (!allowed) return;
        const uint32_t owner = frames_[stack].state;
        set.take(values_.data(), a[1]);
        stack = below;
        for (uint32_t i = 0; i < set.width(); ++i) stack = frames_.push(stack, owner, values_[i]);
        id = a[2];
        break;
      }
    }
  }
}

bool Walker::add(std::vector<Configuration>& out, uint32_t state, uint32_t stack) {
  for (size_t i = found_; i < out.size(); ++i)
    if (out[i].state == state && frames_.same(out[i].stack, stack)) return false;
  if (out.size() - found_ >= kMaxConfigurations) return false;
  out.push_back({state, stack});
  return true;
}

uint32_t Walker::view(uint32_t stack, uint32_t width) {
  values_.resize(std::max<size_t>(width, 1));
  for (uint32_t i = width; i-- > 0;) {
    touch(frames_[stack].depth);
    if (stack == 0) return kNone;
    values_[i] = frames_[stack].value;
    stack = frames_[stack].below;
  }
  return stack;
}

}  // namespace sluice::grammar::automaton
