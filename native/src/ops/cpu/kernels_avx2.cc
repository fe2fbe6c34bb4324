// The CPU kernels for avx2. The standard headers come first: code of theirs that is shared with other
// files must not be compiled for an instruction set that the machine may lack.
#include "ops/cpu/kernels.h"

#include <cstdint>

#include "base/half.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

#define SLUICE_SIMD 256

namespace sluice::cpu {
namespace avx2 {
#include "ops/cpu/simd.inl"
#include "ops/cpu/attention.inl"
#include "ops/cpu/elementwise.inl"
#include "ops/cpu/linear.inl"
}  // namespace avx2

extern const Kernels kAvx2;
const Kernels kAvx2 = {
    avx2::panel_quant<true>, avx2::panel_quant<false>, avx2::panel_f32, avx2::quantize, avx2::rmsnorm,
    avx2::swiglu, avx2::attention_f16, avx2::store_half,
};

}  // namespace sluice::cpu

#pragma GCC pop_options
#endif
