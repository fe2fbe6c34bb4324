// Chooses the shape of the experts kernel for a bucket of tokens and launches it. Included by one .cu file a format.
#pragma once

#include <algorithm>

#include "ops/cuda/moe_experts.cuh"

namespace sluice::cuda {

template <WeightFormat format, int kConsumers, int kTiles, int kNt>
cudaError_t launch_experts_shape(const MoeRouteArgs& route, const MoeExpertsArgs& args, const MoeWorkspace& work,
                                 const MoeLaunch& launch, cudaStream_t stream) {
  auto kernel = moe_experts_kernel<format, kConsumers, kTiles, kNt>;
  // Some shared memory stays free, so that the next layer's router can wait on the same multiprocessor; with many tokens
  // the rings need it more.
  constexpr int kBudget = (kNt == 8 ? 225 : 208) * 1024;

  moe::Pipeline pipe{};
  pipe.choose = moe_choose_in_experts(launch.max_tokens, route.n_experts);
  const int unit_row = kConsumers * kTiles * moe_unit_bytes(format);
  pipe.weight_stage_bytes = std::max(1, ((launch.stage_kb ? launch.stage_kb : kConsumers == 12 ? 52 : 34) * 1024) / unit_row) * unit_row;
  // Token stages of 8 units for 8 tokens; for more the stage grows less than the tokens and holds fewer units.
  constexpr int kTokenStage[] = {8704, 9216, 18432, 36864};
  pipe.token_stage_bytes = kTokenStage[kNt == 1 ? 0 : kNt == 2 ? 1 : kNt == 4 ? 2 : 3];
  pipe.token_stages = kNt == 8 ? 3 : kNt == 4 ? 4 : 6;
  pipe.weight_stages = 16;
  const int pairs = launch.max_tokens * (route.top_k + route.n_shared), experts = route.n_experts + route.n_shared;
  while (pipe.weight_stages > 1 && moe::shared_map(pipe, experts, pairs).bytes > kBudget) --pipe.weight_stages;
  if (pipe.weight_stages < 2) return cudaErrorInvalidConfiguration;
  pipe.window_bytes = (launch.window_kb ? launch.window_kb : 96) * 1024;
  const moe::SharedMap map = moe::shared_map(pipe, experts, pairs);
  static const cudaError_t raised = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBudget);
  if (raised != cudaSuccess) return raised;

  cudaLaunchConfig_t config{};
  config.gridDim = dim3(launch.blocks);
  config.blockDim = dim3((kConsumers + moe::kProducers) * 32);
  config.dynamicSmemBytes = map.bytes;
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = launch.overlap ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, route, args, work, pipe, map);
}

template <WeightFormat format>
cudaError_t launch_experts(const MoeRouteArgs& route, const MoeExpertsArgs& args, const MoeWorkspace& work,
                           const MoeLaunch& launch, cudaStream_t stream) {
  const int m = launch.max_tokens;
  auto go = [&]<int kConsumers, int kTiles, int kNt>() {
    return launch_experts_shape<format, kConsumers, kTiles, kNt>(route, args, work, launch, stream);
  };
  // Unpacking 4-bit values takes 12 warps to keep up with the memory; with many tokens each needs more registers.
  constexpr bool kFourBit = format == WeightFormat::mxfp4 || format == WeightFormat::int4;
  switch (launch.variant ? launch.variant : kFourBit && m <= 32 ? 4 : 1) {
    case 2:
      if (m <= 8) return go.template operator()<16, 1, 1>();
      if (m <= 16) return go.template operator()<16, 1, 2>();
      return go.template operator()<16, 1, 4>();
    case 3:
      if (m <= 8) return go.template operator()<8, 2, 1>();
      if (m <= 16) return go.template operator()<8, 2, 2>();
      return go.template operator()<8, 2, 4>();
    case 4:
      if (m <= 8) return go.template operator()<12, 1, 1>();
      return go.template operator()<12, 1, 2>();
    default:
      if (m <= 8) return go.template operator()<8, 1, 1>();
      if (m <= 16) return go.template operator()<8, 1, 2>();
      if (m <= 32) return go.template operator()<8, 1, 4>();
      return go.template operator()<8, 1, 8>();
  }
}

}  // namespace sluice::cuda
