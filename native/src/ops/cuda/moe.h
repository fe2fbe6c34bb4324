// Mixture-of-experts layers on the card, for 1 to kMoeDecodeMaxTokens tokens: two launches, router and experts.
//
//   logits = x Wr^T (+ bias);  ids, weights = top-k of them;  out[t] = sum_k weights[t][k] * expert(ids[t][k])(x[t])
//   expert(e)(x) = Wdown_e act(Wgate_e x + b, Wup_e x + b) + b
//
// Everything that depends on the routing (counts, offsets, the division of work among multiprocessors) is computed on the
// card, so both launches can be captured in a graph for a bucket of tokens. A token's result has the same bits whatever
// else is in the batch: sums run over K in one fixed order and over a token's experts in the order of its top-k.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "ops/ops.h"

namespace sluice::cuda {

inline constexpr int kMoeDecodeMaxTokens = 128;
inline constexpr int kMoeMaxTopK = 16;     // routed + shared
inline constexpr int kMoeMaxExperts = 512; // routed + shared

// --- packed weights ---------------------------------------------------------------------------------------------------
// A matrix [rows][K] is cut into row tiles of 16 and units of 64 columns. A unit is one contiguous piece of memory in the
// order in which the 32 lanes of a warp feed it to mma.m16n8k16 (moe_pack.h has the map); a row tile is its K / 64 units in
// order; an expert its row tiles; so any run of units of one row tile is one contiguous copy.
// The gate/up matrix has row tiles of 8 gate rows followed by the 8 up rows of the same outputs.
// Needs: hidden and inter multiples of 64.
constexpr int moe_unit_bytes(WeightFormat format) {
  switch (format) {
    case WeightFormat::bf16: return 2048;
    case WeightFormat::fp8_e4m3: return 1024 + 16;  // values, then the two 128x128-block scales of gate and up rows
    case WeightFormat::int8: return 1024;
    case WeightFormat::int4: return 512 + 32;   // values, then 16 fp16 scales, one a row
    case WeightFormat::mxfp4: return 512 + 32;  // values, then 2 exponents for each of 16 rows
    default: return 0;
  }
}
constexpr size_t moe_packed_bytes(WeightFormat format, int64_t rows, int64_t cols) {
  return static_cast<size_t>(rows / 16 * (cols / 64)) * moe_unit_bytes(format);
}

// --- router -----------------------------------------------------------------------------------------------------------
struct MoeRouteArgs {
  const int32_t* n_tokens;        // on the device; at most max_tokens of the launch
  const __nv_bfloat16* x;         // [tokens][hidden]
  const __nv_bfloat16* weight;    // [experts][hidden] row-major
  const float* bias;              // [experts] added to the logits (gpt-oss), or null
  const float* selection_bias;    // [experts] added for the choice only (DeepSeek-V3), or null
  int32_t hidden, n_experts, top_k;
  int32_t n_shared;               // appended as experts n_experts .. with weight 1
  RouteKind kind;
  int32_t n_groups, top_groups;   // sigmoid_bias_grouped
  bool renormalise;
  float scale;
  float* logits;                  // out [tokens][experts]
  int32_t* ids;                   // out [tokens][top_k + n_shared]
  float* weights;                 // out [tokens][top_k + n_shared]
};

// --- experts ----------------------------------------------------------------------------------------------------------
struct MoeExpertsArgs {
  int32_t hidden, inter;
  const std::byte* gate_up;       // packed [experts][2 inter][hidden], shared experts last
  const std::byte* down;          // packed [experts][hidden][inter]
  const float* gate_up_scale;     // per row in packed order [experts][2 inter], or null
  const float* down_scale;        // [experts][hidden], or null
  const float* gate_up_bias;      // in packed order [experts][2 inter], or null
  const float* down_bias;         // [experts][hidden], or null
  Activation activation;          // swiglu or swiglu_clamped
  const __nv_bfloat16* residual;  // [tokens][hidden] added to the output, or null
  __nv_bfloat16* out;             // [tokens][hidden]
  uint32_t* expert_tokens;        // [experts] running count of tokens sent to each, or null
};

// Counters that the two kernels meet at. Zero before the first launch; every pair of launches leaves them zero.
struct MoeSync {
  uint32_t routed;      // parts of the routing that are written
  uint32_t gated;       // blocks that finished gate/up
  uint32_t reduced;     // blocks that finished down
  uint32_t left;        // blocks that need the counters no more
  uint32_t tile_done[kMoeDecodeMaxTokens / 8];
};

struct MoeWorkspace {
  MoeSync* sync;
  __nv_bfloat16* activated;  // [max_tokens * top_k][inter]
  float* partial;            // [max_tokens * top_k][hidden]
  __nv_bfloat16* scaled_x;   // [max_tokens][hidden]; mxfp4 only, else may be null
};
inline size_t moe_activated_bytes(int max_tokens, int top_k, int inter) {
  return static_cast<size_t>(max_tokens) * top_k * inter * sizeof(__nv_bfloat16);
}
inline size_t moe_partial_bytes(int max_tokens, int top_k, int hidden) {
  return static_cast<size_t>(max_tokens) * top_k * hidden * sizeof(float);
}

struct MoeLaunch {
  int max_tokens;       // the bucket: *n_tokens never exceeds it
  int blocks;           // multiprocessors to use: all blocks wait for each other, so all must fit on the card at once, and two
                        // layers may not run at the same time unless the blocks of both fit
  bool overlap = true;  // programmatic dependent launch: this kernel's prologue under the previous kernel's end
  // For measuring; 0 = chosen from format and max_tokens.
  int variant = 0;      // kernel shape: 1 = 8 warps x 1 row tile, 2 = 16 x 1, 3 = 8 x 2, 4 = 12 x 1
  int stage_kb = 0;     // a stage of the weight ring
  int window_kb = 0;    // weight bytes under way to a multiprocessor at a time
};

// Two launches in one stream: router, experts. The kernel after them in the stream must itself wait for its predecessor
// (griddepcontrol.wait) if it is launched programmatically.
cudaError_t moe_layer(WeightFormat format, const MoeRouteArgs& route, const MoeExpertsArgs& experts,
                      const MoeWorkspace& work, const MoeLaunch& launch, cudaStream_t stream);

}  // namespace sluice::cuda
