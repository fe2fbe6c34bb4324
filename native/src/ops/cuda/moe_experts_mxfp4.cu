#include "ops/cuda/moe_experts_launch.cuh"

namespace sluice::cuda {
template cudaError_t launch_experts<WeightFormat::mxfp4>(const MoeRouteArgs&, const MoeExpertsArgs&, const MoeWorkspace&,
                                                      const MoeLaunch&, cudaStream_t);
}  // namespace sluice::cuda
