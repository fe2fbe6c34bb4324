// Between the files that implement moe.h.
#pragma once

#include "ops/cuda/moe.h"

namespace sluice::cuda {

inline bool moe_choose_in_experts(int max_tokens, int n_experts) { return max_tokens <= 16 && n_experts <= 256; }

// token_factor: what the experts want the activations multiplied by (UnitReader); not 1: the router writes scaled_x.
cudaError_t launch_route(const MoeRouteArgs&, const MoeWorkspace&, const MoeLaunch&, float token_factor, cudaStream_t);

// One instantiation a format, each in its own file: moe_experts_*.cu.
template <WeightFormat format>
cudaError_t launch_experts(const MoeRouteArgs&, const MoeExpertsArgs&, const MoeWorkspace&, const MoeLaunch&, cudaStream_t);

}  // namespace sluice::cuda
