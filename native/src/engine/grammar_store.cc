#include "engine/grammar_store.h"

#include <stdexcept>

namespace sluice {

GrammarStore::GrammarStore(std::unique_ptr<grammar::Engine> engine, size_t max_bytes)
    : engine_(std::move(engine)), max_bytes_(max_bytes) {}

void GrammarStore::load(const std::string& hash, std::span<const std::byte> bytes) {
  if (!engine_) throw std::runtime_error("this engine has no grammar support: it was created without a vocabulary");
  if (has(hash)) return;
  auto artifact = engine_->load(bytes);
  const size_t size = artifact->memory_bytes();
  if (size > max_bytes_)
    throw std::runtime_error("the grammar takes " + std::to_string(size) + " bytes, the whole cache holds " +
                             std::to_string(max_bytes_));
  const std::lock_guard lock(mutex_);
  if (by_hash_.contains(hash)) return;
  entries_.push_front({.hash = hash, .artifact = std::move(artifact), .bytes = size});
  by_hash_.emplace(hash, entries_.begin());
  bytes_ += size;
  while (bytes_ > max_bytes_) {
    bytes_ -= entries_.back().bytes;
    by_hash_.erase(entries_.back().hash);
    entries_.pop_back();
  }
}

void GrammarStore::drop(const std::string& hash) {
  const std::lock_guard lock(mutex_);
  const auto found = by_hash_.find(hash);
  if (found == by_hash_.end()) return;
  bytes_ -= found->second->bytes;
  entries_.erase(found->second);
  by_hash_.erase(found);
}

bool GrammarStore::has(const std::string& hash) const {
  const std::lock_guard lock(mutex_);
  return by_hash_.contains(hash);
}

std::shared_ptr<const grammar::Artifact> GrammarStore::find(const std::string& hash) {
  const std::lock_guard lock(mutex_);
  const auto found = by_hash_.find(hash);
  if (found == by_hash_.end()) return nullptr;
  entries_.splice(entries_.begin(), entries_, found->second);
  return found->second->artifact;
}

}  // namespace sluice
