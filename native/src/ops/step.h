// What the scheduler hands to a forward pass. Rows are stable: a generation keeps its row from admission to release, so
// device tables (block tables, sampling parameters, RNG keys) are written once a generation, not once a step.
#pragma once

#include <cstdint>
#include <span>

namespace sluice {

using Token = int32_t;

// Tokens a KV block holds, in every KV group.
inline constexpr int kBlockTokens = 16;

// One generation's share of a step.
struct RowWork {
  int32_t row;        // index into every per-row table
  int32_t first_pos;  // position of the first new token == tokens of this row already in the KV cache
  int32_t n_new;      // tokens run in this step: 1 = decode, 1 + drafts = verify, more = prefill chunk
  int32_t n_logits;   // logits wanted for the last n_logits of them: 0 inside a prompt, 1 at its end or in decode,
                      // 1 + drafts when drafts are verified
};

// A mixed batch: decode rows first, then prefill chunks. Counts are host values on the CPU; the CUDA backend copies the
// plan into fixed device buffers and its kernels read counts there, so that a captured graph serves every plan of a bucket.
struct StepPlan {
  std::span<const RowWork> rows;
  std::span<const Token> tokens;  // new tokens of all rows, concatenated in the order of `rows`
  int32_t n_logits;               // sum over rows
};

// Layers with one cache policy share a KV group and its block table.
enum class KvGroupKind : uint8_t { full, sliding, mla_latent };

// block_tables[g] is [max_rows][blocks_per_row] of physical block ids for KV group g.
struct BlockTables {
  struct Group {
    const int32_t* blocks;
    int32_t blocks_per_row;
  };
  std::span<const Group> groups;
};

}  // namespace sluice
