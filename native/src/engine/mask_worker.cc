#include "engine/mask_worker.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <exception>

namespace sluice {

RowGrammar::RowGrammar(std::shared_ptr<const grammar::Artifact> artifact, int32_t grammar_vocab, int32_t vocab_size)
    : artifact_(std::move(artifact)),
      mask_((static_cast<size_t>(std::max(vocab_size, grammar_vocab)) + 31) / 32, 0),
      grammar_vocab_(grammar_vocab),
      padded_(vocab_size > grammar_vocab) {}

bool RowGrammar::allows_only(std::span<const Token> tokens) const {
  if (!constrained_) return false;
  size_t allowed = 0;
  for (const uint32_t word : mask_) allowed += static_cast<size_t>(std::popcount(word));
  size_t named = 0;
  for (const Token token : tokens) named += mask_[static_cast<size_t>(token) / 32] >> (token % 32) & 1;
  return allowed > 0 && allowed == named;
}

bool RowGrammar::claim() {
  int expected = queued;
  return state_.compare_exchange_strong(expected, running, std::memory_order_acquire);
}

RowGrammar::Outcome RowGrammar::join() {
  if (claim()) {
    run();
  } else {
    for (int state = state_.load(std::memory_order_acquire); state == running;
         state = state_.load(std::memory_order_acquire))
      state_.wait(running, std::memory_order_acquire);
  }
  return outcome_;
}

void RowGrammar::run() {
  const auto begin = std::chrono::steady_clock::now();
  try {
    if (!matcher_) matcher_ = artifact_->matcher();
    for (const Token token : to_accept_)
      if (outcome_ == Outcome::ready && !matcher_->accept(token)) outcome_ = Outcome::mismatch;
    to_accept_.clear();
    if (outcome_ == Outcome::ready) {
      const auto vocab = static_cast<size_t>(grammar_vocab_);
      const std::span<uint32_t> mask = std::span<uint32_t>(mask_).first((vocab + 31) / 32);
      constrained_ = matcher_->fill_mask(mask);
      if (!constrained_ && padded_) {
        std::ranges::fill(mask, ~uint32_t{0});
        constrained_ = true;
      }
      // The last word's bits past the vocabulary belong to nobody.
      if (constrained_ && vocab % 32 != 0) mask.back() &= (uint32_t{1} << (vocab % 32)) - 1;
      may_end_ = matcher_->completed();
    }
  } catch (const std::exception& error) {
    outcome_ = Outcome::failed;
    failure_ = error.what();
  }
  job_ms_ = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
  state_.store(done, std::memory_order_release);
  state_.notify_all();
}

MaskWorkers::MaskWorkers(int32_t n_threads) {
  for (int32_t i = 0; i < n_threads; ++i) threads_.emplace_back([this] { work(); });
}

MaskWorkers::~MaskWorkers() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void MaskWorkers::start(const std::shared_ptr<RowGrammar>& row, std::vector<Token> tokens) {
  row->to_accept_ = std::move(tokens);
  row->state_.store(RowGrammar::queued, std::memory_order_release);
  {
    const std::lock_guard lock(mutex_);
    jobs_.push_back(row);
  }
  wake_.notify_one();
}

void MaskWorkers::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
    if (stopping_) return;
    const std::shared_ptr<RowGrammar> row = std::move(jobs_.front());
    jobs_.pop_front();
    lock.unlock();
    if (row->claim()) row->run();
    lock.lock();
  }
}

}  // namespace sluice
