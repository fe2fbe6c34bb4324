#include "ops/cuda/attention_decode.cuh"

namespace sluice::cuda::attend {
template cudaError_t launch<KvType::fp8_e4m3>(const AttentionStep&, const AttentionArgs&, const AttentionLaunch&, cudaStream_t);
}  // namespace sluice::cuda::attend
