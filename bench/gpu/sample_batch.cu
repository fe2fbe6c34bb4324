// Times sampling beside one read of the same logits. See README.md in this folder.
//
//   sample_batch [--rows 1,64] [--vocab 151936,..] [--kinds greedy,mask,..] [--parts 8,4]
#include <random>

#include "ops/cuda/sampling.h"
#include "random.cuh"

using namespace sluice;
using namespace sluice::cuda;
using namespace sluice::bench;

namespace {

struct Kind {
  const char* name;
  float temperature;
  int top_k;
  float top_p, min_p;
  bool mask, penalties;
  int logprobs;
};
const Kind kKinds[] = {
    {"greedy", 0, 0, 1, 0, false, false, -1},        {"greedy+mask", 0, 0, 1, 0, true, false, -1},
    {"draw", 1, 0, 1, 0, false, false, -1},          {"draw+mask", 1, 0, 1, 0, true, false, -1},
    {"top-k20 top-p.95", 0.6f, 20, 0.95f, 0, false, false, -1}, {"top-k20 top-p.95+mask", 0.6f, 20, 0.95f, 0, true, false, -1},
    {"top-p.9", 1, 0, 0.9f, 0, false, false, -1},    {"min-p.05", 1, 0, 1, 0.05f, false, false, -1},
    {"penalties", 1, 0, 1, 0, false, true, -1},      {"greedy, 5 logprobs", 0, 0, 1, 0, false, false, 5},
};

void measure(const Ceilings& c, const Options& options, int vocab, int n) {
  const int64_t stride = (vocab + 3) / 4 * 4;
  const int words = (vocab + 31) / 32, n_masks = 1024, seen_capacity = 2048;
  const double bytes = double(n) * vocab * 4;
  const int copies = int(std::max<size_t>(2, std::min<size_t>(64, (size_t(400) << 20) / size_t(bytes) + 1)));
  auto* logits = allocate<float>(size_t(copies) * n * stride);
  fill_float<<<1320, 256, 0, c.stream>>>(logits, size_t(copies) * n * stride, 0, 3, 41);
  // Masks that allow about a tenth of the tokens, in runs, from a pool.
  std::vector<uint32_t> masks(size_t(n_masks) * words);
  std::mt19937 rng(3);
  for (auto& w : masks) w = rng() % 8 == 0 ? ~0u : rng() % 8 == 0 ? rng() : 0;
  auto* d_masks = upload(masks);
  std::vector<int32_t> mask_ids, tokens, positions, rows_of, n_seen(n, 700);
  std::vector<RowWork> rows;
  std::vector<SeenToken> seen(size_t(n) * seen_capacity);
  for (int i = 0; i < n; ++i) {
    mask_ids.push_back(int(rng() % n_masks)), tokens.push_back(i), positions.push_back(1000 + i), rows_of.push_back(i), rows.push_back({i, 1000 + i, 1, 1});
    for (int j = 0; j < 700; ++j) seen[size_t(i) * seen_capacity + j] = {j * (vocab / 700), j % 3};
  }
  auto *d_mask_ids = upload(mask_ids), *d_tokens = upload(tokens), *d_positions = upload(positions), *d_rows_of = upload(rows_of), *d_n_seen = upload(n_seen);
  auto* d_rows = upload(rows);
  auto* d_seen = upload(seen);
  std::vector<StepCounts> host_counts{{n, n, n}};
  auto* counts = upload(host_counts);
  auto* out = allocate<Token>(n);
  auto* logprobs = allocate<float>(size_t(n) * 21);
  auto* top = allocate<Token>(size_t(n) * 20);
  auto* params = allocate<SamplingRow>(n);
  Ceilings scratch = c;
  const double once = scratch.read_once(size_t(bytes));
  std::printf("vocabulary %6d rows %3d: floor %.1f us, one read of the same bytes %.1f us\n", vocab, n, bytes / c.read, once);
  for (const Kind& k : kKinds) {
    if (!options.chosen("--kinds", k.name)) continue;
    std::vector<SamplingRow> host(n);
    for (int i = 0; i < n; ++i) host[i] = {k.temperature, k.top_p, k.min_p, k.top_k, k.penalties ? 1.1f : 1.0f, k.penalties ? 0.2f : 0.0f, k.penalties ? 0.1f : 0.0f, uint64_t(77 + i), 0, k.logprobs};
    CHECK_CUDA(cudaMemcpy(params, host.data(), n * sizeof(SamplingRow), cudaMemcpyHostToDevice));
    std::string line;
    for (int parts : {8, 4}) {
      if (!options.chosen("--parts", std::to_string(parts))) continue;
      SampleArgs a{};
      a.counts = counts, a.vocab = vocab, a.stride = stride, a.logit_tokens = d_tokens, a.positions = d_positions, a.token_rows = d_rows_of, a.rows = d_rows;
      a.params = params, a.masks = d_masks, a.mask_ids = k.mask ? d_mask_ids : nullptr, a.seen = d_seen, a.n_seen = d_n_seen, a.seen_capacity = seen_capacity;
      a.tokens = out, a.logprobs = logprobs, a.logprob_tokens = top, a.max_logprobs = 20;
      const double us = graph_time(c.stream, std::max(copies, 8), [&](int i) {
        a.logits = logits + size_t(i % copies) * n * stride;
        CHECK_CUDA(sample(a, SampleLaunch{n, parts, true}, c.stream));
      });
      // What comes from a kernel that has just written the logits: they may lie in L2.
      const double again = graph_time(c.stream, 8, [&](int) {
        a.logits = logits;
        CHECK_CUDA(sample(a, SampleLaunch{n, parts, true}, c.stream));
      });
      char text[96];
      std::snprintf(text, sizeof text, "  parts %d: %7.1f us, the same logits again %7.1f us", parts, us, again);
      line += text;
    }
    std::printf("  %-24s%s\n", k.name, line.c_str());
    std::fflush(stdout);
  }
  for (void* p : {(void*)logits, (void*)d_masks, (void*)d_mask_ids, (void*)d_tokens, (void*)d_positions, (void*)d_rows_of, (void*)d_n_seen, (void*)d_rows, (void*)d_seen, (void*)counts, (void*)out, (void*)logprobs, (void*)top, (void*)params}) cudaFree(p);
  CHECK_CUDA(cudaGetLastError());
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  const Ceilings c = begin_run();
  for (int vocab : {151936, 201088, 50304})
    for (int n : {1, 8, 64, 256})
      if (options.chosen("--vocab", std::to_string(vocab)) && options.chosen("--rows", std::to_string(n))) measure(c, options, vocab, n);
  return 0;
}
