// Attention of single queries over paged keys and values, split along the keys.
//
//   s(j) = scale q k(j);  out = sum_j e^s(j) v(j) / (sum_j e^s(j) + e^sink), j over the keys that the query sees
//
// Bytes: 2 head_dim values (and two scales for 8-bit types) a key and kv head, once: 64 rows of 4096 keys, 4 kv heads of
// 128, bf16: 537 MB. Queries, outputs and partial results are below 1 % of that. The floor is those bytes over the card's
// read rate; the arithmetic is 1/8 of what mma.sync can do at that rate.
//
// Launch: one block a multiprocessor, kWarps warps that compute and kProducers that only issue bulk copies.
//   - The plan (attention_work.cuh) gives each block an equal share of all keys of all (token, kv head): a few runs of
//     consecutive keys. A (token, head) that several blocks work on is put together by the last of them to arrive.
//   - A stage of the ring is one KV block of one kv head: K and V of 16 tokens, two bulk copies of 4 KB at 128 x bf16. The
//     producer walks through all the block's runs and waits for nothing but free stages, so the stream never stops between
//     runs. Stage i goes to warp i mod kWarps, which keeps a softmax of its own: warps meet only at the end of a run.
//   - Keys are the 16-row operand of mma.m16n8k16 and the queries that share the kv head its 8 columns (kTiles = 2: 16), so
//     a group of 8 queries wastes nothing:  S^T = K Q^T,  O^T = V^T P^T.  P^T comes from S^T by movmatrix.
//   - 8-bit values become fp16 on their way from ldmatrix to mma: the seven low bits of an e4m3 at the top of an fp16's
//     exponent and mantissa read as value * 2^-8; an int8 as the low byte of 1024 + u. A key's scale multiplies its
//     score, a value's scale its probability.
// Sums over keys run in one order inside a piece; pieces are joined in the order of the keys. No atomics but tickets.
//
// Sources of ideas: online softmax and split-KV: FlashAttention-2 and Flash-Decoding (Dao et al.); equal shares of keys:
// LeanAttention (arXiv:2405.10480); plan/run: FlashInfer. The code is our own.
#pragma once

#include "ops/cuda/attention_join.cuh"

