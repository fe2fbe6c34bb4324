// The state of the engine thread: waiting queue, rows, KV leases, and one step over them. Knows no threads but the mask
// workers; every function is called from the engine thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "engine/generation.h"
#include "engine/mask_worker.h"
#include "kv/kv_cache.h"
#include "kv/kv_log.h"
#include "model/model.h"
#include "sample/sampler.h"
#include "sched/planner.h"
#include "sched/step_budget.h"
#include "sched/waiting_queue.h"
#include "sluice/engine.h"
#include "sluice/events.h"

namespace sluice {

class Runner {
 public:
  // `log` and `model` outlive the runner. Throws std::runtime_error where Engine::create does.
  Runner(const EngineOptions& options, Model& model, std::vector<Token> grammar_stop_ids, KvLog& log);

  void enqueue(std::unique_ptr<Generation> generation) { queue_.push(std::move(generation)); }
  // No event; unknown ids are ignored.
  void cancel(GenerationId id);
  // Ends what is past its deadline.
  void expire(Clock::time_point now);
  // Gives rows and blocks to the head of the queue while there are any.
  void admit(Clock::time_point now);
  // One forward pass and its consequences; throws what the model throws. Call with rows only.
  void step();
  // Ends everything that runs or waits.
  void fail_all(ErrorCode code, bool retryable, std::string_view message);

  bool has_rows() const { return !running_.empty(); }
  bool has_work() const { return has_rows() || !queue_.empty(); }

  // Events since the last clear.
  EventWriter& events() { return events_; }
  // Generations that ended since the last call.
  int32_t take_retired() { return std::exchange(retired_, 0); }
  // All but `stalled_ms` and `healthy`.
  EngineStats stats() const;
  IntegrityReport integrity() const;

 private:
  using Running = std::vector<std::unique_ptr<Generation>>;

  void place(std::unique_ptr<Generation> generation, KvLease lease, Clock::time_point now);
  void write_table(const Generation& generation, size_t from);
  // One token for a generation whose last known token just ran.
  void sample_row(Generation& generation, std::span<const float> logits);
  bool join_grammar(Generation& generation);
  bool ends_answer(const Generation& generation, Token token) const;
  void commit_token(Generation& generation, const SampleResult& sampled);
  void finish(Generation& generation, FinishReason reason);
  void fail(Generation& generation, ErrorCode code, bool retryable, std::string_view message);
  // Leaves its place at the end of the step: leases go when no step in flight uses them.
  void retire(Generation& generation);
  void release_retired();

  EngineOptions options_;
  Model& model_;
  std::vector<Token> grammar_stop_ids_;
  int32_t blocks_per_row_;
  // [max_rows][blocks_per_row]. One block id names the same 16 tokens in the pool of every KV group, so that lease, prefix
  // index and accounting are one for all groups. Blocks behind a sliding window are kept: a later prompt that shares the
  // prefix may end inside it, and then needs them.
  std::vector<int32_t> block_table_;
  std::vector<BlockTables::Group> groups_;  // all with that table
  KvLog& log_;
  KvCache cache_;
  WaitingQueue queue_;
  Running running_;                   // in order of admission
  std::vector<Generation*> by_row_;   // null = free
  std::vector<int32_t> free_rows_;
  MaskWorkers mask_workers_;
  StepBudget budget_;
  Sampler sampler_;
  EventWriter events_;
  int32_t retired_ = 0;
  EngineStats totals_;  // the counters

  // Of one step, kept for their memory.
  std::vector<RowView> views_;
  std::vector<RowWork> work_;
  std::vector<Token> tokens_;
  std::vector<float> logits_;
};

}  // namespace sluice
