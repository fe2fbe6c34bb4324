// The few operations on which instruction sets differ. Included once per instruction set, inside its namespace, after
// `#pragma GCC target`, with SLUICE_SIMD = 512, 256 or 0 for AVX-512, AVX2 or plain code (g++ does not update
// __AVX2__ and its like at the pragma). Everything else is written in GCC's vector extensions, which mean the same on
// every target.

#define SLUICE_INLINE inline __attribute__((always_inline))

// Sixteen lanes as native vectors: one of 64 bytes, two of 32, or four of 16. (g++ takes 64-byte vectors on every target,
// but pulls them apart lane by lane where the hardware has none.)
#if SLUICE_SIMD == 512
constexpr int kPartBytes = 64;
#elif SLUICE_SIMD == 256
constexpr int kPartBytes = 32;
#else
constexpr int kPartBytes = 16;
#endif
constexpr int kPartLanes = kPartBytes / 4;
constexpr int kParts = 16 / kPartLanes;
typedef float FPart __attribute__((vector_size(kPartBytes), may_alias));
typedef int32_t IPart __attribute__((vector_size(kPartBytes), may_alias));
typedef double DPart __attribute__((vector_size(kPartBytes)));
typedef float FPartu __attribute__((vector_size(kPartBytes), aligned(4), may_alias));
typedef float FHalfu __attribute__((vector_size(kPartBytes / 2), aligned(4), may_alias));

struct I32x16 {
  IPart part[kParts];
};
struct F32x16 {
  FPart part[kParts];
  SLUICE_INLINE float operator[](int lane) const { return part[lane / kPartLanes][lane % kPartLanes]; }
};

#define SLUICE_EACH for (int part = 0; part < kParts; ++part)
#define SLUICE_OPERATOR(Vector, Scalar, op)                                                       \
  SLUICE_INLINE Vector operator op(Vector a, Vector b) { SLUICE_EACH a.part[part] = a.part[part] op b.part[part]; return a; } \
  SLUICE_INLINE Vector operator op(Vector a, Scalar b) { SLUICE_EACH a.part[part] = a.part[part] op b; return a; }            \
  SLUICE_INLINE Vector& operator op##=(Vector& a, Vector b) { return a = a op b; }
SLUICE_OPERATOR(F32x16, float, +)
SLUICE_OPERATOR(F32x16, float, -)
SLUICE_OPERATOR(F32x16, float, *)
SLUICE_OPERATOR(F32x16, float, /)
SLUICE_OPERATOR(I32x16, int32_t, +)
SLUICE_OPERATOR(I32x16, int32_t, -)
SLUICE_OPERATOR(I32x16, int32_t, *)
#undef SLUICE_OPERATOR

SLUICE_INLINE F32x16 load(const float* p) {
  F32x16 out;
  SLUICE_EACH out.part[part] = *reinterpret_cast<const FPartu*>(p + part * kPartLanes);
  return out;
}
SLUICE_INLINE void store(float* p, F32x16 v) { SLUICE_EACH *reinterpret_cast<FPartu*>(p + part * kPartLanes) = v.part[part]; }
SLUICE_INLINE F32x16 zero() {
  F32x16 out;
  SLUICE_EACH out.part[part] = FPart{};
  return out;
}
SLUICE_INLINE F32x16 splat(float v) { return zero() + v; }
SLUICE_INLINE F32x16 to_float(I32x16 v) {
  F32x16 out;
  SLUICE_EACH out.part[part] = __builtin_convertvector(v.part[part], FPart);
  return out;
}
// The lanes' bits as integers, and back.
SLUICE_INLINE I32x16 bits_of(F32x16 v) {
  I32x16 out;
  SLUICE_EACH out.part[part] = reinterpret_cast<IPart>(v.part[part]);
  return out;
}
SLUICE_INLINE F32x16 floats_of(I32x16 v) {
  F32x16 out;
  SLUICE_EACH out.part[part] = reinterpret_cast<FPart>(v.part[part]);
  return out;
}
SLUICE_INLINE F32x16 minimum(F32x16 a, F32x16 b) { SLUICE_EACH a.part[part] = a.part[part] < b.part[part] ? a.part[part] : b.part[part]; return a; }
SLUICE_INLINE F32x16 maximum(F32x16 a, F32x16 b) { SLUICE_EACH a.part[part] = a.part[part] > b.part[part] ? a.part[part] : b.part[part]; return a; }
// v where low <= at < high, else 0.
SLUICE_INLINE F32x16 inside(F32x16 v, F32x16 at, float low, float high) {
  SLUICE_EACH v.part[part] = (at.part[part] >= low) & (at.part[part] < high) ? v.part[part] : FPart{};
  return v;
}