namespace sluice::cuda::attend {

// How 16-bit operands come out of a type's bytes. kFactor: stored values are true ones times this as the mma sees them.
template <KvType type>
struct KvReader;

template <>
struct KvReader<KvType::bf16> {
  static constexpr float kFactor = 1.0f;
  __device__ static __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { ptx::mma_bf16(c, a, b0, b1); }
  __device__ static __forceinline__ uint32_t pack(float low, float high) { return ptx::pack_bf16x2(low, high); }
};
struct Fp16Operands {
  __device__ static __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { ptx::mma_f16(c, a, b0, b1); }
  __device__ static __forceinline__ uint32_t pack(float low, float high) { return ptx::pack_f16x2(low, high); }
};
// Bytes b0 .. b3 of a word become the pairs {b0, b2} and {b1, b3}.
template <>
struct KvReader<KvType::fp8_e4m3> : Fp16Operands {
  static constexpr float kFactor = 0x1p-8f;
  __device__ static __forceinline__ void unpack(uint32_t w, uint32_t& even, uint32_t& odd) {
    constexpr uint32_t kAndOr = (ptx::kLutA & ptx::kLutB) | ptx::kLutC;
    odd = ptx::lop3<kAndOr>(w, 0x80008000, (w >> 1) & 0x3f803f80);
    even = ptx::lop3<kAndOr>(w << 8, 0x80008000, (w << 7) & 0x3f803f80);
  }
};
template <>
struct KvReader<KvType::int8> : Fp16Operands {
  static constexpr float kFactor = 1.0f;
  __device__ static __forceinline__ void unpack(uint32_t w, uint32_t& even, uint32_t& odd) {
    const uint32_t u = w ^ 0x80808080;  // value + 128
    even = ptx::sub_f16x2(__byte_perm(u, 0x64646464, 0x4240), 0x64806480);
    odd = ptx::sub_f16x2(__byte_perm(u, 0x64646464, 0x4341), 0x64806480);
  }
};

template <KvType type, int kDim, int kTiles>
struct Shape {
  static constexpr int kWarps = kv_scaled(type) ? 8 : 4;
  static constexpr int kPiece = kv_piece_bytes(type, kDim);
  static constexpr int kPieceSlot = (kPiece + 127) / 128 * 128;
  static constexpr int kStage = 2 * kPieceSlot;
  static constexpr int kProducers = kPiece < 2048 ? 2 : 1;  // a copy costs its warp up to 37 ns to issue
  static constexpr int kThreads = (kWarps + kProducers) * 32;
  static constexpr int kHeads = 8 * kTiles;
  static constexpr int kMergeRow = kDim + 4;  // floats; the padding spreads heads over banks
  static constexpr int kMerge = kWarps * kHeads * (kMergeRow + 2) * 4;
  static constexpr int kMaxStages = 64;
  static constexpr int kFixed = kMerge + 2 * kMaxStages * 8 + 16;
  static_assert(kv_row_fits(type, kDim) && kDim % 16 == 0);
  static constexpr int stages(int shared_bytes) {
    const int fit = (shared_bytes - kFixed) / kStage / kWarps * kWarps;
    return fit > kMaxStages ? kMaxStages : fit;
  }
};
inline constexpr int kBatch = 4;  // stages that a producer fills at a time, a lane a copy

template <KvType type, int kDim, int kTiles>
__global__ __launch_bounds__(Shape<type, kDim, kTiles>::kThreads, 1) void attention_kernel(
    const __grid_constant__ AttentionStep step, const __grid_constant__ AttentionArgs p, const AttentionSplits splits,
    const int stages) {
  using S = Shape<type, kDim, kTiles>;
  using Reader = KvReader<type>;
  constexpr bool kScaled = kv_scaled(type);
  constexpr int kRow = kv_row_bytes(type, kDim), kPanelRow = kRow < 128 ? kRow : 128;
  constexpr int kChunks = kRow / 16, kPanelChunks = kPanelRow / 16;
  constexpr int kWarps = S::kWarps, kConsumers = kWarps * 32;

  uint8_t* shared = ptx::dynamic_shared();
  float* merge = reinterpret_cast<float*>(shared + stages * S::kStage);
  float* merge_max = merge + kWarps * S::kHeads * S::kMergeRow;
  float* merge_sum = merge_max + kWarps * S::kHeads;
  uint64_t* full = reinterpret_cast<uint64_t*>(merge_sum + kWarps * S::kHeads);
  uint64_t* free_ = full + S::kMaxStages;
  uint32_t* ticket = reinterpret_cast<uint32_t*>(free_ + S::kMaxStages);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;

  if (threadIdx.x == 0) {
    for (int i = 0; i < stages; ++i) {
      ptx::mbarrier_init(&full[i], ptx::stage_arrivals(2));
      ptx::mbarrier_init(&free_[i], 1);
    }
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();

  const int queries = p.n_heads / p.n_kv_heads;               // that share a kv head
  const int groups_a_head = (queries + S::kHeads - 1) / S::kHeads;
  const int n_groups = p.n_kv_heads * groups_a_head;
  RunWalk walk(step, *p.plan, p.window, n_groups, splits);
  Run run;

  if (warp >= kWarps) {
    // --- producers: batches of kBatch stages in turn -----------------------------------------------------------------
    const int mine = lane / 2, kv = lane % 2;  // lane: stage of the batch, K or V
    int stage = 0, batch = 0;                  // of the next batch
    uint32_t parity = 0;
    int filled = 0;                            // stages of the current batch, by earlier runs
    while (walk.next(run)) {
      const int row = step.rows[step.token_rows[run.token]].row;
      const int32_t* table = step.blocks + int64_t(row) * step.blocks_per_row + run.first_block;
      const int head = run.head / groups_a_head;
      const std::byte* base = p.kv + int64_t(kv * p.n_kv_heads + head) * S::kPiece;
      int32_t ids = lane < run.n_blocks ? __ldg(table + lane) : 0;
      int32_t next_ids = 32 + lane < run.n_blocks ? __ldg(table + 32 + lane) : 0;
      int ids_from = 0;
      for (int j = 0; j < run.n_blocks;) {
        // A batch may hold the end of one run and the beginning of the next.
        const int n = min(kBatch - filled, run.n_blocks - j);
        const int last = j + n - 1;
        const int at = j + mine - filled;  // this lane's KV block of the run
        const bool copies = mine >= filled && mine < filled + n && batch % S::kProducers == warp - kWarps;
        const int first_ids = __shfl_sync(~0u, ids, max(0, at - ids_from) % 32);
        const int later_ids = __shfl_sync(~0u, next_ids, max(0, at - ids_from) % 32);
        if (copies) {
          const int slot = stage + mine;
          const int32_t id = at - ids_from < 32 ? first_ids : later_ids;
          ptx::mbarrier_wait(&free_[slot], parity ^ 1);
          if (kv == 0) ptx::stage_begin(&full[slot], 2 * S::kPiece);
          ptx::stage_copy(shared + slot * S::kStage + kv * S::kPieceSlot, base + int64_t(id) * p.block_bytes, S::kPiece, &full[slot]);
        }
        j += n, filled += n;
        if (filled == kBatch) {
          filled = 0, ++batch, stage += kBatch;
          if (stage == stages) stage = 0, parity ^= 1;
        }
        if (last - ids_from >= 31) {
          ids = next_ids, ids_from += 32;
          next_ids = ids_from + 32 + lane < run.n_blocks ? __ldg(table + ids_from + 32 + lane) : 0;
        }
      }
    }
    return;
  }

  // --- consumers -------------------------------------------------------------------------------------------------------
  constexpr int kMmas = kScaled ? kChunks : kChunks / 2;  // of 16 dimensions each, for scores; as many tiles of values
  // This lane's row addresses for ldmatrix, as offsets into a piece: matrix lane / 8, row lane % 8.
  const int k_offset = kv_chunk_offset(kRow, lane % 16, lane / 16);                        // K: key, low or high chunk
  const int v_offset = kv_chunk_offset(kRow, lane / 16 * 8 + lane % 8, lane / 8 % 2);      // V: likewise for a transposed read
  auto chunk_pair = [&](int offset, int pair) {  // the same rows, 2 * pair chunks on
    constexpr int kPairs = kPanelChunks / 2;
    return (offset ^ (pair % kPairs * 32)) + pair / kPairs * (kBlockTokens * kPanelRow);
  };
  const float to_exponent = p.scale * 1.44269504f / Reader::kFactor;
  int stage = warp, block_in_run = warp;  // the run's KV block that this warp takes next
  int first_warp = 0;                     // the warp that takes the run's first
  uint32_t parity = 0;
  const uint32_t ring = ptx::shared_address(shared);

  while (walk.next(run)) {
    const int kv_head = run.head / groups_a_head, query0 = run.head % groups_a_head * S::kHeads;
    const int head0 = kv_head * queries + query0, n_heads = min(S::kHeads, queries - query0);
    // Queries as columns: lane (g, t) holds head g of each tile, in the order in which the keys' dimensions come.
    uint32_t q[kTiles][kMmas][2];
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const bool real = i * 8 + g < n_heads;
      const __nv_bfloat16* from = p.q + (int64_t(run.token) * p.n_heads + head0 + (real ? i * 8 + g : 0)) * kDim;
#pragma unroll
      for (int m = 0; m < kMmas; ++m) {
        if constexpr (kScaled) {
          const uint2 v = real ? *reinterpret_cast<const uint2*>(from + m * 16 + 4 * t) : uint2{};
          q[i][m][0] = Reader::pack(ptx::bf16_low(v.x), ptx::bf16_low(v.y));
          q[i][m][1] = Reader::pack(ptx::bf16_high(v.x), ptx::bf16_high(v.y));
        } else {
          q[i][m][0] = real ? *reinterpret_cast<const uint32_t*>(from + m * 16 + 2 * t) : 0;
          q[i][m][1] = real ? *reinterpret_cast<const uint32_t*>(from + m * 16 + 8 + 2 * t) : 0;
        }
      }
    }
    float o[kTiles][kMmas][4] = {};
    float top[kTiles][2], sum[kTiles][2] = {};
#pragma unroll
    for (int i = 0; i < kTiles; ++i) top[i][0] = top[i][1] = -INFINITY;

    // kEdge: some keys of the block are not the query's to see.
    auto take = [&]<bool kEdge>(int key0) {
      const uint32_t k = ring + stage * S::kStage, v = k + S::kPieceSlot;
      float s[kTiles][2][4] = {};
#pragma unroll
      for (int m = 0; m < (kScaled ? kMmas / 2 : kMmas); ++m) {
        uint32_t a[4];
        ptx::ldmatrix_x4(a, k + chunk_pair(k_offset, m));
#pragma unroll
        for (int half = 0; half < (kScaled ? 2 : 1); ++half) {
          uint32_t b[4];
          if constexpr (kScaled) {
            Reader::unpack(a[2 * half], b[0], b[2]);
            Reader::unpack(a[2 * half + 1], b[1], b[3]);
          } else {
            b[0] = a[0], b[1] = a[1], b[2] = a[2], b[3] = a[3];
          }
          const int at = kScaled ? 2 * m + half : m;
#pragma unroll
          for (int i = 0; i < kTiles; ++i) Reader::mma(s[i][at % 2], b, q[i][at][0], q[i][at][1]);
        }
      }
      // Scores of keys g (0, 1) and g + 8 (2, 3) for heads 2t and 2t + 1.
      float k_scale[2] = {to_exponent, to_exponent}, v_scale[2] = {1.0f, 1.0f};
      if constexpr (kScaled) {
        // Probabilities times 2^10: small values do not become fp16 subnormals.
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          k_scale[h] *= __uint_as_float(ptx::load_shared(k + kBlockTokens * kRow + (g + 8 * h) * 4));
          v_scale[h] = 1024.0f * __uint_as_float(ptx::load_shared(v + kBlockTokens * kRow + (g + 8 * h) * 4));
        }
      }
      bool seen[2] = {true, true};
      if constexpr (kEdge) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          seen[h] = key0 + g + 8 * h >= run.first_key && key0 + g + 8 * h <= run.last_key;
          if (!seen[h]) v_scale[h] = 0.0f;  // may be anything
        }
      }
      uint32_t weights[kTiles][2];
      bool grew = false;
      float larger[kTiles][2];
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          s[i][0][j] = (s[i][0][j] + s[i][1][j]) * k_scale[j / 2];
          if (kEdge && !seen[j / 2]) s[i][0][j] = -INFINITY;
        }
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float m = fmaxf(s[i][0][c], s[i][0][c + 2]);
#pragma unroll
          for (int d = 4; d < 32; d <<= 1) m = fmaxf(m, __shfl_xor_sync(~0u, m, d));
          larger[i][c] = fmaxf(m, top[i][c]);
          grew |= larger[i][c] > top[i][c];
        }
      }
      if (__any_sync(~0u, grew)) {
#pragma unroll
        for (int i = 0; i < kTiles; ++i)
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            // Every KV block of a run has a key that is seen, so `larger` is a number unless the scores are none.
            const float keep = ptx::exp2_approx(top[i][c] - larger[i][c]);
            top[i][c] = larger[i][c];
            sum[i][c] *= keep;
#pragma unroll
            for (int m = 0; m < kMmas; ++m) o[i][m][c] *= keep, o[i][m][c + 2] *= keep;
          }
      }
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        float e[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          e[j] = ptx::exp2_approx(s[i][0][j] - top[i][j % 2]);
          sum[i][j % 2] += e[j];
          if (kScaled) e[j] *= v_scale[j / 2];
        }
        weights[i][0] = ptx::movmatrix_trans(Reader::pack(e[0], e[1]));
        weights[i][1] = ptx::movmatrix_trans(Reader::pack(e[2], e[3]));
      }
      // A value that is not seen may be NaN, and 0 * NaN is one.
      [[maybe_unused]] uint32_t keep[2] = {~0u, ~0u};
      if constexpr (kEdge && !kScaled) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int key = key0 + 8 * h + 2 * t;
          keep[h] = (key >= run.first_key && key <= run.last_key ? 0xffffu : 0) | (key + 1 >= run.first_key && key + 1 <= run.last_key ? 0xffff0000u : 0);
        }
      }
