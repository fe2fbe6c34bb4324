// The small operations between the large ones, each one launch. Activations bf16, residual stream fp32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "ops/cuda/attention.h"
#include "ops/ops.h"

namespace sluice::cuda {

// residual += delta (null: nothing), out = residual / sqrt(mean(residual^2) + eps) * weight (ops.h: rmsnorm).
struct RmsnormArgs {
  const StepCounts* counts;
  const int32_t* gather;         // logit_tokens: row i of out is token gather[i], n_logits rows; null: all tokens
  float* residual;               // [tokens][width]
  const __nv_bfloat16* delta;    // [tokens][width] or null
  const float* weight;           // [width]
  __nv_bfloat16* out;
  int32_t width;                 // a multiple of 4, at most kMaxNormWidth
  float eps;
};
inline constexpr int kMaxNormWidth = 16384;
cudaError_t rmsnorm(const RmsnormArgs& args, int max_rows, bool overlap, cudaStream_t stream);

// q, k: RMSNorm where there are weights, then rotation; q to q_out, k and v to the pool (ops.h: RopeKvWrite).
struct RopeKvArgs {
  const __nv_bfloat16* qkv;      // [tokens][(n_heads + 2 n_kv_heads) head_dim]
  __nv_bfloat16* q_out;          // [tokens][n_heads head_dim]
  int32_t n_heads, n_kv_heads;
  const float* q_norm;           // RopeKvWrite's
  const float* k_norm;
  bool norm_whole;
  float norm_eps;
  const float* cos_sin;          // [tokens][rope_dim]: cosines, then sines
  int32_t rope_dim;
  std::byte* kv;                 // the pool, moved on to the layer
  int64_t block_bytes;
};
// head_dim: 64, 128 or 256; the pool's type: bf16, fp8_e4m3 or int8.
cudaError_t rope_kv_write(const AttentionStep& step, const RopeKvArgs& args, KvType type, int head_dim, int max_tokens,
                          bool overlap, cudaStream_t stream);

// y[m][rows] = x[m][cols] W^T + bias for few rows m of x, W in the packed layout of moe.h (moe_pack.h makes it).
struct SkinnyLinearArgs {
  const int32_t* m;              // on the device: at most max_m of the launch
  const __nv_bfloat16* x;        // [m][cols]
  const std::byte* weight;       // packed [rows][cols]; rows a multiple of 16, cols of 64
  const float* row_scale;        // [rows] or null
  const float* bias;             // [rows] or null
  int32_t rows, cols;
  int32_t real_rows;             // rows of y: what packing added is left out
  void* y;                       // [m][real_rows], bf16 or fp32
  bool y_fp32;
};
inline constexpr int kSkinnyMaxRows = 16;
cudaError_t skinny_linear(WeightFormat format, const SkinnyLinearArgs& args, int max_m, bool overlap, cudaStream_t stream);

}  // namespace sluice::cuda
