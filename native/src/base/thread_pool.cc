#include "base/thread_pool.h"

#include <sched.h>

#include <stdexcept>
#include <string>

namespace sluice {

namespace {

constexpr uint64_t kTaskMask = (1u << 20) - 1;

// About 30 us on current x86: longer than the serial stretches between two regions of a step, shorter than what a
// neighbour on a shared core would notice.
constexpr int kSpins = 1500;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int n_threads) {
  if (n_threads < 1 || n_threads > 256) throw std::runtime_error("threads must be 1..256, not " + std::to_string(n_threads));
  for (int thread = 1; thread < n_threads; ++thread) workers_.emplace_back([this, thread] { work(thread); });
}

ThreadPool::~ThreadPool() {
  stopping_.store(true);
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(int n_tasks, Call call, const void* context) {
  if (n_tasks <= 0) return;
  call_ = call;
  context_ = context;
  unfinished_.store(n_tasks, std::memory_order_relaxed);
  const uint64_t region = (ticket_.load(std::memory_order_relaxed) >> 40) + 1;
  ticket_.store(region << 40 | static_cast<uint64_t>(n_tasks) << 20, std::memory_order_release);
  // Sequentially consistent on both sides: either the worker's last look sees this epoch, or we see it sleeping.
  epoch_.fetch_add(1);
  if (sleeping_.load() > 0) epoch_.notify_all();
  claim_and_run(0);
  int spins = 0;
  for (int32_t left; (left = unfinished_.load(std::memory_order_acquire)) != 0; ++spins) {
    if (spins < kSpins) {
      pause();
    } else if (spins < kSpins + 100) {
      ::sched_yield();  // a worker may be waiting for this very core
    } else {
      unfinished_.wait(left, std::memory_order_acquire);
    }
  }
}

void ThreadPool::claim_and_run(int thread) {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  for (;;) {
    const auto task = static_cast<int>(ticket & kTaskMask);
    const auto n_tasks = static_cast<int>(ticket >> 20 & kTaskMask);
    if (task >= n_tasks) return;
    if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acquire)) continue;
    call_(context_, task, thread);
    if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1) unfinished_.notify_one();
    ticket = ticket_.load(std::memory_order_acquire);
  }
}

void ThreadPool::work(int thread) {
  int32_t seen = 0;
  for (;;) {
    int32_t now = epoch_.load();
    for (int spins = 0; now == seen && spins < kSpins; ++spins) {
      pause();
      now = epoch_.load(std::memory_order_acquire);
    }
    if (now == seen) {
      sleeping_.fetch_add(1);
      epoch_.wait(seen);
      sleeping_.fetch_sub(1);
      now = epoch_.load();
    }
    seen = now;
    if (stopping_.load()) return;
    claim_and_run(thread);
  }
}

}  // namespace sluice
