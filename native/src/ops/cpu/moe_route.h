// Which experts a token visits, and with what weight.
#pragma once

#include "ops/ops.h"

namespace sluice::cpu {

inline constexpr int32_t kMaxExperts = 1024;

// Throws std::runtime_error where the numbers contradict each other.
void check_moe_spec(const MoeSpec& spec);

// ids and weights [top_k] from logits [n_experts], as ops.h describes MoeSpec; selection_bias [n_experts] or null.
void choose_experts(const MoeSpec& spec, const float* logits, const float* selection_bias, int32_t* ids, float* weights);

}  // namespace sluice::cpu
