// Host twins of native/src/ops/cuda/ptx.cuh, found before it on the include path.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <map>

namespace sluice::cuda::ptx {

inline uint8_t* dynamic_shared() { return emulated::dynamic_shared(); }
// Offsets into dynamic shared memory: kernels take addresses of nothing else.
inline uint32_t shared_address(const void* p) {
  const auto at = static_cast<const uint8_t*>(p) - emulated::dynamic_shared();
  if (at < 0 || at > std::ptrdiff_t(emulated::dynamic_shared_bytes())) emulated::fail("the address of something outside of dynamic shared memory");
  return uint32_t(at);
}
template <class T>
T& at_address(uint32_t address) {
  if (address % alignof(T)) emulated::fail("a misaligned address in shared memory");
  if (address + sizeof(T) > emulated::dynamic_shared_bytes()) emulated::fail("an access past the end of shared memory");
  return *reinterpret_cast<T*>(emulated::dynamic_shared() + address);
}
inline void named_barrier(int id, int threads) { emulated::barrier(id, unsigned(threads)); }

// --- mbarriers -------------------------------------------------------------------------------------------------------
// phase: completed phases, mod 2; pending: arrivals the phase still waits for; bytes: expected less arrived ones.
struct Mbarrier {
  uint16_t magic_and_phase, arrivals;
  uint16_t pending, unused;
};
static_assert(sizeof(Mbarrier) == sizeof(uint64_t));
constexpr uint16_t kMbarrierMagic = 0xbad0;
inline std::map<const void*, int64_t>& bytes_under_way() {
  static std::map<const void*, int64_t> bytes;
  return bytes;
}
inline Mbarrier& mbarrier_of(uint64_t* bar) {
  auto& b = reinterpret_cast<Mbarrier&>(*bar);
  if ((b.magic_and_phase & 0xfffe) != kMbarrierMagic) emulated::fail("an mbarrier that was not initialised");
  return b;
}
inline void complete_if_due(uint64_t* bar) {
  Mbarrier& b = mbarrier_of(bar);
  if (b.pending != 0 || bytes_under_way()[bar] != 0) return;
  b.magic_and_phase ^= 1;
  b.pending = b.arrivals;
}
inline void mbarrier_init(uint64_t* bar, uint32_t arrivals) {
  if (arrivals == 0 || arrivals > 0xffff) emulated::fail("an mbarrier for no arrivals");
  reinterpret_cast<Mbarrier&>(*bar) = {kMbarrierMagic, uint16_t(arrivals), uint16_t(arrivals), 0};
  bytes_under_way()[bar] = 0;
}
inline void mbarrier_arrive_expect_tx(uint64_t* bar, uint32_t bytes) {
  Mbarrier& b = mbarrier_of(bar);
  if (b.pending == 0) emulated::fail("more arrivals at an mbarrier than it was made for");
  bytes_under_way()[bar] += bytes;
  --b.pending;
  complete_if_due(bar);
}
inline void mbarrier_arrive(uint64_t* bar) { mbarrier_arrive_expect_tx(bar, 0); }
inline void mbarrier_wait(uint64_t* bar, uint32_t parity) {
  emulated::wait_until("an mbarrier", [=] { return (mbarrier_of(bar).magic_and_phase & 1) != parity; });
}
inline void fence_mbarrier_init() {}
inline void fence_proxy_async() {}

// --- bulk copies -----------------------------------------------------------------------------------------------------
inline uint64_t evict_first_policy() { return 0; }
inline void bulk_load(void* shared, const void* global, uint32_t bytes, uint64_t* bar, uint64_t = 0) {
  if (bytes == 0 || bytes % 16 || uintptr_t(global) % 16 || shared_address(shared) % 16) emulated::fail("a bulk copy that is not in units of 16 bytes");
  at_address<uint8_t>(shared_address(shared) + bytes - 1);
  emulated::asynchronously([=] {
    std::memcpy(shared, global, bytes);
    bytes_under_way()[bar] -= bytes;
    complete_if_due(bar);
  });
}
inline uint32_t stage_arrivals(int) { return 1; }
inline void stage_begin(uint64_t* bar, uint32_t bytes) { mbarrier_arrive_expect_tx(bar, bytes); }
inline void stage_copy(void* shared, const void* global, uint32_t bytes, uint64_t* bar) { bulk_load(shared, global, bytes, bar); }
inline void prefetch_l2(const void* global, uint32_t bytes) {
  if (bytes % 16 || uintptr_t(global) % 16) emulated::fail("a prefetch that is not in units of 16 bytes");
}

// --- between blocks --------------------------------------------------------------------------------------------------
inline void red_release_add(uint32_t* p, uint32_t v) { *p += v; }
inline uint32_t load_acquire(const uint32_t* p) { return *p; }
inline void wait_until_equal(const uint32_t* p, uint32_t v) {
  emulated::wait_until("a counter in device memory", [=] { return *p == v; });
}
inline void wait_for_previous_kernel() {}
inline void allow_next_kernel() {}
inline uint32_t cluster_rank() { return emulated::cluster_rank(); }
inline void cluster_sync() { emulated::cluster_barrier(); }
// The same place in the dynamic shared memory of another block of the cluster.
template <class T>
T* cluster_map(T* p, uint32_t rank) {
  return reinterpret_cast<T*>(emulated::cluster_shared(rank) + shared_address(p));
}

// --- tensor cores ----------------------------------------------------------------------------------------------------
namespace twin {
struct Mma {
  float* c;
  const uint32_t* a;
  uint32_t b[2];
  float (*value)(uint16_t);
};
inline float from_bf16(uint16_t v) { return __uint_as_float(uint32_t(v) << 16); }
inline float from_f16(uint16_t v) { return __half2float({v}); }
inline void mma(const char* name, float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, float (*value)(uint16_t)) {
  Mma mine{c, a, {b0, b1}, value};
  emulated::collective(name, ~0u, &mine, [](void* const operands[32], uint32_t) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const Mma& m = *static_cast<Mma*>(operands[lane]);
      const int g = lane / 4, t = lane % 4;
      for (int r = 0; r < 4; ++r)
        for (int h = 0; h < 2; ++h) a[g + r % 2 * 8][2 * t + r / 2 * 8 + h] = m.value(uint16_t(m.a[r] >> 16 * h));
      for (int r = 0; r < 2; ++r)
        for (int h = 0; h < 2; ++h) b[2 * t + r * 8 + h][g] = m.value(uint16_t(m.b[r] >> 16 * h));
    }
    for (int lane = 0; lane < 32; ++lane) {
      const Mma& m = *static_cast<Mma*>(operands[lane]);
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, col = lane % 4 * 2 + i % 2;
        double sum = m.c[i];
        for (int k = 0; k < 16; ++k) sum += double(a[row][k]) * b[k][col];
        m.c[i] = float(sum);
      }
    }
  });
}
}  // namespace twin
inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { twin::mma("mma bf16", c, a, b0, b1, twin::from_bf16); }
inline void mma_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { twin::mma("mma f16", c, a, b0, b1, twin::from_f16); }