#pragma unroll
      for (int m = 0; m < (kScaled ? kMmas / 2 : kMmas); ++m) {
        uint32_t a[4];
        ptx::ldmatrix_x4_trans(a, v + chunk_pair(v_offset, m));
#pragma unroll
        for (int half = 0; half < (kScaled ? 2 : 1); ++half) {
          uint32_t b[4];
          if constexpr (kScaled) {
            Reader::unpack(a[half], b[0], b[1]);
            Reader::unpack(a[2 + half], b[2], b[3]);
          } else {
            b[0] = a[0], b[1] = a[1], b[2] = a[2], b[3] = a[3];
            if constexpr (kEdge) b[0] &= keep[0], b[1] &= keep[0], b[2] &= keep[1], b[3] &= keep[1];
          }
          const int at = kScaled ? 2 * m + half : m;
#pragma unroll
          for (int i = 0; i < kTiles; ++i) Reader::mma(o[i][at], b, weights[i][0], weights[i][1]);
        }
      }
    };

    for (; block_in_run < run.n_blocks; block_in_run += kWarps) {
      ptx::mbarrier_wait(&full[stage], parity);
      const int key0 = (run.first_block + block_in_run) * kBlockTokens;
      if (key0 < run.first_key || key0 + kBlockTokens - 1 > run.last_key) take.template operator()<true>(key0);
      else take.template operator()<false>(key0);
      __syncwarp();
      if (lane == 0) ptx::mbarrier_arrive(&free_[stage]);
      stage += kWarps;
      if (stage >= stages) stage -= stages, parity ^= 1;
    }
    block_in_run -= run.n_blocks;

    // --- the run's result: join the warps ------------------------------------------------------------------------------
