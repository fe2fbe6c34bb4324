#include <cstdlib>
#include <stdexcept>
#include <string>

#include "model/transformer.h"
#include "ops/cpu/cpu_ops.h"

namespace sluice {

namespace {

// Switches for measurements, not an operator's options: each turns one optimisation off.
bool choice(const char* variable, const char* on, const char* off) {
  const char* set = std::getenv(variable);
  const std::string value = set == nullptr || *set == '\0' ? on : set;
  if (value != on && value != off) throw std::runtime_error(std::string(variable) + "=" + value + " is not " + on + " or " + off);
  return value == on;
}

}  // namespace

std::unique_ptr<Model> load_model(const LoadOptions& options) {
  CpuOpsOptions cpu;
  cpu.exact = options.precision == Precision::exact;
  cpu.threads = options.threads;
  cpu.isa = choose_cpu_isa();
  cpu.wide_activations = choice("SLUICE_ACTIVATION_BITS", "16", "8");
  cpu.prefetch = choice("SLUICE_PREFETCH", "1", "0");
  cpu.huge_pages = choice("SLUICE_HUGE_PAGES", "1", "0");
  // Threads and instruction set are checked before the files are read: a typo should not cost a load.
  std::unique_ptr<Ops> ops = make_cpu_ops(cpu);
  return std::make_unique<Transformer>(open_checkpoint(options.path), std::move(ops), options);
}

}  // namespace sluice
