// The few operations on which instruction sets differ. Included once per instruction set, inside its namespace, after
// `#pragma GCC target`, with SLUICE_SIMD = 512, 256 or 0 for AVX-512, AVX2 or plain code (g++ does not update
// __AVX2__ and its like at the pragma). Everything else is written in GCC's vector extensions, which mean the same on
// every target.

typedef float F32x16 __attribute__((vector_size(64)));
typedef int32_t I32x16 __attribute__((vector_size(64)));
typedef uint8_t U8x64 __attribute__((vector_size(64)));
typedef double F64x8 __attribute__((vector_size(64)));
typedef float F32x8u __attribute__((vector_size(32), aligned(4), may_alias));
typedef float F32x16u __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint8_t U8x64u __attribute__((vector_size(64), aligned(1), may_alias));

#define SLUICE_INLINE inline __attribute__((always_inline))

SLUICE_INLINE F32x16 load(const float* p) { return *reinterpret_cast<const F32x16u*>(p); }
SLUICE_INLINE void store(float* p, F32x16 v) { *reinterpret_cast<F32x16u*>(p) = v; }
SLUICE_INLINE F32x16 splat(float v) { return F32x16{} + v; }
SLUICE_INLINE I32x16 splat_i(int32_t v) { return I32x16{} + v; }
SLUICE_INLINE F32x16 to_float(I32x16 v) { return __builtin_convertvector(v, F32x16); }

// a * b + c with one rounding.
SLUICE_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
#if SLUICE_SIMD == 512
  return reinterpret_cast<F32x16>(_mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#elif SLUICE_SIMD == 256
  F32x16 out;
  for (int half = 0; half < 2; ++half) {
    __m256 av, bv, cv;
    __builtin_memcpy(&av, reinterpret_cast<const char*>(&a) + 32 * half, 32);
    __builtin_memcpy(&bv, reinterpret_cast<const char*>(&b) + 32 * half, 32);
    __builtin_memcpy(&cv, reinterpret_cast<const char*>(&c) + 32 * half, 32);
    const __m256 r = _mm256_fmadd_ps(av, bv, cv);
    __builtin_memcpy(reinterpret_cast<char*>(&out) + 32 * half, &r, 32);
  }
  return out;
#else
  F32x16 out;
  for (int i = 0; i < 16; ++i) out[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return out;
#endif
}

// 16 halves to floats.
SLUICE_INLINE F32x16 load_half(const uint16_t* p) {
#if SLUICE_SIMD == 512
  return reinterpret_cast<F32x16>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif SLUICE_SIMD == 256
  F32x16 out;
  for (int half = 0; half < 2; ++half) {
    const __m256 r = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8 * half)));
    __builtin_memcpy(reinterpret_cast<char*>(&out) + 32 * half, &r, 32);
  }
  return out;
#else
  F32x16 out;
  for (int i = 0; i < 16; ++i) out[i] = half_to_float(p[i]);
  return out;
#endif
}

SLUICE_INLINE void store_half16(uint16_t* p, F32x16 v) {
#if SLUICE_SIMD == 512
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(reinterpret_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
#elif SLUICE_SIMD == 256
  for (int half = 0; half < 2; ++half) {
    __m256 part;
    __builtin_memcpy(&part, reinterpret_cast<const char*>(&v) + 32 * half, 32);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8 * half), _mm256_cvtps_ph(part, _MM_FROUND_TO_NEAREST_INT));
  }
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
// of its unsigned bytes with a token's 32 signed bytes.
struct PanelBlock {
  U8x64 w[8];  // w[j]: byte 4 r + c = input 4 j + c of output r
};

SLUICE_INLINE PanelBlock unpack_q4(const uint8_t* nibbles) {
  PanelBlock block;
  for (int j = 0; j < 4; ++j) {
    const U8x64 packed = *reinterpret_cast<const U8x64u*>(nibbles + 64 * j);
    block.w[2 * j] = packed & 15;
#if SLUICE_SIMD == 512
    // The bytewise shift of the vector extension is not seen as shift + mask.
    block.w[2 * j + 1] = reinterpret_cast<U8x64>(_mm512_and_si512(_mm512_srli_epi16(reinterpret_cast<__m512i>(packed), 4), _mm512_set1_epi8(15)));
#else
    block.w[2 * j + 1] = packed >> 4;
#endif
  }
  return block;
}

SLUICE_INLINE PanelBlock unpack_q8(const uint8_t* bytes) {
  PanelBlock block;
  for (int j = 0; j < 8; ++j) block.w[j] = *reinterpret_cast<const U8x64u*>(bytes + 64 * j);
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
    a = _mm512_dpbusd_epi32(a, reinterpret_cast<__m512i>(block.w[j]), _mm512_set1_epi32(x0));
    b = _mm512_dpbusd_epi32(b, reinterpret_cast<__m512i>(block.w[j + 1]), _mm512_set1_epi32(x1));
  }
  return reinterpret_cast<I32x16>(_mm512_add_epi32(a, b));
#elif SLUICE_SIMD == 256
  I32x16 out;
  const __m256i ones = _mm256_set1_epi16(1);
  for (int half = 0; half < 2; ++half) {
    __m256i sum = _mm256_setzero_si256();
    for (int j = 0; j < 8; ++j) {
      int32_t xj;
      __builtin_memcpy(&xj, x + 4 * j, 4);
      const __m256i xv = _mm256_set1_epi32(xj);
      __m256i w;
      __builtin_memcpy(&w, reinterpret_cast<const char*>(&block.w[j]) + 32 * half, 32);
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
    __builtin_memcpy(reinterpret_cast<char*>(&out) + 32 * half, &sum, 32);
  }
  return out;
#else
  I32x16 out{};
  for (int r = 0; r < 16; ++r) {
    int32_t sum = 0;
    for (int j = 0; j < 8; ++j) {
      for (int c = 0; c < 4; ++c) {
        const int w = block.w[j][4 * r + c];
        sum += (kSmall ? w : w - 128) * x[4 * j + c];
      }
    }
    out[r] = sum;
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
  const F32x16 low = splat(-87.0f), high = splat(88.0f);
  x = x < low ? low : x;
  x = x > high ? high : x;
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
  const I32x16 exponent = (reinterpret_cast<I32x16>(shifted) - 0x4B400000 + 127) << 23;
  return p * reinterpret_cast<F32x16>(exponent);
}
