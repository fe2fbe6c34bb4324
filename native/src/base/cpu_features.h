// Which instruction sets the kernels may use on this machine.
#pragma once

#include <cstdint>
#include <string_view>

namespace sluice {

enum class CpuIsa : uint8_t { generic, avx2, avx512 };  // avx512 = F, BW, VL, DQ and VNNI

// The best one this CPU and operating system offer, or a lower one when the environment variable SLUICE_CPU_ISA names it
// (generic | avx2 | avx512). Throws std::runtime_error when it names one that is unknown or missing here.
CpuIsa choose_cpu_isa();
bool cpu_has(CpuIsa isa);
std::string_view cpu_isa_name(CpuIsa isa);

}  // namespace sluice