// Lane 8 i + r gives the address of row r of matrix i; register i of lane (g, t) is elements 2t, 2t + 1 of row g.
template <bool transposed>
inline void ldmatrix(uint32_t (&d)[4], uint32_t address) {
  struct Operand {
    uint32_t address;
    uint32_t* d;
  } mine{address, d};
  emulated::collective(transposed ? "ldmatrix.trans" : "ldmatrix", ~0u, &mine, [](void* const operands[32], uint32_t) {
    for (int i = 0; i < 4; ++i) {
      uint16_t m[8][8];
      for (int r = 0; r < 8; ++r) {
        const uint32_t row = static_cast<Operand*>(operands[8 * i + r])->address;
        if (row % 16) emulated::fail("a row of ldmatrix that is not aligned to 16 bytes");
        for (int c = 0; c < 8; ++c) m[r][c] = at_address<uint16_t>(row + 2 * c);
      }
      for (int lane = 0; lane < 32; ++lane) {
        const int g = lane / 4, t = lane % 4;
        const uint16_t low = transposed ? m[2 * t][g] : m[g][2 * t], high = transposed ? m[2 * t + 1][g] : m[g][2 * t + 1];
        static_cast<Operand*>(operands[lane])->d[i] = uint32_t(high) << 16 | low;
      }
    }
  });
}
inline void ldmatrix_x4(uint32_t (&d)[4], uint32_t address) { ldmatrix<false>(d, address); }
inline void ldmatrix_x4_trans(uint32_t (&d)[4], uint32_t address) { ldmatrix<true>(d, address); }
inline uint32_t movmatrix_trans(uint32_t v) {
  return emulated::exchange<uint32_t, uint32_t>("movmatrix", ~0u, v, [](const uint32_t* rows, int lane) {
    auto element = [&](int r, int c) { return rows[r * 4 + c / 2] >> 16 * (c % 2) & 0xffff; };
    const int g = lane / 4, t = lane % 4;
    return element(2 * t + 1, g) << 16 | element(2 * t, g);
  });
}