// a * b + c with one rounding.
SLUICE_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
#if SLUICE_SIMD == 512
  c.part[0] = reinterpret_cast<FPart>(_mm512_fmadd_ps(reinterpret_cast<__m512>(a.part[0]), reinterpret_cast<__m512>(b.part[0]), reinterpret_cast<__m512>(c.part[0])));
#elif SLUICE_SIMD == 256
  SLUICE_EACH c.part[part] = reinterpret_cast<FPart>(_mm256_fmadd_ps(reinterpret_cast<__m256>(a.part[part]), reinterpret_cast<__m256>(b.part[part]), reinterpret_cast<__m256>(c.part[part])));
#else
  SLUICE_EACH {
    float lanes[kPartLanes], factors[kPartLanes], addends[kPartLanes];
    __builtin_memcpy(lanes, &a.part[part], kPartBytes);
    __builtin_memcpy(factors, &b.part[part], kPartBytes);
    __builtin_memcpy(addends, &c.part[part], kPartBytes);
    for (int i = 0; i < kPartLanes; ++i) lanes[i] = __builtin_fmaf(lanes[i], factors[i], addends[i]);
    __builtin_memcpy(&c.part[part], lanes, kPartBytes);
  }
#endif
  return c;
}

// 16 halves to floats.
SLUICE_INLINE F32x16 load_half(const uint16_t* p) {
  F32x16 out = zero();
#if SLUICE_SIMD == 512
  out.part[0] = reinterpret_cast<FPart>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif SLUICE_SIMD == 256
  SLUICE_EACH out.part[part] = reinterpret_cast<FPart>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8 * part))));
#else
  SLUICE_EACH {
    for (int i = 0; i < kPartLanes; ++i) out.part[part][i] = half_to_float(p[part * kPartLanes + i]);
  }
#endif
  return out;
}

SLUICE_INLINE void store_half16(uint16_t* p, F32x16 v) {
#if SLUICE_SIMD == 512
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(reinterpret_cast<__m512>(v.part[0]), _MM_FROUND_TO_NEAREST_INT));
#elif SLUICE_SIMD == 256
  SLUICE_EACH _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8 * part), _mm256_cvtps_ph(reinterpret_cast<__m256>(v.part[part]), _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < 16; ++i) p[i] = float_to_half(v[i]);
#endif
}

// Lane sums in one fixed order: halves onto each other.
SLUICE_INLINE float sum_lanes(F32x16 v) {
  float x[16];
  __builtin_memcpy(x, &v, 64);
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) x[i] += x[i + width];
  }
  return x[0];
}

// One block of 32 inputs x 16 outputs, unpacked for use with many tokens; dot() gives the 16 exact integer dot products
// of its unsigned bytes with a token's 32 signed bytes. w[j]: byte 4 r + c = input 4 j + c of output r.
struct PanelBlock {
#if SLUICE_SIMD == 512
  __m512i w[8];
#elif SLUICE_SIMD == 256
  __m256i w[8][2];  // outputs 0..7, 8..15
#else
  uint8_t w[8][64];
#endif
};

SLUICE_INLINE PanelBlock unpack_q4(const uint8_t* nibbles) {
  PanelBlock block;
  for (int j = 0; j < 4; ++j) {
#if SLUICE_SIMD == 512
    const __m512i packed = _mm512_loadu_si512(nibbles + 64 * j);
    block.w[2 * j] = _mm512_and_si512(packed, _mm512_set1_epi8(15));
    block.w[2 * j + 1] = _mm512_and_si512(_mm512_srli_epi16(packed, 4), _mm512_set1_epi8(15));
#elif SLUICE_SIMD == 256
    for (int half = 0; half < 2; ++half) {
      const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(nibbles + 64 * j + 32 * half));
      block.w[2 * j][half] = _mm256_and_si256(packed, _mm256_set1_epi8(15));
      block.w[2 * j + 1][half] = _mm256_and_si256(_mm256_srli_epi16(packed, 4), _mm256_set1_epi8(15));
    }
#else
    for (int i = 0; i < 64; ++i) {
      block.w[2 * j][i] = nibbles[64 * j + i] & 15;
      block.w[2 * j + 1][i] = nibbles[64 * j + i] >> 4;
    }
#endif
  }
  return block;
}

