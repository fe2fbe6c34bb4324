// The inner kernels, built once per instruction set from the same source. Each is a pure function over plain arrays; none
// allocates, none knows threads. All instruction sets give the same bits: the float operations and their order are fixed
// by the source (no contraction, explicit fused multiply-add, 16 virtual lanes), integer sums are exact in any order.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/cpu_features.h"
#include "ops/cpu/layout.h"

namespace sluice::cpu {

// One (row, kv head, split) of attention: queries are the `n_q` vectors of the heads that share the kv head, for one or
// more tokens; query i sees keys [key_begin[i], key_end[i]) of the split, counted from the split's first token.
struct AttentionSplit {
  const void* const* k_blocks;  // [blocks of the split] start of this kv head's K in each block
  const void* const* v_blocks;
  int32_t head_dim;
  int32_t n_q;
  const float* const* q;        // [n_q] -> [head_dim]
  const int32_t* key_begin;
  const int32_t* key_end;
  float scale;
  float* scores;                // scratch [n_q][kSplitTokens]
  float* max;                   // out [n_q]; -inf when a query sees no key here
  float* sum;                   // out [n_q]
  float* out;                   // out [n_q][head_dim], not yet divided by sum
};

struct Kernels {
  // y[t][0..16) for tokens t of [0, m): panel * x[t] + bias. Only the first `valid` outputs are stored. bias: [16] or null.
  void (*panel_q4)(const std::byte* panel, const QuantActivations& x, int first, int m, const float* bias, float* y,
                   int64_t y_stride, int valid);
  void (*panel_q8)(const std::byte* panel, const QuantActivations& x, int first, int m, const float* bias, float* y,
                   int64_t y_stride, int valid);
  // Products and sums in double, one rounding at the end.
  void (*panel_f32)(const float* panel, const float* x, int64_t x_stride, int cols, int m, const float* bias, float* y,
                    int64_t y_stride, int valid);

  // Token `token`'s activations x[cols] into its place in `out`; cols may end inside the last block, which is filled up
  // with zeros.
  void (*quantize)(const float* x, int cols, int token, const QuantActivations& out);

  // residual += delta (if any); out = residual / sqrt(mean(residual^2) + eps) * weight.
  void (*rmsnorm)(float* residual, const float* delta, const float* weight, int width, float eps, float* out);
  void (*swiglu)(const float* gate, const float* up, int n, float* out);

  // fp16 KV.
  void (*attention_f16)(const AttentionSplit& work);
  void (*store_half)(const float* source, int n, uint16_t* target, int64_t stride);
};

const Kernels& kernels(CpuIsa isa);

// The `exact` elementwise operations and attention: double inside, one source, no instruction set of their own.
void rmsnorm_exact(float* residual, const float* delta, const float* weight, int width, float eps, float* out);
void swiglu_exact(const float* gate, const float* up, int n, float* out);
// gpt-oss: g = min(gate, limit), u = clamp(up, -limit, limit): g sigmoid(alpha g) (u + 1).
void swiglu_clamped(const float* gate, const float* up, int n, float alpha, float limit, float* out);
// Like attention_f16 over fp32 KV, but the whole context at once: key_end may reach past kSplitTokens, `scores` holds
// [max key_end] doubles, and `out` is finished (divided by the sum). sinks: [n_q] logits that join the denominator, or null.
void attention_exact(const AttentionSplit& work, const float* sinks, double* scores);

}  // namespace sluice::cpu
