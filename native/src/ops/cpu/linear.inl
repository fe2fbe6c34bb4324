// Products of weight panels with activations. Per output and block of 32 inputs, in the order of the blocks:
//   acc = fma(float(integer dot), d_w d_x, acc);  q4 also  acc = fma(m_w, d_x sum(q_x), acc)
// The integer dot is exact: 32 * 128 * 32512 < 2^31.
// A tile of kTile tokens shares the unpacking of a block; it changes nothing about any one output's sum.

template <bool kQ4, bool kWide, int kTile>
SLUICE_INLINE void panel_tile(const std::byte* panel, const QuantActivations& x, int first, const float* bias, float* y,
                              int64_t y_stride, int valid) {
  const int n_blocks = x.n_blocks;
  const auto* weights = reinterpret_cast<const uint8_t*>(panel);
  const auto* scales = reinterpret_cast<const uint16_t*>(panel);
  if constexpr (!kQ4) weights += q8_scale_bytes(n_blocks);
  F32x16 acc[kTile];
  for (int t = 0; t < kTile; ++t) acc[t] = zero();
  const int64_t blocks_before = static_cast<int64_t>(first) * n_blocks;
  const int8_t* high = x.high + blocks_before * kQuantBlock;
  const int8_t* low = x.low + blocks_before * kQuantBlock;
  const float* d = x.d + blocks_before;
  const float* d_sum = x.d_sum + blocks_before;
  const int32_t* sum = x.sum + blocks_before;
  for (int b = 0; b < n_blocks; ++b) {
    PanelBlock block;
    F32x16 dw = zero(), mw = zero();
    if constexpr (kTile == 1) {
      // A decode step is one walk through all weights. The hardware's prefetchers stop at the end of a page, so each page
      // would begin with a wait: ask for what comes 4 KiB later.
      if (x.prefetch) {
        for (int line = 0; line < (kQ4 ? kQ4BlockBytes : kQ8BlockBytes); line += 64) __builtin_prefetch(weights + 4096 + line, 0, 2);
      }
    }
    if constexpr (kQ4) {
      dw = load_half(reinterpret_cast<const uint16_t*>(weights));
      mw = load_half(reinterpret_cast<const uint16_t*>(weights) + kLanes);
      block = unpack_q4(weights + 4 * kLanes);
      weights += kQ4BlockBytes;
    } else {
      dw = load_half(scales);
      scales += kLanes;
      block = unpack_q8(weights);
      weights += kQ8BlockBytes;
    }
    for (int t = 0; t < kTile; ++t) {
      const int64_t at = static_cast<int64_t>(t) * n_blocks + b;
      I32x16 products = dot<kQ4>(block, high + at * kQuantBlock);
      if constexpr (kWide) products = products * kWideBase + dot<kQ4>(block, low + at * kQuantBlock);
      if constexpr (!kQ4 && kDotKeepsOffset) products = products - 128 * sum[at];
      acc[t] = fma(to_float(products), dw * d[at], acc[t]);
      if constexpr (kQ4) acc[t] = fma(mw, splat(d_sum[at]), acc[t]);
    }
  }
  for (int t = 0; t < kTile; ++t) {
    if (bias != nullptr) acc[t] += load(bias);
    float* row = y + static_cast<int64_t>(t) * y_stride;
    if (valid == kLanes) {
      store(row, acc[t]);
    } else {
      for (int i = 0; i < valid; ++i) row[i] = acc[t][i];
    }
  }
}

#if SLUICE_SIMD == 512
constexpr int kTokenTile = 8;
#else
constexpr int kTokenTile = 4;
#endif

template <bool kQ4, bool kWide>
SLUICE_INLINE void panel_tokens(const std::byte* panel, const QuantActivations& x, int first, int m, const float* bias,
                                float* y, int64_t y_stride, int valid) {
  int t = 0;
  for (; t + kTokenTile <= m; t += kTokenTile) {
    panel_tile<kQ4, kWide, kTokenTile>(panel, x, first + t, bias, y + t * y_stride, y_stride, valid);
  }
  if constexpr (kTokenTile == 8) {
    for (; t + 4 <= m; t += 4) panel_tile<kQ4, kWide, 4>(panel, x, first + t, bias, y + t * y_stride, y_stride, valid);
  }
  for (; t + 2 <= m; t += 2) panel_tile<kQ4, kWide, 2>(panel, x, first + t, bias, y + t * y_stride, y_stride, valid);
  for (; t < m; ++t) panel_tile<kQ4, kWide, 1>(panel, x, first + t, bias, y + t * y_stride, y_stride, valid);
}

template <bool kQ4>
void panel_quant(const std::byte* panel, const QuantActivations& x, int first, int m, const float* bias, float* y,
                 int64_t y_stride, int valid) {
  if (x.wide) {
    panel_tokens<kQ4, true>(panel, x, first, m, bias, y, y_stride, valid);
  } else {
    panel_tokens<kQ4, false>(panel, x, first, m, bias, y, y_stride, valid);
  }
}

// The product of two floats is exact in double, so only the additions round.
template <int kTile>
SLUICE_INLINE void panel_f32_tile(const float* panel, const float* x, int64_t x_stride, int cols, const float* bias,
                                  float* y, int64_t y_stride, int valid) {
  constexpr int kDParts = 2 * kParts;
  constexpr int kDLanes = kPartLanes / 2;
  DPart acc[kTile][kDParts];
  for (int t = 0; t < kTile; ++t) {
    for (int i = 0; i < kDParts; ++i) acc[t][i] = DPart{};
  }
  for (int k = 0; k < cols; ++k) {
    const float* w = panel + static_cast<int64_t>(k) * kLanes;
    DPart wide[kDParts];
    for (int i = 0; i < kDParts; ++i) wide[i] = __builtin_convertvector(*reinterpret_cast<const FHalfu*>(w + i * kDLanes), DPart);
    for (int t = 0; t < kTile; ++t) {
      const double xk = x[t * x_stride + k];
      for (int i = 0; i < kDParts; ++i) acc[t][i] += wide[i] * xk;
    }
  }
  for (int t = 0; t < kTile; ++t) {
    for (int i = 0; i < valid; ++i) {
      const double sum = acc[t][i / kDLanes][i % kDLanes] + (bias != nullptr ? static_cast<double>(bias[i]) : 0.0);
      y[t * y_stride + i] = static_cast<float>(sum);
    }
  }
}

void panel_f32(const float* panel, const float* x, int64_t x_stride, int cols, int m, const float* bias, float* y,
               int64_t y_stride, int valid) {
  int t = 0;
  for (; t + 4 <= m; t += 4) panel_f32_tile<4>(panel, x + t * x_stride, x_stride, cols, bias, y + t * y_stride, y_stride, valid);
  for (; t < m; ++t) panel_f32_tile<1>(panel, x + t * x_stride, x_stride, cols, bias, y + t * y_stride, y_stride, valid);
}