SLUICE_INLINE PanelBlock unpack_q8(const uint8_t* bytes) {
  PanelBlock block;
  for (int j = 0; j < 8; ++j) {
#if SLUICE_SIMD == 512
    block.w[j] = _mm512_loadu_si512(bytes + 64 * j);
#elif SLUICE_SIMD == 256
    for (int half = 0; half < 2; ++half) block.w[j][half] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + 64 * j + 32 * half));
#else
    __builtin_memcpy(block.w[j], bytes + 64 * j, 64);
#endif
  }
  return block;
}

// kSmall: every weight byte is at most 15, so that AVX2 may add up pairs in 16 bits (8 * 2 * 15 * 127 < 2^15).
// Otherwise bytes are q + 128.
template <bool kSmall>
SLUICE_INLINE I32x16 dot(const PanelBlock& block, const int8_t* x) {
#if SLUICE_SIMD == 512
  __m512i a = _mm512_setzero_si512(), b = _mm512_setzero_si512();  // two chains: latency 4, one issue each
  for (int j = 0; j < 8; j += 2) {
    int32_t x0, x1;
    __builtin_memcpy(&x0, x + 4 * j, 4);
    __builtin_memcpy(&x1, x + 4 * j + 4, 4);
    a = _mm512_dpbusd_epi32(a, block.w[j], _mm512_set1_epi32(x0));
    b = _mm512_dpbusd_epi32(b, block.w[j + 1], _mm512_set1_epi32(x1));
  }
  return {{reinterpret_cast<IPart>(_mm512_add_epi32(a, b))}};
#elif SLUICE_SIMD == 256
  I32x16 out;
  const __m256i ones = _mm256_set1_epi16(1);
  for (int half = 0; half < 2; ++half) {
    __m256i sum = _mm256_setzero_si256();
    for (int j = 0; j < 8; ++j) {
      int32_t xj;
      __builtin_memcpy(&xj, x + 4 * j, 4);
      const __m256i xv = _mm256_set1_epi32(xj);
      const __m256i w = block.w[j][half];
      if constexpr (kSmall) {
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, xv));
      } else {
        // |w - 128| * (x with w's sign): pairs reach 2 * 128 * 127, which still fits 16 bits; the + 128 is put back below.
        const __m256i s = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(s), _mm256_sign_epi8(xv, s));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
      }
    }
    if constexpr (kSmall) sum = _mm256_madd_epi16(sum, ones);
    out.part[half] = reinterpret_cast<IPart>(sum);
  }
  return out;
#else
  I32x16 out = bits_of(zero());
  for (int r = 0; r < 16; ++r) {
    int32_t sum = 0;
    for (int j = 0; j < 8; ++j) {
      for (int c = 0; c < 4; ++c) {
        const int w = block.w[j][4 * r + c];
        sum += (kSmall ? w : w - 128) * x[4 * j + c];
      }
    }
    out.part[r / kPartLanes][r % kPartLanes] = sum;
  }
  return out;
#endif
}

// Whether dot<false> leaves the + 128 in its result (AVX-512 does, since taking it back costs one addition a block).
#if SLUICE_SIMD == 512
constexpr bool kDotKeepsOffset = true;
#else
constexpr bool kDotKeepsOffset = false;
#endif

// e^x for x <= 88, relative error below 2 ulp: 2^n e^r with |r| <= ln(2) / 2 and a polynomial in r (coefficients after
// Cephes' expf, S. Moshier). Below -87 the result is the smallest such power, not 0.
SLUICE_INLINE F32x16 exp16(F32x16 x) {
  x = minimum(maximum(x, splat(-87.0f)), splat(88.0f));
  const F32x16 magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, in the low bits
  const F32x16 shifted = x * 1.44269504f + magic;
  const F32x16 n = shifted - magic;
  F32x16 r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  F32x16 p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * r) * r + r + 1.0f;
  I32x16 exponent = bits_of(shifted) - 0x4B400000 + 127;
  SLUICE_EACH exponent.part[part] <<= 23;
  return p * floats_of(exponent);
}
