// Threads for the inside of one step. The caller always works too, and tasks are claimed from a counter: a thread that
// the system has taken off its core holds back nothing but the task it already claimed. Between steps workers sleep.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace sluice {

class ThreadPool {
 public:
  // n_threads counts the caller; 1 starts none. Throws std::runtime_error outside 1..256.
  explicit ThreadPool(int n_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int n_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(task, thread) for every task in [0, n_tasks), thread in [0, n_threads): the index of per-thread scratch.
  // Returns when all are done. `body` must not throw, and must not call for_each. n_tasks < 2^20.
  template <class Body>
  void for_each(int n_tasks, const Body& body) {
    if (n_tasks == 1 || workers_.empty()) {
      for (int task = 0; task < n_tasks; ++task) body(task, 0);
      return;
    }
    run(n_tasks,
        [](const void* context, int task, int thread) { (*static_cast<const Body*>(context))(task, thread); }, &body);
  }

 private:
  using Call = void (*)(const void* context, int task, int thread);
  void run(int n_tasks, Call call, const void* context);
  void work(int thread);
  void claim_and_run(int thread);

  std::vector<std::thread> workers_;

  // Written before the ticket that announces a region, read only by who has claimed one of its tasks.
  Call call_ = nullptr;
  const void* context_ = nullptr;
  // Region number (24 bits), its task count (20), the next task (20): one word, so that a worker that wakes late can
  // neither claim a task of a region it did not see begin nor compare against another region's count.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int32_t> unfinished_{0};
  alignas(64) std::atomic<int32_t> epoch_{0};  // changes when a region begins or the pool ends; what workers sleep on
  alignas(64) std::atomic<int32_t> sleeping_{0};
  std::atomic<bool> stopping_{false};
};

}  // namespace sluice
