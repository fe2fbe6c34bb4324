// The CPU kernels for avx512. The standard headers come first: code of theirs that is shared with other
// files must not be compiled for an instruction set that the machine may lack.
#include "ops/cpu/kernels.h"

#include <cstdint>

#include "base/half.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,prefer-vector-width=512")

#define SLUICE_SIMD 512

namespace sluice::cpu {
namespace avx512 {
#include "ops/cpu/simd.inl"
#include "ops/cpu/attention.inl"
#include "ops/cpu/elementwise.inl"
#include "ops/cpu/linear.inl"
}  // namespace avx512

extern const Kernels kAvx512;
const Kernels kAvx512 = {
    avx512::panel_quant<true>, avx512::panel_quant<false>, avx512::panel_f32, avx512::quantize, avx512::rmsnorm,
    avx512::swiglu, avx512::attention_f16, avx512::store_half,
};

}  // namespace sluice::cpu

#pragma GCC pop_options
#endif
