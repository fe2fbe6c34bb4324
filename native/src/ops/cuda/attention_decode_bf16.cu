#include "ops/cuda/attention_decode.cuh"

namespace sluice::cuda::attend {
template cudaError_t launch<KvType::bf16>(const AttentionStep&, const AttentionArgs&, const AttentionLaunch&, cudaStream_t);
}  // namespace sluice::cuda::attend
