// What happens to a token's q, k and v between their projection and attention, in one launch.
//
//   x = norm(x) weight / rms(x)  (q and k, where there are weights: a head by itself, or all heads together)
//   x(i), x(i + d/2) = x(i) cos - x(i + d/2) sin, x(i + d/2) cos + x(i) sin,  i < d/2, d = rope_dim
//   q -> q_out;  k, v -> the token's place in the paged pool, rounded to bf16, or to 8 bits with a scale a token and head
//
// Bytes: the projection once in, q and one token of KV out: 10 KB + 5 KB a token at 32/4 heads of 128.
// Launch: a warp a head, eight to a block; a block for each (token, eight heads). With norms over all heads each block adds
//   up the squares for itself (4 KB from L2).
#include "ops/cuda/launch.h"
#include "ops/cuda/layers.h"
#include "ops/cuda/ptx.cuh"

namespace sluice::cuda {
namespace {

constexpr int kWarps = 8;

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int d = 16; d; d >>= 1) v += __shfl_xor_sync(~0u, v, d);
  return v;
}

template <KvType type, int kDim>
__global__ __launch_bounds__(kWarps * 32) void rope_kv_kernel(const __grid_constant__ AttentionStep step,
                                                              const __grid_constant__ RopeKvArgs p) {
  constexpr int kPer = kDim / 32, kRow = kv_row_bytes(type, kDim), kPiece = kv_piece_bytes(type, kDim);
  __shared__ float heads[kWarps][kDim];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const int token = blockIdx.x, head = blockIdx.y * kWarps + warp, n_all = p.n_heads + 2 * p.n_kv_heads;
  if (token >= step.counts->n_tokens || head >= n_all) return;
  const bool is_q = head < p.n_heads, is_k = !is_q && head < p.n_heads + p.n_kv_heads;
  const __nv_bfloat16* row = p.qkv + int64_t(token) * n_all * kDim;

  // Lane l has elements kPer l ..
  float x[kPer];
  auto load = [&](const __nv_bfloat16* from, float (&v)[kPer]) {
#pragma unroll
    for (int i = 0; i < kPer; i += 2) {
      const uint32_t pair = *reinterpret_cast<const uint32_t*>(from + lane * kPer + i);
      v[i] = ptx::bf16_low(pair), v[i + 1] = ptx::bf16_high(pair);
    }
  };
  load(row + head * kDim, x);
  const float* norm = is_q ? p.q_norm : is_k ? p.k_norm : nullptr;
  if (norm) {
    float squares = 0;
    int width = kDim;
    if (p.norm_whole) {
      const int first = is_q ? 0 : p.n_heads, n = is_q ? p.n_heads : p.n_kv_heads;
      width = n * kDim;
      for (int h = first; h < first + n; ++h) {
        float v[kPer];
        load(row + h * kDim, v);
#pragma unroll
        for (int i = 0; i < kPer; ++i) squares += v[i] * v[i];
      }
      norm += (head - first) * kDim;
    } else {
#pragma unroll
      for (int i = 0; i < kPer; ++i) squares += x[i] * x[i];
    }
    const float f = rsqrtf(warp_sum(squares) / float(width) + p.norm_eps);
#pragma unroll
    for (int i = 0; i < kPer; ++i) x[i] *= f * norm[lane * kPer + i];
  }
  if (is_q || is_k) {
#pragma unroll
    for (int i = 0; i < kPer; ++i) heads[warp][lane * kPer + i] = x[i];
    __syncwarp();
    const int half = p.rope_dim / 2;
    const float* cosines = p.cos_sin + int64_t(token) * p.rope_dim;
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      const int e = lane * kPer + i;
      if (e >= p.rope_dim) continue;
      const int pair = e < half ? e : e - half;
      const float other = heads[warp][e < half ? e + half : e - half], c = cosines[pair], s = cosines[half + pair];
      x[i] = e < half ? x[i] * c - other * s : x[i] * c + other * s;
    }
  }
  if (is_q) {
    auto* to = reinterpret_cast<uint32_t*>(p.q_out + (int64_t(token) * p.n_heads + head) * kDim + lane * kPer);
#pragma unroll
    for (int i = 0; i < kPer; i += 2) to[i / 2] = ptx::pack_bf16x2(x[i], x[i + 1]);
    return;
  }
  const int position = step.positions[token], slot = position % kBlockTokens;
  const int64_t table_row = step.rows[step.token_rows[token]].row;
  const int block = step.blocks[table_row * step.blocks_per_row + position / kBlockTokens];
  std::byte* piece = p.kv + block * p.block_bytes + int64_t(head - p.n_heads) * kPiece;  // k heads, then v heads
  const int byte = lane * kPer * kv_element_bytes(type);
  std::byte* to = piece + kv_chunk_offset(kRow, slot, byte / 16) + byte % 16;
  if constexpr (!kv_scaled(type)) {
#pragma unroll
    for (int i = 0; i < kPer; i += 2) reinterpret_cast<uint32_t*>(to)[i / 2] = ptx::pack_bf16x2(x[i], x[i + 1]);
  } else {
    float largest = 0;
#pragma unroll
    for (int i = 0; i < kPer; ++i) largest = fmaxf(largest, fabsf(x[i]));
#pragma unroll
    for (int d = 16; d; d >>= 1) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, d));
    const float inverse = largest > 0 ? kv_largest(type) / largest : 0.0f;
    if (lane == 0) *reinterpret_cast<float*>(piece + kBlockTokens * kRow + slot * 4) = largest / kv_largest(type);
#pragma unroll
    for (int i = 0; i < kPer; i += 2) {
      uint32_t pair;
      if constexpr (type == KvType::fp8_e4m3) {
        pair = ptx::pack_e4m3x2(x[i] * inverse, x[i + 1] * inverse);
      } else {
        const int low = min(127, max(-127, __float2int_rn(x[i] * inverse)));
        const int high = min(127, max(-127, __float2int_rn(x[i + 1] * inverse)));
        pair = (uint32_t(low) & 255) | (uint32_t(high) & 255) << 8;
      }
      reinterpret_cast<uint16_t*>(to)[i / 2] = uint16_t(pair);
    }
  }
}

template <KvType type>
cudaError_t launch(const AttentionStep& step, const RopeKvArgs& args, int head_dim, int max_tokens, bool overlap, cudaStream_t stream) {
  const dim3 grid(max_tokens, (args.n_heads + 2 * args.n_kv_heads + kWarps - 1) / kWarps);
  auto kernel = head_dim == 64 ? rope_kv_kernel<type, 64> : head_dim == 128 ? rope_kv_kernel<type, 128> : rope_kv_kernel<type, 256>;
  return launch_kernel(kernel, grid, dim3(kWarps * 32), 0, overlap, stream, step, args);
}

}  // namespace

cudaError_t rope_kv_write(const AttentionStep& step, const RopeKvArgs& args, KvType type, int head_dim, int max_tokens,
                          bool overlap, cudaStream_t stream) {
  if ((head_dim != 64 && head_dim != 128 && head_dim != 256) || args.rope_dim % 2 || args.rope_dim > head_dim || max_tokens < 1)
    return cudaErrorInvalidValue;
  switch (type) {
    case KvType::bf16: return launch<KvType::bf16>(step, args, head_dim, max_tokens, overlap, stream);
    case KvType::fp8_e4m3: return launch<KvType::fp8_e4m3>(step, args, head_dim, max_tokens, overlap, stream);
    case KvType::int8: return launch<KvType::int8>(step, args, head_dim, max_tokens, overlap, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace sluice::cuda