#pragma unroll
    for (int i = 0; i < kTiles; ++i)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float all = sum[i][c];
#pragma unroll
        for (int d = 4; d < 32; d <<= 1) all += __shfl_xor_sync(~0u, all, d);
        const int head = i * 8 + 2 * t + c;
        float* to = merge + (warp * S::kHeads + head) * S::kMergeRow;
#pragma unroll
        for (int m = 0; m < kMmas; ++m) {
          // Rows of an 8-bit tile are even and odd dimensions.
          to[m * 16 + (kScaled ? 2 * g : g)] = o[i][m][c];
          to[m * 16 + (kScaled ? 2 * g + 1 : g + 8)] = o[i][m][c + 2];
        }
        if (g == 0) merge_max[warp * S::kHeads + head] = top[i][c], merge_sum[warp * S::kHeads + head] = all;
      }
    ptx::named_barrier(1, kConsumers);

    deliver<S::kHeads, kDim, kConsumers>(p, walk, run, head0, n_heads, n_groups, ticket, [&](int head, int quad, float& m, float& l) {
      m = -INFINITY, l = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) m = fmaxf(m, merge_max[w * S::kHeads + head]);
      float4 v{};
#pragma unroll
      for (int i = 0; i < kWarps; ++i) {
        // In the order of the keys: which warp it begins with depends on the runs before.
        const int w = (first_warp + i) % kWarps;
        const float f = ptx::exp2_approx(merge_max[w * S::kHeads + head] - m);
        const float4 part = *reinterpret_cast<const float4*>(merge + (w * S::kHeads + head) * S::kMergeRow + quad * 4);
        l = fmaf(f, merge_sum[w * S::kHeads + head], l);
        v.x = fmaf(f, part.x, v.x), v.y = fmaf(f, part.y, v.y), v.z = fmaf(f, part.z, v.z), v.w = fmaf(f, part.w, v.w);
      }
      constexpr float kTrue = kScaled ? 1.0f / (1024.0f * Reader::kFactor) : 1.0f;
      v.x *= kTrue, v.y *= kTrue, v.z *= kTrue, v.w *= kTrue;
      return v;
    });
    first_warp = (first_warp + run.n_blocks) % kWarps;
    ptx::named_barrier(1, kConsumers);  // before the next run's results overwrite these
  }
}

