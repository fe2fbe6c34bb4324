// Where a value lies in the card's KV pools. Host and device.
//
//   full, sliding  [layer][K: head pieces][V: head pieces];  a piece holds 16 tokens of one head
//   mla_latent     [layer][one piece: 16 tokens of latent + rope]
//
// A piece is contiguous, so it moves by one bulk copy: rows of head_dim values, a token each, cut into panels of 128 bytes
// (64 or 32 where a row is no longer), and for 8-bit types the 16 tokens' scales behind them, fp32: value = stored * scale.
// Inside a panel the 16-byte chunks of a row are permuted by the token, so that eight tokens' equal chunks lie in eight
// different groups of banks (the pattern of wgmma's and TMA's 128-byte swizzle; CUTLASS Swizzle<3,4,3>).
#pragma once

#include "ops/ops.h"

namespace sluice::cuda {

constexpr int kv_element_bytes(KvType type) {
  switch (type) {
    case KvType::f32: return 4;
    case KvType::f16:
    case KvType::bf16: return 2;
    default: return 1;
  }
}
constexpr bool kv_scaled(KvType type) { return type == KvType::fp8_e4m3 || type == KvType::int8; }
// What the largest magnitude of a token's head is stored as.
constexpr float kv_largest(KvType type) { return type == KvType::fp8_e4m3 ? 448.0f : 127.0f; }

constexpr int kv_row_bytes(KvType type, int head_dim) { return head_dim * kv_element_bytes(type); }
constexpr int kv_piece_bytes(KvType type, int head_dim) {
  return kBlockTokens * kv_row_bytes(type, head_dim) + (kv_scaled(type) ? kBlockTokens * 4 : 0);
}
// Bytes from the piece's start to 16-byte chunk `chunk` of the row of token `token`.
constexpr int kv_chunk_offset(int row_bytes, int token, int chunk) {
  const int panel_row = row_bytes < 128 ? row_bytes : 128, chunks = panel_row / 16;
  const int place = (chunk % chunks) ^ (token * panel_row / 128 % chunks);
  return chunk / chunks * (kBlockTokens * panel_row) + token * panel_row + place * 16;
}
constexpr int64_t kv_layer_bytes(KvType type, int n_kv_heads, int head_dim) {
  return int64_t{2} * n_kv_heads * kv_piece_bytes(type, head_dim);
}
constexpr int64_t mla_layer_bytes(KvType type, int latent_dim, int rope_dim) {
  return kv_piece_bytes(type, latent_dim + rope_dim);
}
// Rows that the permutation can hold.
constexpr bool kv_row_fits(KvType type, int head_dim) {
  const int bytes = kv_row_bytes(type, head_dim);
  return bytes == 32 || bytes == 64 || (bytes > 0 && bytes % 128 == 0);
}

}  // namespace sluice::cuda
