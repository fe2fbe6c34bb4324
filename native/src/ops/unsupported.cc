#include <stdexcept>
#include <utility>

#include "ops/ops.h"

namespace sluice {

void unsupported(std::string_view backend, std::string_view operation, std::string_view why) {
  throw std::runtime_error("operation " + std::string(operation) + " is not supported by backend " +
                           std::string(backend) + ": " + std::string(why));
}

namespace {
constexpr std::string_view kNotBuilt = "not built";
}

std::unique_ptr<Linear> Ops::prepare_linear(std::span<const WeightSource>, std::span<const float>) {
  unsupported(name(), "prepare_linear", kNotBuilt);
}
std::unique_ptr<Linear> Ops::prepare_embedding(const WeightSource&) {
  unsupported(name(), "prepare_embedding", kNotBuilt);
}
std::unique_ptr<Linear> Ops::prepare_head_linear(std::span<const WeightSource>) {
  unsupported(name(), "prepare_head_linear", kNotBuilt);
}
std::unique_ptr<MoeWeights> Ops::prepare_moe(const MoeSource&) { unsupported(name(), "prepare_moe", kNotBuilt); }
const float* Ops::upload(std::span<const float>) { unsupported(name(), "upload", kNotBuilt); }
KvPool Ops::make_kv_pool(const KvShape&, int32_t) { unsupported(name(), "make_kv_pool", kNotBuilt); }
int64_t Ops::kv_block_bytes(const KvShape&) const { unsupported(name(), "kv_block_bytes", kNotBuilt); }
float* Ops::workspace(int64_t) { unsupported(name(), "workspace", kNotBuilt); }
void Ops::reserve(const StepLimits&) { unsupported(name(), "reserve", kNotBuilt); }
const StepView& Ops::begin_step(const StepPlan&, const BlockTables&) { unsupported(name(), "begin_step", kNotBuilt); }
void Ops::run(const GraphKey&, const std::function<void()>&) { unsupported(name(), "run", kNotBuilt); }
void Ops::read(const float*, std::span<float>) { unsupported(name(), "read", kNotBuilt); }
void Ops::embed(const Linear&, const StepView&, float, float*) { unsupported(name(), "embed", kNotBuilt); }
void Ops::rmsnorm(const StepView&, float*, const void*, const float*, int32_t, float, bool, void*) {
  unsupported(name(), "rmsnorm", kNotBuilt);
}
void Ops::norm(const StepView&, const void*, const float*, int32_t, float, void*) {
  unsupported(name(), "norm", kNotBuilt);
}
void Ops::linear(const StepView&, const Linear&, const void*, void*, bool) { unsupported(name(), "linear", kNotBuilt); }
void Ops::head_linear(const StepView&, const HeadLinear&) { unsupported(name(), "head_linear", kNotBuilt); }
void Ops::rope_tables(const StepView&, const RopeSpec&, float*) { unsupported(name(), "rope_tables", kNotBuilt); }
void Ops::rope_kv_write(const StepView&, const RopeKvWrite&, KvPool&) {
  unsupported(name(), "rope_kv_write", kNotBuilt);
}
void Ops::mla_kv_write(const StepView&, const MlaKvWrite&, KvPool&) {
  unsupported(name(), "mla_kv_write", kNotBuilt);
}
void Ops::attention(const StepView&, const Attention&, const KvPool&) { unsupported(name(), "attention", kNotBuilt); }
void Ops::activation(const StepView&, const Activation&, const void*, int32_t, void*) {
  unsupported(name(), "activation", kNotBuilt);
}
void Ops::moe_layer(const StepView&, const MoeLayer&) { unsupported(name(), "moe_layer", kNotBuilt); }
void Ops::sample(const StepView&, const Sample&) { unsupported(name(), "sample", kNotBuilt); }
void Ops::copy_blocks(KvPool&, std::span<const std::pair<int32_t, int32_t>>) {
  unsupported(name(), "copy_blocks", kNotBuilt);
}

}  // namespace sluice
