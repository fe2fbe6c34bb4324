#pragma once

#include <algorithm>
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
  std::unique_ptr<Linear> prepare_head_linear(std::span<const WeightSource> heads) override;
  std::unique_ptr<MoeWeights> prepare_moe(const MoeSource& source) override;
  const float* upload(std::span<const float> values) override;
  KvPool make_kv_pool(const KvShape& shape, int32_t n_blocks) override;
  int64_t kv_block_bytes(const KvShape& shape) const override;
  float* workspace(int64_t n_floats) override;
  void reserve(const StepLimits& limits) override;

  const StepView& begin_step(const StepPlan& plan, const BlockTables& tables) override;
  void run(const GraphKey& key, const std::function<void()>& forward) override;
  void read(const float* source, std::span<float> host_out) override;
  void embed(const Linear& table, const StepView& step, float scale, float* out) override;
  void rmsnorm(const StepView& step, float* residual, const void* delta, const float* weight, int32_t width, float eps,
               bool gather, void* out) override;
  void norm(const StepView& step, const void* x, const float* weight, int32_t width, float eps, void* out) override;
  void linear(const StepView& step, const Linear& weight, const void* x, void* y, bool over_logits) override;
  void head_linear(const StepView& step, const HeadLinear& args) override;
  void rope_tables(const StepView& step, const RopeSpec& rope, float* cos_sin) override;
  void rope_kv_write(const StepView& step, const RopeKvWrite& args, KvPool& pool) override;
  void mla_kv_write(const StepView& step, const MlaKvWrite& args, KvPool& pool) override;
  void attention(const StepView& step, const Attention& args, const KvPool& pool) override;
  void activation(const StepView& step, const Activation& kind, const void* gate_up, int32_t inter, void* out) override;
  void moe_layer(const StepView& step, const MoeLayer& args) override;
  void copy_blocks(KvPool& pool, std::span<const std::pair<int32_t, int32_t>> pairs) override;
  std::vector<StageTime> stage_times() const override;

 private:
  enum Stage { kEmbed, kNorm, kLinear, kHead, kRope, kAttention, kActivation, kMoe, kStages };

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
  void for_tokens(int n, int tokens_a_task, const Body& body) {
    pool_.for_each((n + tokens_a_task - 1) / tokens_a_task, [&](int task, int thread) {
      const int end = std::min(n, (task + 1) * tokens_a_task);
      for (int token = task * tokens_a_task; token < end; ++token) body(token, thread);
    });
  }

  // Rows x[0 .. m) of `cols` values, `stride` apart, into rows 0 .. m of `quant`; sets its n_blocks.
  void quantize_rows(const float* x, int64_t stride, int32_t cols, int m, QuantActivations& quant);
  // One panel over m rows: of x where the panel is fp32, else of `quant` from row `first` on.
  void multiply_panel(const PackedLinear& w, int64_t panel, const float* x, int64_t x_stride, const QuantActivations& quant,
                      int first, int m, float* y, int64_t y_stride) const;
  // y[m][rows] = x[m][cols] W^T + bias.
  void multiply(const PackedLinear& w, const float* x, int m, float* y);
  void gate(const Activation& kind, const float* gate, const float* up, int n, float* out) const;
  // Where the layer's KV of a token's block begins.
  static std::byte* kv_layer(const StepView& step, const KvPool& pool, int32_t group, int32_t layer, int token);

  void reserve_moe();
  void choose(const StepView& step, const MoeWeights& weights, const float* selection_bias, const float* shared_gate);
  void sort_visits(const MoeWeights& weights, const MoeLayer& args, int n_tokens);
  // y[visit] = its expert's matrix times x[visit] (or its quantised twin).
  void multiply_visits(std::span<const std::unique_ptr<PackedLinear>> experts, const float* x, const QuantActivations& quant, float* y);

  void reserve_attention();
  void plan_attention();
  void attend_exact(const AttentionTask& task, const Attention& args, const KvPool& pool, int thread);
  void attend_fast(const AttentionTask& task, const Attention& args, const KvPool& pool, int thread);
  void attend_latent(const StepView& step, const Attention& args, const KvPool& pool);
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
    double* exact_scores;    // exact and latent: [max_positions]
    float* out;              // fast: [queries of a task][head_dim], one split
    std::vector<const void*> k_blocks, v_blocks;
  };
  std::vector<ThreadScratch> scratch_;
  struct MoeScratch {
    float* logits;       // [tokens][experts]
    float* shared_gate;  // [tokens]
    // A visit is a token at one of its experts; these are by visit, sorted by expert.
    float* x;            // exact: [visits][hidden]
    float* gate_up;      // [visits][2 inter]
    float* activated;    // [visits][inter]
    float* out;          // [visits][hidden]
    std::vector<int32_t> token_of;
    // By token and place in its choice, [tokens][top_k + shared].
    std::vector<int32_t> ids;      // logical; shared ones behind the routed
    std::vector<float> weights;
    std::vector<int32_t> experts;  // physical
    std::vector<int32_t> visit_of;
    // By physical expert.
    std::vector<int32_t> first_visit, next_visit, active;
  };
  MoeScratch moe_{};
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
