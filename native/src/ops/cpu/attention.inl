// Attention of a few queries over one split of at most kSplitTokens keys. Every query's numbers are added up in the same
// order, so it does not matter with which others it shares the pass:
//   scores: over d, one lane a key;  sum: lane i takes keys i, i + 16, ...;  out: over the keys in order.

template <int kQ>
SLUICE_INLINE void score_block(const uint16_t* k, const float* const* q, int head_dim, float scale, float* scores) {
  F32x16 acc[kQ];
  for (int i = 0; i < kQ; ++i) acc[i] = zero();
  for (int d = 0; d < head_dim; ++d) {
    const F32x16 keys = load_half(k + d * kBlockTokens);
    for (int i = 0; i < kQ; ++i) acc[i] += keys * q[i][d];
  }
  for (int i = 0; i < kQ; ++i) store(scores + i * kSplitTokens, acc[i] * scale);
}

// out[i][c..c+16*kV) += sum over keys of p[i][key] v[key]; keys with p = 0 add nothing.
template <int kQ, int kV>
SLUICE_INLINE void weigh_values(const AttentionSplit& w, int q0, int c, int first_key, int last_key) {
  F32x16 acc[kQ][kV];
  for (int i = 0; i < kQ; ++i) {
    for (int j = 0; j < kV; ++j) acc[i][j] = zero();
  }
  for (int key = first_key; key < last_key; ++key) {
    const auto* v = static_cast<const uint16_t*>(w.v_blocks[key / kBlockTokens]) + (key % kBlockTokens) * w.head_dim + c;
    F32x16 values[kV];
    for (int j = 0; j < kV; ++j) values[j] = load_half(v + 16 * j);
    for (int i = 0; i < kQ; ++i) {
      const float p = w.scores[(q0 + i) * kSplitTokens + key];
      for (int j = 0; j < kV; ++j) acc[i][j] += values[j] * p;
    }
  }
  for (int i = 0; i < kQ; ++i) {
    for (int j = 0; j < kV; ++j) store(w.out + static_cast<int64_t>(q0 + i) * w.head_dim + c + 16 * j, acc[i][j]);
  }
}

template <int kQ>
SLUICE_INLINE void attend(const AttentionSplit& w, int q0) {
  int first_key = w.key_begin[q0], last_key = w.key_end[q0];
  for (int i = 1; i < kQ; ++i) {
    first_key = w.key_begin[q0 + i] < first_key ? w.key_begin[q0 + i] : first_key;
    last_key = w.key_end[q0 + i] > last_key ? w.key_end[q0 + i] : last_key;
  }
  const int first_block = first_key / kBlockTokens;
  const int last_block = (last_key + kBlockTokens - 1) / kBlockTokens;
  float* scores = w.scores + static_cast<int64_t>(q0) * kSplitTokens;
  for (int b = first_block; b < last_block; ++b) {
    score_block<kQ>(static_cast<const uint16_t*>(w.k_blocks[b]), w.q + q0, w.head_dim, w.scale, scores + b * kBlockTokens);
  }
  static constexpr float kLaneNumbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const F32x16 lane = load(kLaneNumbers);
  for (int i = 0; i < kQ; ++i) {
    float* s = scores + static_cast<int64_t>(i) * kSplitTokens;
    const int begin = w.key_begin[q0 + i], end = w.key_end[q0 + i];
    float largest = -__builtin_inff();
    for (int key = begin; key < end; ++key) largest = s[key] > largest ? s[key] : largest;
    F32x16 total = zero();
    for (int b = first_block; b < last_block; ++b) {
      const F32x16 key = lane + static_cast<float>(b * kBlockTokens);
      const F32x16 p = exp16(load(s + b * kBlockTokens) - largest);
      // Keys this query must not see hold what other tokens wrote, or nothing yet: their weight is a plain zero.
      const F32x16 seen = inside(p, key, static_cast<float>(begin), static_cast<float>(end));
      store(s + b * kBlockTokens, seen);
      total += seen;
    }
    w.max[q0 + i] = largest;
    w.sum[q0 + i] = sum_lanes(total);
  }
  int c = 0;
  for (; c + 64 <= w.head_dim; c += 64) weigh_values<kQ, 4>(w, q0, c, first_key, last_key);
  for (; c + 16 <= w.head_dim; c += 16) weigh_values<kQ, 1>(w, q0, c, first_key, last_key);
  // A head that ends inside a vector: one dimension at a time, over the keys in the same order.
  for (; c < w.head_dim; ++c) {
    float acc[kQ] = {};
    for (int key = first_key; key < last_key; ++key) {
      const auto* v = static_cast<const uint16_t*>(w.v_blocks[key / kBlockTokens]) + (key % kBlockTokens) * w.head_dim + c;
      for (int i = 0; i < kQ; ++i) acc[i] += half_to_float(*v) * w.scores[(q0 + i) * kSplitTokens + key];
    }
    for (int i = 0; i < kQ; ++i) w.out[static_cast<int64_t>(q0 + i) * w.head_dim + c] = acc[i];
  }
}

void attention_f16(const AttentionSplit& w) {
  int q = 0;
  for (; q + 6 <= w.n_q; q += 6) attend<6>(w, q);
  for (; q + 3 <= w.n_q; q += 3) attend<3>(w, q);
  for (; q < w.n_q; ++q) attend<1>(w, q);
}
