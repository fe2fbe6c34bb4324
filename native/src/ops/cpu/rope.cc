// Rotary embeddings and what they end in: the KV cache.
#include <cmath>
#include <cstring>

#include "ops/cpu/cpu_ops_impl.h"

namespace sluice::cpu {

namespace {

void rotate(float* head, const float* cos_sin, int rope_dim) {
  const int half = rope_dim / 2;
  for (int i = 0; i < half; ++i) {
    const float a = head[i], b = head[half + i];
    head[i] = a * cos_sin[i] - b * cos_sin[half + i];
    head[half + i] = b * cos_sin[i] + a * cos_sin[half + i];
  }
}

}  // namespace

// Angles in fp32, as HF computes them: position * inv_frequency rounds before the cosine.
void CpuOps::rope_tables(const StepView& step, const RopeSpec& rope, float* cos_sin) {
  const Timer timer(*this, kRope, 0);
  const int half = rope.dim / 2;
  for_tokens(step.counts->n_tokens, 32, [&](int token, int) {
    float* row = cos_sin + int64_t{token} * rope.dim;
    for (int i = 0; i < half; ++i) {
      const float angle = static_cast<float>(step.positions[token]) * rope.inv_frequency[static_cast<size_t>(i)];
      row[i] = std::cos(angle) * rope.magnitude;
      row[half + i] = std::sin(angle) * rope.magnitude;
    }
  });
}

std::byte* CpuOps::kv_layer(const StepView& step, const KvPool& pool, int32_t group, int32_t layer, int token) {
  const BlockTables::Group& table = step.tables[static_cast<size_t>(group)];
  const RowWork& row = step.rows[step.token_rows[token]];
  const int64_t block = table.blocks[int64_t{row.row} * table.blocks_per_row + step.positions[token] / kBlockTokens];
  return pool.data + block * pool.block_bytes + layer * pool.layer_bytes;
}

void CpuOps::rope_kv_write(const StepView& step, const RopeKvWrite& args, KvPool& pool) {
  const Timer timer(*this, kRope, 0);
  const auto norm = exact_ ? rmsnorm_exact : kernels_.rmsnorm;
  const int d = args.head_dim;
  const int64_t q_width = int64_t{args.n_heads} * d, k_width = int64_t{args.n_kv_heads} * d;
  for_tokens(step.counts->n_tokens, 16, [&](int token, int) {
    float* q = static_cast<float*>(args.qkv) + token * (q_width + 2 * k_width);
    float* k = q + q_width;
    const float* v = k + k_width;
    const float* angles = args.cos_sin + int64_t{token} * args.rope_dim;
    const auto prepare = [&](float* heads, int n_heads, const float* weight) {
      if (weight != nullptr && args.norm_whole) norm(heads, nullptr, weight, n_heads * d, args.norm_eps, heads);
      for (int h = 0; h < n_heads; ++h) {
        float* head = heads + int64_t{h} * d;
        if (weight != nullptr && !args.norm_whole) norm(head, nullptr, weight, d, args.norm_eps, head);
        rotate(head, angles, args.rope_dim);
      }
    };
    prepare(q, args.n_heads, args.q_norm);
    prepare(k, args.n_kv_heads, args.k_norm);
    std::memcpy(static_cast<float*>(args.q_out) + token * q_width, q, static_cast<size_t>(q_width) * sizeof(float));
    const int slot = step.positions[token] % kBlockTokens;
    std::byte* layer = kv_layer(step, pool, args.group, args.layer, token);
    for (int h = 0; h < args.n_kv_heads; ++h) {
      const float* k_head = k + int64_t{h} * d;
      const float* v_head = v + int64_t{h} * d;
      const int64_t k_at = k_offset(h, d) + slot, v_at = v_offset(args.n_kv_heads, h, d) + int64_t{slot} * d;
      if (exact_) {
        auto* kv = reinterpret_cast<float*>(layer);
        for (int i = 0; i < d; ++i) kv[k_at + i * kBlockTokens] = k_head[i];
        std::memcpy(kv + v_at, v_head, static_cast<size_t>(d) * sizeof(float));
      } else {
        auto* kv = reinterpret_cast<uint16_t*>(layer);
        kernels_.store_half(k_head, d, kv + k_at, kBlockTokens);
        kernels_.store_half(v_head, d, kv + v_at, 1);
      }
    }
  });
}

void CpuOps::mla_kv_write(const StepView& step, const MlaKvWrite& args, KvPool& pool) {
  const Timer timer(*this, kRope, 0);
  const int q_in = args.nope_dim + args.rope_dim, width = args.latent_dim + args.rope_dim;
  const auto rope_bytes = static_cast<size_t>(args.rope_dim) * sizeof(float);
  for_tokens(step.counts->n_tokens, 16, [&](int token, int) {
    const float* angles = args.cos_sin + int64_t{token} * args.rope_dim;
    for (int h = 0; h < args.n_heads; ++h) {
      const int64_t head = int64_t{token} * args.n_heads + h;
      float* out = static_cast<float*>(args.q_out) + head * width + args.latent_dim;
      std::memcpy(out, static_cast<const float*>(args.q) + head * q_in + args.nope_dim, rope_bytes);
      rotate(out, angles, args.rope_dim);
    }
    float* kv = reinterpret_cast<float*>(kv_layer(step, pool, args.group, args.layer, token)) +
                int64_t{step.positions[token] % kBlockTokens} * width;
    std::memcpy(kv, static_cast<const float*>(args.kv) + int64_t{token} * width, static_cast<size_t>(width) * sizeof(float));
    rmsnorm_exact(kv, nullptr, args.latent_norm, args.latent_dim, args.norm_eps, kv);
    rotate(kv + args.latent_dim, angles, args.rope_dim);
  });
}

}  // namespace sluice::cpu
