// Attention over MLA's latents (ops.h, Attention): every head reads the same keys, whose first part is the value too.
// fp32 latents, sums in double over the keys in order, in both precisions.
#include <algorithm>
#include <cmath>

#include "ops/cpu/cpu_ops_impl.h"

namespace sluice::cpu {

void CpuOps::attend_latent(const StepView& step, const Attention& args, const KvPool& pool) {
  const int latent = pool.latent_dim, width = pool.latent_dim + pool.head_dim;
  const BlockTables::Group& table = step.tables[static_cast<size_t>(args.group)];
  pool_.for_each(step.counts->n_tokens * args.n_heads, [&](int task, int thread) {
    const int token = task / args.n_heads, head = task % args.n_heads;
    const int32_t* blocks = table.blocks + int64_t{step.rows[step.token_rows[token]].row} * table.blocks_per_row;
    const auto key_at = [&](int key) {
      const std::byte* layer = pool.data + blocks[key / kBlockTokens] * pool.block_bytes + args.layer * pool.layer_bytes;
      return reinterpret_cast<const float*>(layer) + int64_t{key % kBlockTokens} * width;
    };
    const int end = step.positions[token] + 1;
    const int begin = args.window > 0 ? std::max(0, end - args.window) : 0;
    const float* q = static_cast<const float*>(args.q) + int64_t{task} * width;
    float* out = static_cast<float*>(args.out) + int64_t{task} * latent;
    double* scores = scratch_[static_cast<size_t>(thread)].exact_scores;
    const double sink = args.sinks != nullptr ? static_cast<double>(args.sinks[head]) : -INFINITY;
    double largest = sink;
    for (int key = begin; key < end; ++key) {
      const float* k = key_at(key);
      double s = 0;
      for (int i = 0; i < width; ++i) s += static_cast<double>(q[i]) * static_cast<double>(k[i]);
      scores[key] = s * static_cast<double>(args.scale);
      largest = std::max(largest, scores[key]);
    }
    double total = std::exp(sink - largest);
    for (int key = begin; key < end; ++key) {
      scores[key] = std::exp(scores[key] - largest);
      total += scores[key];
    }
    constexpr int kPiece = 32;
    for (int c = 0; c < latent; c += kPiece) {
      double sum[kPiece] = {};
      const int n = std::min(kPiece, latent - c);
      for (int key = begin; key < end; ++key) {
        const float* v = key_at(key) + c;
        for (int i = 0; i < n; ++i) sum[i] += scores[key] * static_cast<double>(v[i]);
      }
      for (int i = 0; i < n; ++i) out[c + i] = static_cast<float>(sum[i] / total);
    }
  });
}

}  // namespace sluice::cpu
