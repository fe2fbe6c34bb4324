// A launch with or without programmatic dependent launch.
#pragma once

#include <cuda_runtime.h>

#include <utility>

namespace sluice::cuda {

template <class Kernel, class... A>
cudaError_t launch_kernel(Kernel kernel, dim3 grid, dim3 block, size_t shared_bytes, bool overlap, cudaStream_t stream, A&&... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = overlap ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, std::forward<A>(args)...);
}

}  // namespace sluice::cuda
