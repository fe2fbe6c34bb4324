// How a step's attention is cut into tasks. The cuts never change a number: a split of kSplitTokens positions is always
// computed whole, and a query's splits are joined in the order of their positions, by one thread or after several.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops/cpu/cpu_ops_impl.h"

namespace sluice::cpu {

namespace {

constexpr int kTaskQueries = 12;  // queries that share one pass over a kv head's keys
constexpr int kBlocksPerSplit = kSplitTokens / kBlockTokens;

int splits_of(int64_t tokens) { return static_cast<int>((tokens + kSplitTokens - 1) / kSplitTokens); }

// (max, sum, out) of a query over the splits so far, joined with those of the next split.
struct Joined {
  float max = -INFINITY;
  float sum = 0;
  float* out;
};

void join(Joined& total, float max, float sum, const float* out, int head_dim, bool first) {
  if (first) {
    total.max = max;
    total.sum = sum;
    std::memcpy(total.out, out, static_cast<size_t>(head_dim) * sizeof(float));
    return;
  }
  if (max == -INFINITY) return;
  const float larger = std::max(total.max, max);
  const float keep = total.max == -INFINITY ? 0.0f : std::exp(total.max - larger);
  const float add = std::exp(max - larger);
  for (int i = 0; i < head_dim; ++i) total.out[i] = total.out[i] * keep + out[i] * add;
  total.sum = total.sum * keep + sum * add;
  total.max = larger;
}

// Divides by the sum, to which the sink adds exp(sink - max): in terms of the larger of both, so that neither overflows.
void finish(const Joined& total, const float* sink, int head_dim) {
  float keep = 1.0f, sum = total.sum;
  if (sink != nullptr) {
    const float larger = std::max(total.max, *sink);
    keep = std::exp(total.max - larger);
    sum = total.sum * keep + std::exp(*sink - larger);
  }
  for (int c = 0; c < head_dim; ++c) total.out[c] = total.out[c] * keep / sum;
}

}  // namespace

void CpuOps::reserve_attention() {
  const int gqa = limits_.n_heads / limits_.n_kv_heads;
  const int max_queries = std::max(gqa, kTaskQueries);
  for (ThreadScratch& scratch : scratch_) {
    scratch.k_blocks.resize(static_cast<size_t>((limits_.max_positions + kBlockTokens - 1) / kBlockTokens));
    scratch.v_blocks.resize(scratch.k_blocks.size());
    memory_.emplace_back(static_cast<size_t>(limits_.max_positions) * sizeof(double));
    scratch.exact_scores = memory_.back().as<double>();
    if (!exact_) {
      scratch.scores = workspace(int64_t{max_queries} * kSplitTokens);
      scratch.out = workspace(int64_t{max_queries} * limits_.head_dim);
    }
  }
  const int max_splits = splits_of(limits_.max_positions);
  attention_tasks_.reserve(static_cast<size_t>(limits_.max_tokens) * static_cast<size_t>(limits_.n_kv_heads) +
                           static_cast<size_t>(2 * pool_.n_threads() * max_splits));
  if (!exact_ && pool_.n_threads() > 1) {
    partial_slots_ = 2 * pool_.n_threads() * max_splits;
    partials_ = workspace(int64_t{partial_slots_} * gqa * (limits_.head_dim + 2));
  }
}

// Rows that decode are cut by kv head, and by split too when that alone leaves threads without work; prompts by tiles of
// tokens as well.
void CpuOps::plan_attention() {
  attention_tasks_.clear();
  attention_has_partials_ = false;
  const int gqa = limits_.n_heads / limits_.n_kv_heads;
  const int tile = exact_ ? 1 : std::max(1, kTaskQueries / gqa);
  const int64_t plain_tasks = int64_t{counts_.n_rows} * limits_.n_kv_heads;
  int partial = 0;
  int32_t first = 0;
  for (int32_t r = 0; r < counts_.n_rows; ++r) {
    const RowWork& row = rows_[static_cast<size_t>(r)];
    const int n_splits = splits_of(int64_t{row.first_pos} + row.n_new);
    const bool share = partial_slots_ > 0 && row.n_new == 1 && n_splits > 1 && plain_tasks < 2 * pool_.n_threads();
    for (int32_t head = 0; head < limits_.n_kv_heads; ++head) {
      for (int32_t t = 0; t < row.n_new; t += tile) {
        AttentionTask task{r, first + t, std::min<int32_t>(tile, row.n_new - t), row.first_pos + t, head, 0, n_splits, -1};
        task.last_split = splits_of(int64_t{task.first_pos} + task.n_tokens);
        if (!share) {
          attention_tasks_.push_back(task);
          continue;
        }
        for (int split = 0; split < n_splits; ++split) {
          task.first_split = split;
          task.last_split = split + 1;
          task.partial = partial++;
          attention_tasks_.push_back(task);
        }
        attention_has_partials_ = true;
      }
    }
    first += row.n_new;
  }
  // Longest first: the last task to be claimed should be a short one.
  std::stable_sort(attention_tasks_.begin(), attention_tasks_.end(), [](const AttentionTask& a, const AttentionTask& b) {
    return int64_t{a.first_pos + kSplitTokens} * (a.last_split - a.first_split) > int64_t{b.first_pos + kSplitTokens} * (b.last_split - b.first_split);
  });
}

void CpuOps::gather_blocks(const AttentionTask& task, const Attention& args, const KvPool& pool, int first_block,
                           int n_blocks, const void** k, const void** v) const {
  const BlockTables::Group& table = view_.tables[static_cast<size_t>(args.group)];
  const int32_t* blocks = table.blocks + int64_t{rows_[static_cast<size_t>(task.row)].row} * table.blocks_per_row + first_block;
  const int64_t element = exact_ ? 4 : 2;
  for (int b = 0; b < n_blocks; ++b) {
    const std::byte* layer = pool.data + blocks[b] * pool.block_bytes + args.layer * pool.layer_bytes;
    k[b] = layer + k_offset(task.kv_head, pool.head_dim) * element;
    v[b] = layer + v_offset(pool.n_kv_heads, task.kv_head, pool.head_dim) * element;
  }
}

void CpuOps::attend_exact(const AttentionTask& task, const Attention& args, const KvPool& pool, int thread) {
  ThreadScratch& scratch = scratch_[static_cast<size_t>(thread)];
  const int gqa = args.n_heads / pool.n_kv_heads;
  const int end = task.first_pos + 1;
  gather_blocks(task, args, pool, 0, (end + kBlockTokens - 1) / kBlockTokens, scratch.k_blocks.data(), scratch.v_blocks.data());
  const int begin = args.window > 0 ? std::max(0, end - args.window) : 0;
  for (int g = 0; g < gqa; ++g) {
    const int64_t at = (int64_t{task.first_token} * args.n_heads + task.kv_head * gqa + g) * pool.head_dim;
    const float* q = static_cast<const float*>(args.q) + at;
    float max, sum;
    attention_exact({scratch.k_blocks.data(), scratch.v_blocks.data(), pool.head_dim, 1, &q, &begin, &end, args.scale,
                     nullptr, &max, &sum, static_cast<float*>(args.out) + at},
                    args.sinks == nullptr ? nullptr : args.sinks + task.kv_head * gqa + g, scratch.exact_scores);
  }
}

void CpuOps::attend_fast(const AttentionTask& task, const Attention& args, const KvPool& pool, int thread) {
  ThreadScratch& scratch = scratch_[static_cast<size_t>(thread)];
  const int d = pool.head_dim;
  const int gqa = args.n_heads / pool.n_kv_heads;
  const int n_q = task.n_tokens * gqa;
  constexpr int kMaxQueries = 64;
  const float* q[kMaxQueries];
  float* out[kMaxQueries];
  Joined total[kMaxQueries];
  float max[kMaxQueries], sum[kMaxQueries];
  int key_begin[kMaxQueries], key_end[kMaxQueries];
  for (int i = 0; i < n_q; ++i) {
    const int64_t at = (int64_t{task.first_token + i / gqa} * args.n_heads + task.kv_head * gqa + i % gqa) * d;
    q[i] = static_cast<const float*>(args.q) + at;
    out[i] = static_cast<float*>(args.out) + at;
    total[i].out = out[i];
  }
  for (int split = task.first_split; split < task.last_split; ++split) {
    const int start = split * kSplitTokens;
    int last_key = 0;
    for (int i = 0; i < n_q; ++i) {
      const int position = task.first_pos + i / gqa;
      key_end[i] = std::clamp(position + 1 - start, 0, kSplitTokens);
      key_begin[i] = args.window > 0 ? std::clamp(position + 1 - args.window - start, 0, key_end[i]) : 0;
      last_key = std::max(last_key, key_end[i]);
    }
    gather_blocks(task, args, pool, split * kBlocksPerSplit, (last_key + kBlockTokens - 1) / kBlockTokens,
                  scratch.k_blocks.data(), scratch.v_blocks.data());
    AttentionSplit work{scratch.k_blocks.data(), scratch.v_blocks.data(), d, n_q, q, key_begin, key_end, args.scale,
                        scratch.scores, max, sum, scratch.out};
    kernels_.attention_f16(work);
    if (task.partial >= 0) {
      float* slot = partials_ + int64_t{task.partial} * gqa * (d + 2);
      for (int i = 0; i < n_q; ++i, slot += d + 2) {
        slot[0] = max[i];
        slot[1] = sum[i];
        std::memcpy(slot + 2, scratch.out + int64_t{i} * d, static_cast<size_t>(d) * sizeof(float));
      }
      return;
    }
    for (int i = 0; i < n_q; ++i) join(total[i], max[i], sum[i], scratch.out + int64_t{i} * d, d, split == 0);
  }
  for (int i = 0; i < n_q; ++i) finish(total[i], args.sinks == nullptr ? nullptr : args.sinks + task.kv_head * gqa + i % gqa, d);
}

void CpuOps::join_partials(const AttentionTask& task, const Attention& args, const KvPool& pool) {
  const int d = pool.head_dim;
  const int gqa = args.n_heads / pool.n_kv_heads;
  const int n_splits = splits_of(int64_t{task.first_pos} + 1);
  for (int g = 0; g < gqa; ++g) {
    Joined total;
    total.out = static_cast<float*>(args.out) + (int64_t{task.first_token} * args.n_heads + task.kv_head * gqa + g) * d;
    for (int split = 0; split < n_splits; ++split) {
      const float* slot = partials_ + (int64_t{task.partial + split} * gqa + g) * (d + 2);
      join(total, slot[0], slot[1], slot + 2, d, split == 0);
    }
    finish(total, args.sinks == nullptr ? nullptr : args.sinks + task.kv_head * gqa + g, d);
  }
}

void CpuOps::attention(const StepView& step, const Attention& args, const KvPool& pool) {
  int64_t bytes = 0;
  if (profiling_) {
    for (const RowWork& row : rows_) bytes += (int64_t{row.first_pos} + row.n_new) * pool.layer_bytes / kBlockTokens;
  }
  const Timer timer(*this, kAttention, bytes);
  if (pool.kind == KvGroupKind::mla_latent) return attend_latent(step, args, pool);
  pool_.for_each(static_cast<int>(attention_tasks_.size()), [&](int i, int thread) {
    const AttentionTask& task = attention_tasks_[static_cast<size_t>(i)];
    if (exact_) {
      attend_exact(task, args, pool, thread);
    } else {
      attend_fast(task, args, pool, thread);
    }
  });
  if (!attention_has_partials_) return;
  for (const AttentionTask& task : attention_tasks_) {
    if (task.partial >= 0 && task.first_split == 0) join_partials(task, args, pool);
  }
}

}  // namespace sluice::cpu
