// Attention of a step's tokens over paged KV on the card (ops.h: Attention): one plan a step, one launch a layer.
//
// Every token of the step is a query of its own, so one kernel serves decode, drafts and (slowly, each token reading its
// whole context) prompts.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "ops/cuda/kv_layout.h"
#include "ops/ops.h"

namespace sluice::cuda {

// How a query's keys are cut into pieces that different multiprocessors work on.
//   even   every multiprocessor gets the same number of keys; a row's cuts, and so its last bits, depend on the batch
//   fixed  every 256 keys, from 8192 keys on a 32nd of the keys rounded up to a power of two: bits depend on the row alone
enum class AttentionSplits : uint8_t { even, fixed };

inline constexpr int kAttentionUnitBlocks = 4;     // even: cuts lie on multiples of 64 keys
inline constexpr int kAttentionFixedBlocks = 16;   // fixed: shortest piece
inline constexpr int kAttentionMaxPieces = 32;     // fixed: most pieces of a query
inline constexpr int kAttentionMaxBlocks = 512;    // of a launch
inline constexpr int kMlaLatentDim = 512, kMlaRopeDim = 64;  // DeepSeek-V2, V3 and their kin

// Where a block of the grid begins.
struct AttentionStart {
  int32_t token, head, unit, n_units;
};

// Made by attention_plan, read by the layers of one KV group that have the same window.
struct AttentionPlan {
  int32_t n_units;                            // of all tokens and heads together
  int32_t n_blocks;                           // that have work: min(grid, n_units)
  AttentionStart starts[kAttentionMaxBlocks];
  // [max_tokens + 1] units before a token follow in memory
  __host__ __device__ int32_t* before() { return reinterpret_cast<int32_t*>(this + 1); }
  __host__ __device__ const int32_t* before() const { return reinterpret_cast<const int32_t*>(this + 1); }
};
constexpr size_t attention_plan_bytes(int max_tokens) { return sizeof(AttentionPlan) + (max_tokens + 1) * sizeof(int32_t); }

// What tells a kernel about the step (StepView's arrays, on the device).
struct AttentionStep {
  const StepCounts* counts;
  const int32_t* positions;
  const int32_t* token_rows;
  const RowWork* rows;
  const int32_t* blocks;  // the KV group's table
  int32_t blocks_per_row;
};

struct AttentionArgs {
  const __nv_bfloat16* q;  // [tokens][n_heads][head_dim]; mla_latent [tokens][n_heads][latent + rope]
  __nv_bfloat16* out;      // [tokens][n_heads][head_dim]; mla_latent [tokens][n_heads][latent]
  int32_t n_heads, n_kv_heads;
  const std::byte* kv;     // the pool, moved on to the layer
  int64_t block_bytes;
  float scale;
  int32_t window;          // 0 = none
  const float* sinks;      // [n_heads] or null
  const AttentionPlan* plan;
  float* partial;          // attention_partial_floats
  uint32_t* tickets;       // [max_tokens][head groups], zero; every launch leaves them zero
};

struct AttentionLaunch {
  KvType type = KvType::bf16;
  KvGroupKind kind = KvGroupKind::full;
  int32_t head_dim = 0;     // mla_latent: latent + rope
  int32_t n_heads = 0, n_kv_heads = 0;
  int32_t max_tokens = 0;
  int32_t blocks = 0;       // multiprocessors, at most kAttentionMaxBlocks; the plan's too
  int32_t shared_kb = 200;  // of shared memory that a block may take
  AttentionSplits splits = AttentionSplits::even;
  bool overlap = true;      // programmatic dependent launch
};

// Query heads that share a pass over a kv head's keys: what one block works on at a time, and how many such groups.
constexpr int attention_heads_a_group(const AttentionLaunch& l) {
  const int queries = l.n_heads / l.n_kv_heads;
  return queries > 8 || l.kind == KvGroupKind::mla_latent ? 16 : 8;
}
constexpr int attention_groups(const AttentionLaunch& l) {
  const int queries = l.n_heads / l.n_kv_heads, width = attention_heads_a_group(l);
  return l.n_kv_heads * ((queries + width - 1) / width);
}
constexpr int attention_value_dim(const AttentionLaunch& l) {
  return l.kind == KvGroupKind::mla_latent ? kMlaLatentDim : l.head_dim;
}
constexpr int64_t attention_partial_floats(const AttentionLaunch& l) {
  const int64_t slots = l.splits == AttentionSplits::even
                            ? int64_t{2} * l.blocks
                            : int64_t{l.max_tokens} * attention_groups(l) * kAttentionMaxPieces;
  return slots * attention_heads_a_group(l) * (attention_value_dim(l) + 2);
}

// False when no kernel takes this: bf16, fp8 and int8 with heads of 64 and 128; mla_latent bf16 with 512 + 64.
bool attention_supported(const AttentionLaunch& launch);

cudaError_t attention_plan(const AttentionStep& step, int32_t window, const AttentionLaunch& launch, AttentionPlan* plan,
                           cudaStream_t stream);
cudaError_t attention(const AttentionStep& step, const AttentionArgs& args, const AttentionLaunch& launch,
                      cudaStream_t stream);

}  // namespace sluice::cuda
