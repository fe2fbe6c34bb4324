#include "ops/cuda/moe.h"

#include "ops/cuda/moe_kernels.h"

namespace sluice::cuda {

cudaError_t moe_layer(WeightFormat format, const MoeRouteArgs& route, const MoeExpertsArgs& args,
                      const MoeWorkspace& work, const MoeLaunch& launch, cudaStream_t stream) {
  const int width = route.top_k + route.n_shared;
  if (args.hidden % 64 || args.inter % 64 || route.n_experts + route.n_shared > kMoeMaxExperts || width > kMoeMaxTopK ||
      launch.max_tokens > kMoeDecodeMaxTokens || launch.max_tokens < 1 || launch.blocks < 1)
    return cudaErrorInvalidValue;
  const float token_factor = format == WeightFormat::mxfp4 ? 0x1p100f : 1.0f;
  if (cudaError_t error = launch_route(route, work, launch, token_factor, stream); error != cudaSuccess) return error;
  switch (format) {
    case WeightFormat::bf16: return launch_experts<WeightFormat::bf16>(route, args, work, launch, stream);
    case WeightFormat::fp8_e4m3: return launch_experts<WeightFormat::fp8_e4m3>(route, args, work, launch, stream);
    case WeightFormat::int8: return launch_experts<WeightFormat::int8>(route, args, work, launch, stream);
    case WeightFormat::int4: return launch_experts<WeightFormat::int4>(route, args, work, launch, stream);
    case WeightFormat::mxfp4: return launch_experts<WeightFormat::mxfp4>(route, args, work, launch, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace sluice::cuda
