#include "ops/cuda/moe_experts_launch.cuh"

namespace sluice::cuda {
template cudaError_t launch_experts<WeightFormat::fp8_e4m3>(const MoeRouteArgs&, const MoeExpertsArgs&, const MoeWorkspace&,
                                                      const MoeLaunch&, cudaStream_t);
}  // namespace sluice::cuda
