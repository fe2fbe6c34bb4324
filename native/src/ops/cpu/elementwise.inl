// Everything that touches each activation once.

// Adding 1.5 * 2^23 rounds to nearest even and leaves the integer in the low bits; |v| < 2^22.
SLUICE_INLINE I32x16 round_to_int(F32x16 v) { return bits_of(v + 12582912.0f) - 0x4B400000; }

SLUICE_INLINE void store_bytes(int8_t* out, I32x16 v) {
  typedef int8_t BPart __attribute__((vector_size(kPartLanes)));
  SLUICE_EACH {
    const BPart bytes = __builtin_convertvector(v.part[part], BPart);
    __builtin_memcpy(out + part * kPartLanes, &bytes, kPartLanes);
  }
}

void quantize(const float* x, int cols, int token, const QuantActivations& out) {
  const float most = out.wide ? static_cast<float>(127 * kWideBase) : 127.0f;
  for (int b = 0; b < out.n_blocks; ++b) {
    const int64_t at = static_cast<int64_t>(token) * out.n_blocks + b;
    float tail[kQuantBlock] = {};
    const float* in = x + b * kQuantBlock;
    if ((b + 1) * kQuantBlock > cols) {
      for (int i = b * kQuantBlock; i < cols; ++i) tail[i - b * kQuantBlock] = x[i];
      in = tail;
    }
    const F32x16 v0 = load(in), v1 = load(in + 16);
    float lanes[16];
    store(lanes, maximum(maximum(v0, zero() - v0), maximum(v1, zero() - v1)));
    for (int width = 8; width > 0; width /= 2) {
      for (int i = 0; i < width; ++i) lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
    }
    const float largest = lanes[0];
    const float scale = largest / most;
    // A subnormal block would give an infinite inverse; its contribution is below every other rounding.
    const float inverse = largest > 1e-30f ? most / largest : 0.0f;
    const I32x16 q0 = round_to_int(v0 * inverse), q1 = round_to_int(v1 * inverse);
    int8_t* high = out.high + at * kQuantBlock;
    if (out.wide) {
      const I32x16 h0 = round_to_int(to_float(q0) * (1.0f / kWideBase)), h1 = round_to_int(to_float(q1) * (1.0f / kWideBase));
      int8_t* low = out.low + at * kQuantBlock;
      store_bytes(high, h0);
      store_bytes(high + 16, h1);
      store_bytes(low, q0 - h0 * kWideBase);
      store_bytes(low + 16, q1 - h1 * kWideBase);
    } else {
      store_bytes(high, q0);
      store_bytes(high + 16, q1);
    }
    int32_t values[16];
    const I32x16 pairs = q0 + q1;
    __builtin_memcpy(values, &pairs, 64);
    int32_t total = 0;
    for (int i = 0; i < 16; ++i) total += values[i];
    out.d[at] = scale;
    out.sum[at] = total;
    out.d_sum[at] = scale * static_cast<float>(total);
  }
}

void rmsnorm(float* residual, const float* delta, const float* weight, int width, float eps, float* out) {
  F32x16 lanes = zero();
  float rest = 0;
  int i = 0;
  for (; i + 16 <= width; i += 16) {
    F32x16 v = load(residual + i);
    if (delta != nullptr) {
      v += load(delta + i);
      store(residual + i, v);
    }
    lanes += v * v;
  }
  for (; i < width; ++i) {
    if (delta != nullptr) residual[i] += delta[i];
    rest += residual[i] * residual[i];
  }
  const float inverse = 1.0f / __builtin_sqrtf((sum_lanes(lanes) + rest) / static_cast<float>(width) + eps);
  i = 0;
  for (; i + 16 <= width; i += 16) store(out + i, load(residual + i) * inverse * load(weight + i));
  for (; i < width; ++i) out[i] = residual[i] * inverse * weight[i];
}

void swiglu(const float* gate, const float* up, int n, float* out) {
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    const F32x16 g = load(gate + i);
    store(out + i, g / (exp16(zero() - g) + 1.0f) * load(up + i));
  }
  if (i < n) {
    float g[16] = {}, u[16] = {};
    for (int j = i; j < n; ++j) {
      g[j - i] = gate[j];
      u[j - i] = up[j];
    }
    const F32x16 gv = load(g);
    const F32x16 r = gv / (exp16(zero() - gv) + 1.0f) * load(u);
    for (int j = i; j < n; ++j) out[j] = r[j - i];
  }
}

// stride 1 writes a row (V); kBlockTokens writes a column of a transposed block (K).
void store_half(const float* source, int n, uint16_t* target, int64_t stride) {
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    uint16_t halves[16];
    store_half16(halves, load(source + i));
    if (stride == 1) {
      __builtin_memcpy(target + i, halves, 32);
    } else {
      for (int j = 0; j < 16; ++j) target[(i + j) * stride] = halves[j];
    }
  }
  for (; i < n; ++i) target[i * stride] = float_to_half(source[i]);
}
