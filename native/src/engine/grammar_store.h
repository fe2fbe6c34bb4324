// Grammars by hash, bounded by bytes, least recently used out first. Any thread.
#pragma once

#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>

#include "grammar/matcher.h"

namespace sluice {

class GrammarStore {
 public:
  GrammarStore(std::unique_ptr<grammar::Engine> engine, size_t max_bytes);

  // Throws std::runtime_error on bytes that are no artifact. Deserialises outside the lock.
  void load(const std::string& hash, std::span<const std::byte> bytes);
  void drop(const std::string& hash);
  bool has(const std::string& hash) const;
  // Null when unknown. Generations keep what they use alive beyond its place in the cache.
  std::shared_ptr<const grammar::Artifact> find(const std::string& hash);

 private:
  struct Entry {
    std::string hash;
    std::shared_ptr<const grammar::Artifact> artifact;
    size_t bytes;
  };
  std::unique_ptr<grammar::Engine> engine_;
  size_t max_bytes_;
  mutable std::mutex mutex_;
  std::list<Entry> entries_;  // most recently used first
  std::unordered_map<std::string, std::list<Entry>::iterator> by_hash_;
  size_t bytes_ = 0;
};

}  // namespace sluice
