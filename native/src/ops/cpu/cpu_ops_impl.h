#pragma once

#include <array>
#include <chrono>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/thread_pool.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/pack.h"

namespace sluice::cpu {

// One piece of a step's attention: some tokens of one row, one kv head, a range of splits.
struct AttentionTask {
  int32_t row;          // index into the plan's rows
  int32_t first_token;  // index into the step's tokens
  int32_t n_tokens;
  int32_t first_pos;    // position of first_token
  int32_t kv_head;
  int32_t first_split;
  int32_t last_split;
  int32_t partial;      // slot of the first split's partial result, or -1: the task has all splits and finishes alone
};

class CpuOps final : public Ops {
 public:
  explicit CpuOps(const CpuOpsOptions& options);
  std::string_view name() const override { return name_; }
  Capabilities capabilities() const override;

  std::unique_ptr<Linear> prepare_linear(std::span<const WeightSource> parts, std::span<const float> bias) override;
  std::unique_ptr<Linear> prepare_embedding(const WeightSource& table) override;
  const float* upload(std::span<const float> values) override;
  KvPool make_kv_pool(const KvShape& shape, int32_t n_blocks) override;
  int64_t kv_block_bytes(const KvShape& shape) const override;
  float* workspace(int64_t n_floats) override;
  void reserve(const StepLimits& limits) override;

  const StepView& begin_step(const StepPlan& plan, const BlockTables& tables) override;
  void run(const GraphKey& key, const std::function<void()>& forward) override;
  void read(const float* source, std::span<float> host_out) override;
  void embed(const Linear& table, const StepView& step, float scale, float* out) override;
  void rmsnorm(const StepView& step, float* residual, const float* delta, const float* weight, int32_t width, float eps,
               bool gather, float* out) override;
  void linear(const StepView& step, const Linear& weight, const float* x, float* y, bool over_logits) override;
  void rope_tables(const StepView& step, const RopeSpec& rope, float* cos_sin) override;
  void rope_kv_write(const StepView& step, const RopeKvWrite& args, KvPool& pool) override;
  void attention(const StepView& step, const Attention& args, const KvPool& pool) override;
  void activation(const StepView& step, const Activation& kind, const float* gate_up, int32_t inter, float* out) override;
  void copy_blocks(KvPool& pool, std::span<const std::pair<int32_t, int32_t>> pairs) override;
  std::vector<StageTime> stage_times() const override;

 private:
  enum Stage { kEmbed, kNorm, kLinear, kHead, kRope, kAttention, kActivation, kStages };

  // Adds the time of its scope to a stage when profiling.
  class Timer {
   public:
    Timer(CpuOps& ops, Stage stage, int64_t bytes) : ops_(ops), stage_(stage), bytes_(bytes) {
      if (ops_.profiling_) start_ = std::chrono::steady_clock::now();
    }
    ~Timer() {
      if (!ops_.profiling_) return;
      StageSum& sum = ops_.stages_[stage_];
      sum.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
      sum.bytes += bytes_;
      ++sum.calls;
    }
    Timer(const Timer&) = delete;
    Timer& operator=(const Timer&) = delete;

   private:
    CpuOps& ops_;
    Stage stage_;
    int64_t bytes_;
    std::chrono::steady_clock::time_point start_;
  };
  friend class Timer;

  // Calls body(token, thread) for tokens [0, n), several a task.
  template <class Body>
  void for_tokens(int n, int tokens_a_task, const Body& body);
  void reserve_attention();
  void plan_attention();
  void attend_exact(const AttentionTask& task, const Attention& args, const KvPool& pool, int thread);
  void attend_fast(const AttentionTask& task, const Attention& args, const KvPool& pool, int thread);
  void join_partials(const AttentionTask& task, const Attention& args, const KvPool& pool);
  void gather_blocks(const AttentionTask& task, const Attention& args, const KvPool& pool, int first_block, int n_blocks,
                     const void** k, const void** v) const;

  const bool exact_;
  const bool wide_;
  const bool prefetch_;
  const Kernels& kernels_;
  std::string name_;
  ThreadPool pool_;
  StepLimits limits_{};
  std::vector<int32_t> pool_blocks_;  // blocks of each KV group's pool, in the order of the groups
  std::vector<AlignedBuffer> memory_;
  Arena weights_;

  // The step.
  StepCounts counts_{};
  StepView view_{};
  std::vector<Token> tokens_;
  std::vector<int32_t> positions_, token_rows_, logit_tokens_;
  std::vector<RowWork> rows_;
  std::vector<BlockTables::Group> groups_;
  std::vector<AttentionTask> attention_tasks_;
  bool attention_has_partials_ = false;

  // Scratch.
  QuantActivations quant_{};
  struct ThreadScratch {
    float* scores;           // fast: [queries of a task][kSplitTokens]
    double* exact_scores;    // exact: [max_positions]
    float* out;              // fast: [queries of a task][head_dim], one split
    std::vector<const void*> k_blocks, v_blocks;
  };
  std::vector<ThreadScratch> scratch_;
  float* partials_ = nullptr;  // [slot][heads a kv head][head_dim + 2]
  int32_t partial_slots_ = 0;

  bool profiling_ = false;
  struct StageSum {
    int64_t calls = 0;
    double seconds = 0;
    int64_t bytes = 0;
  };
  std::array<StageSum, kStages> stages_{};
};

}  // namespace sluice::cpu
