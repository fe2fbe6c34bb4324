// How the CPU kernels see weights, activations and KV. Weights are cut into panels of 16 outputs: one vector lane is one
// output, so a dot product needs no sum across lanes and every output is added up in the same order whatever the batch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/step.h"

namespace sluice::cpu {

inline constexpr int kLanes = 16;       // outputs a panel
inline constexpr int kQuantBlock = 32;  // inputs that share a scale

enum class PanelKind : uint8_t {
  f32,  // exact: [cols][16] floats
  q4,   // fast: value = d q + m, q in 0..15
  q8,   // fast: value = d q, q in -128..127
};

// q4 block, 32 inputs x 16 outputs, 320 bytes: d[16], m[16] as halves, then 4 x 64 bytes of nibbles. Byte 4 r + c of
// the j-th 64 belongs to output r; its low nibble is input 8 j + c, its high nibble input 8 j + 4 + c. So one 64-byte
// load gives two operands of vpdpbusd (16 outputs x 4 inputs each).
inline constexpr int kQ4BlockBytes = 320;

// q8 panel: first the scales of all blocks ([blocks][16] halves, padded to 64 bytes), then [blocks][8][64] bytes: byte
// 4 r + c of the j-th 64 is input 4 j + c of output r, stored as q + 128, since vpdpbusd takes one unsigned operand.
inline constexpr int kQ8BlockBytes = 512;
inline constexpr int64_t q8_scale_bytes(int64_t n_blocks) { return (n_blocks * kLanes * 2 + 63) / 64 * 64; }

inline constexpr int64_t panel_bytes(PanelKind kind, int64_t n_blocks) {
  switch (kind) {
    case PanelKind::f32: return n_blocks * kQuantBlock * kLanes * 4;
    case PanelKind::q4: return n_blocks * kQ4BlockBytes;
    case PanelKind::q8: return q8_scale_bytes(n_blocks) + n_blocks * kQ8BlockBytes;
  }
  return 0;
}

// Activations as the q4 and q8 panels take them: x ~ d q with a scale per 32 inputs of a token. `wide` (the default):
// |q| <= 32512, split into two signed bytes q = 255 high + low, since vpdpbusd multiplies bytes; 8 bits: q = high, low
// unused. The base is 255, not 256, so that both bytes stay within -127..127, which AVX2's 16-bit pair sums need.
inline constexpr int kWideBase = 255;
inline constexpr int kWideMax = 127 * kWideBase + 127;
struct QuantActivations {
  int8_t* high;   // [m][n_blocks * 32]
  int8_t* low;    // [m][n_blocks * 32]
  float* d;       // [m][n_blocks]
  float* d_sum;   // [m][n_blocks] d * sum(q): what a block's minimum m is multiplied by
  int32_t* sum;   // [m][n_blocks] sum(q): takes back the + 128 of q8
  int32_t n_blocks;
  bool wide;
  bool prefetch;  // the kernels ask for weights ahead of their use
};

// A layer's KV in one block: K as [head][d][16 tokens] (a vector of scores is one pass over d), V as [head][16 tokens][d].
inline constexpr int64_t kv_layer_elements(int n_kv_heads, int head_dim) {
  return int64_t{2} * n_kv_heads * head_dim * kBlockTokens;
}
inline constexpr int64_t k_offset(int head, int head_dim) { return int64_t{head} * head_dim * kBlockTokens; }
inline constexpr int64_t v_offset(int n_kv_heads, int head, int head_dim) {
  return int64_t{n_kv_heads + head} * head_dim * kBlockTokens;
}

// Attention in `fast` adds up positions in pieces of this many tokens, whatever the batch or thread count, and joins the
// pieces in order: so a long row can be shared by threads and still has one value.
inline constexpr int kSplitTokens = 512;

}  // namespace sluice::cpu
