#include "base/cpu_features.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace sluice {

bool cpu_has(CpuIsa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();  // __builtin_cpu_supports also asks the OS (XGETBV) whether it saves the registers
  switch (isa) {
    case CpuIsa::generic: return true;
    case CpuIsa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    case CpuIsa::avx512:
      return cpu_has(CpuIsa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vnni");
  }
  return false;
#else
  return isa == CpuIsa::generic;
#endif
}

std::string_view cpu_isa_name(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::generic: return "generic";
    case CpuIsa::avx2: return "avx2";
    case CpuIsa::avx512: return "avx512";
  }
  return "unknown";
}

CpuIsa choose_cpu_isa() {
  const char* wanted = std::getenv("SLUICE_CPU_ISA");
  for (const CpuIsa isa : {CpuIsa::avx512, CpuIsa::avx2, CpuIsa::generic}) {
    if (wanted == nullptr || *wanted == '\0') {
      if (cpu_has(isa)) return isa;
    } else if (cpu_isa_name(isa) == wanted) {
      if (!cpu_has(isa)) throw std::runtime_error("SLUICE_CPU_ISA=" + std::string(wanted) + ": this CPU lacks it");
      return isa;
    }
  }
  throw std::runtime_error("SLUICE_CPU_ISA=" + std::string(wanted) + " is not one of generic, avx2, avx512");
}

}  // namespace sluice
