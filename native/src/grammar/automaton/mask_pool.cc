#include "grammar/automaton/mask_pool.h"

namespace sluice::grammar::automaton {

std::shared_ptr<const Mask> MaskPool::find(const MaskKey& key) {
  const std::lock_guard lock(mutex_);
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return nullptr;
  entries_.splice(entries_.begin(), entries_, found->second);
  return found->second->mask;
}

void MaskPool::add(const MaskKey& key, std::shared_ptr<const Mask> mask) {
  const size_t size = cost(key, *mask);
  if (size > max_bytes_) return;
  const std::lock_guard lock(mutex_);
  const auto [place, fresh] = by_key_.try_emplace(key);
  if (!fresh) return;
  entries_.push_front({&place->first, std::move(mask)});
  place->second = entries_.begin();
  bytes_ += size;
  while (bytes_ > max_bytes_) {
    const Entry& last = entries_.back();
    bytes_ -= cost(*last.key, *last.mask);
    by_key_.erase(by_key_.find(*last.key));
    entries_.pop_back();
  }
}

}  // namespace sluice::grammar::automaton
