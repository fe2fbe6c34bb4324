// The CPU kernels for generic. The standard headers come first: code of theirs that is shared with other
// files must not be compiled for an instruction set that the machine may lack.
#include "ops/cpu/kernels.h"

#include <cstdint>

#include "base/half.h"

#define SLUICE_SIMD 0

namespace sluice::cpu {
namespace generic {
#include "ops/cpu/simd.inl"
#include "ops/cpu/attention.inl"
#include "ops/cpu/elementwise.inl"
#include "ops/cpu/linear.inl"
}  // namespace generic

extern const Kernels kGeneric;
const Kernels kGeneric = {
    generic::panel_quant<true>, generic::panel_quant<false>, generic::panel_f32, generic::quantize, generic::rmsnorm,
    generic::swiglu, generic::attention_f16, generic::store_half,
};

}  // namespace sluice::cpu
