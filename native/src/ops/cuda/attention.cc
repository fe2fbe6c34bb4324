#include "ops/cuda/attention.h"

namespace sluice::cuda {
namespace attend {
template <KvType type>
cudaError_t launch(const AttentionStep&, const AttentionArgs&, const AttentionLaunch&, cudaStream_t);
cudaError_t launch_mla(const AttentionStep&, const AttentionArgs&, const AttentionLaunch&, cudaStream_t);
}

bool attention_supported(const AttentionLaunch& l) {
  if (l.n_kv_heads < 1 || l.n_heads < 1 || l.n_heads % l.n_kv_heads) return false;
  if (l.kind == KvGroupKind::mla_latent) return l.n_kv_heads == 1 && l.type == KvType::bf16 && l.head_dim == kMlaLatentDim + kMlaRopeDim;
  const bool type = l.type == KvType::bf16 || l.type == KvType::fp8_e4m3 || l.type == KvType::int8;
  return type && (l.head_dim == 64 || l.head_dim == 128);
}

cudaError_t attention(const AttentionStep& step, const AttentionArgs& args, const AttentionLaunch& launch, cudaStream_t stream) {
  if (!attention_supported(launch) || args.n_heads != launch.n_heads || args.n_kv_heads != launch.n_kv_heads ||
      launch.blocks < 1 || launch.blocks > kAttentionMaxBlocks || launch.max_tokens < 1)
    return cudaErrorInvalidValue;
  if (launch.kind == KvGroupKind::mla_latent) return attend::launch_mla(step, args, launch, stream);
  switch (launch.type) {
    case KvType::bf16: return attend::launch<KvType::bf16>(step, args, launch, stream);
    case KvType::fp8_e4m3: return attend::launch<KvType::fp8_e4m3>(step, args, launch, stream);
    default: return attend::launch<KvType::int8>(step, args, launch, stream);
  }
}

}  // namespace sluice::cuda