template <KvType type, int kDim, int kTiles>
cudaError_t launch_shape(const AttentionStep& step, const AttentionArgs& args, const AttentionLaunch& launch, cudaStream_t stream) {
  using S = Shape<type, kDim, kTiles>;
  auto kernel = attention_kernel<type, kDim, kTiles>;
  const int stages = S::stages(launch.shared_kb * 1024);
  if (stages < S::kWarps) return cudaErrorInvalidConfiguration;
  const int bytes = stages * S::kStage + S::kFixed;
  if (cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes); error != cudaSuccess) return error;
  return launch_kernel(kernel, dim3(launch.blocks), dim3(S::kThreads), bytes, launch.overlap, stream, step, args, launch.splits, stages);
}

// One type, in a file of its own.
template <KvType type>
cudaError_t launch(const AttentionStep& step, const AttentionArgs& args, const AttentionLaunch& l, cudaStream_t stream) {
  const bool wide = attention_heads_a_group(l) == 16;
  if (l.head_dim == 128) return wide ? launch_shape<type, 128, 2>(step, args, l, stream) : launch_shape<type, 128, 1>(step, args, l, stream);
  return wide ? launch_shape<type, 64, 2>(step, args, l, stream) : launch_shape<type, 64, 1>(step, args, l, stream);
}

}  // namespace sluice::cuda::attend
