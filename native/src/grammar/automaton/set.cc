// Which members of a set may still come; the rules are those of src/grammar/automaton/sets.ts, line by line.
#include <algorithm>
#include <bit>

#include "grammar/automaton/program.h"

namespace sluice::grammar::automaton {
namespace {

constexpr uint32_t kOtherUsed = uint32_t{1} << 31;

bool seen(const uint32_t* frame, uint32_t member) { return (frame[member / 32] >> (member % 32) & 1) != 0; }

}  // namespace

void Set::prepare() {
  const uint32_t n = members();
  words_ = ordered_ ? 1 : (n + 31) / 32;
  next_required_.assign(n + 1, n);
  required_from_.assign(n + 1, 0);
  available_from_.assign(n + 1, 0);
  for (uint32_t at = n; at-- > 0;) {
    const uint32_t member = by_order_[at];
    next_required_[at] = required_[member] ? at : next_required_[at + 1];
    required_from_[at] = required_from_[at + 1] + required_[member];
    available_from_[at] = available_from_[at + 1] + (forbidden_[member] ? 0 : 1);
  }
  required_words_.assign((n + 31) / 32, 0);
  allowed_words_.assign((n + 31) / 32, 0);
  for (uint32_t k = 0; k < n; ++k) {
    required_words_[k / 32] |= uint32_t{required_[k]} << (k % 32);
    allowed_words_[k / 32] |= uint32_t{!forbidden_[k]} << (k % 32);
  }
}

bool Set::may_end(const uint32_t* frame) const {
  return required_left(frame) == 0 && (!counted_ || effective(frame) >= min_);
}

bool Set::may_grow(const uint32_t* frame) const {
  if (may_take_other(frame)) return true;
  const uint32_t n = members();
  if (!ordered_) return may_take_in(frame, 0, n);
  // A frame's place may be any number in an artifact of somebody else's.
  const uint32_t from = std::min(frame[0], n);
  for (uint32_t at = from; at < n && at <= next_required_[from]; ++at)
    if (may_take(frame, by_order_[at])) return true;
  return false;
}

bool Set::may_take_in(const uint32_t* frame, uint32_t low, uint32_t high) const {
  for (uint32_t k = low; k < high; ++k) {
    // Whole words of members that have come.
    if (!ordered_ && k % 32 == 0 && (allowed_words_[k / 32] & ~frame[k / 32]) == 0) {
      k += 31;
      continue;
    }
    if (may_take(frame, k)) return true;
  }
  return false;
}

bool Set::may_take(const uint32_t* frame, uint32_t member) const {
  if (forbidden_[member]) return false;
  const uint32_t order = order_[member];
  if (ordered_) {
    const uint32_t from = std::min(frame[0], members());
    if (order < from || order > next_required_[from]) return false;
  } else if (seen(frame, member)) {
    return false;
  }
  if (!counted_) return true;
  const uint32_t count = frame[words_];
  const uint32_t left = required_left(frame);
  const uint32_t required_after = left - std::min<uint32_t>(left, required_[member]);
  if (max_ != kNone && (count & 0xffff) + 1 + required_after > max_) return false;
  const uint32_t after = ordered_ ? available_from_[order + 1] : available(frame) - 1;
  return effective(frame) + 1 + after + (others_ && count < kOtherUsed ? 1 : 0) >= min_;
}

bool Set::may_take_other(const uint32_t* frame) const {
  if (!others_) return false;
  if (ordered_ && next_required_[std::min(frame[0], members())] != members()) return false;
  if (!counted_) return true;
  const uint32_t count = frame[words_];
  const uint32_t counts = effective(frame) + (count < kOtherUsed ? 1 : 0);
  const uint32_t wanted = min_ > counts ? min_ - counts : 0;
  if (max_ != kNone && (count & 0xffff) + 1 + std::max(required_left(frame), wanted) > max_) return false;
  return counts + (ordered_ ? 0 : available(frame)) >= min_;
}

void Set::take(uint32_t* frame, uint32_t member) const {
  const bool other = member == members();
  const uint32_t count = counted_ ? frame[words_] : 0;
  const bool used = count >= kOtherUsed;
  const uint32_t counts = std::min(min_, (count >> 16 & 0x7fff) + (other && used ? 0u : 1u));
  if (ordered_) frame[0] = other ? members() : order_[member] + 1;
  else if (!other) frame[member / 32] |= uint32_t{1} << (member % 32);
  if (counted_)
    frame[words_] = (max_ == kNone ? 0 : ((count & 0xffff) + 1) & 0xffff) | counts << 16 | (used || other ? kOtherUsed : 0);
}

uint32_t Set::required_left(const uint32_t* frame) const {
  if (ordered_) return required_from_[std::min(frame[0], members())];
  uint32_t count = 0;
  for (size_t i = 0; i < required_words_.size(); ++i)
    count += static_cast<uint32_t>(std::popcount(required_words_[i] & ~frame[i]));
  return count;
}

uint32_t Set::available(const uint32_t* frame) const {
  uint32_t count = 0;
  for (size_t i = 0; i < allowed_words_.size(); ++i)
    count += static_cast<uint32_t>(std::popcount(allowed_words_[i] & ~frame[i]));
  return count;
}

size_t Set::memory_bytes() const {
  return sizeof(Set) + order_.size() * 10 + (by_order_.size() + next_required_.size() * 3 + required_words_.size() * 2) * 4;
}

}  // namespace sluice::grammar::automaton