// --- arithmetic on pairs ---------------------------------------------------------------------------------------------
inline float bf16_low(uint32_t v) { return __uint_as_float(v << 16); }
inline float bf16_high(uint32_t v) { return __uint_as_float(v & 0xffff0000u); }
inline uint32_t pack_bf16x2(float low, float high) { return uint32_t(__float2bfloat16(high).bits) << 16 | __float2bfloat16(low).bits; }
inline uint32_t pack_f16x2(float low, float high) { return uint32_t(__float2half(high).bits) << 16 | __float2half(low).bits; }
inline uint32_t mul_bf16x2(uint32_t a, uint32_t b) { return pack_bf16x2(bf16_low(a) * bf16_low(b), bf16_high(a) * bf16_high(b)); }
inline uint32_t sub_bf16x2(uint32_t a, uint32_t b) { return pack_bf16x2(bf16_low(a) - bf16_low(b), bf16_high(a) - bf16_high(b)); }
inline uint32_t sub_f16x2(uint32_t a, uint32_t b) {
  auto half = [](uint32_t v, int h) { return twin::from_f16(uint16_t(v >> 16 * h)); };
  return pack_f16x2(half(a, 0) - half(b, 0), half(a, 1) - half(b, 1));
}
inline float exp2_approx(float v) { return std::exp2(v); }
// Two e4m3 bytes, saturating, nearest even; low byte first.
inline uint32_t pack_e4m3x2(float low, float high) {
  auto one = [](float v) -> uint32_t {
    const uint32_t sign = std::signbit(v) ? 0x80 : 0;
    const float m = std::min(std::fabs(v), 448.0f);
    if (std::isnan(v)) return 0x7f;
    if (m < 0x1p-6f) return sign | uint32_t(std::nearbyint(m * 512));
    int e;
    std::frexp(m, &e);
    const int steps = int(std::nearbyint(std::ldexp(m, 4 - e)));  // 8 .. 16
    return sign | uint32_t((e - 1 + 7) * 8 + steps - 8);
  };
  return one(high) << 8 | one(low);
}
inline constexpr uint32_t kLutA = 0xF0, kLutB = 0xCC, kLutC = 0xAA;
template <uint32_t table>
inline uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d = 0;
  for (int i = 0; i < 8; ++i)
    if (table >> i & 1) d |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return d;
}
inline uint4 load_shared_v4(uint32_t address) { return at_address<uint4>(address); }
inline uint32_t load_shared(uint32_t address) { return at_address<uint32_t>(address); }

}  // namespace sluice::cuda::ptx
