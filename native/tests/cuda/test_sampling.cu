// The sampling kernel against the CPU's sampler (sample/sampler.h): the same tokens, and log probabilities within rounding.
// Exit status 0 = all passed. Arguments: a seed (default 1); "small" = small vocabularies, for compute-sanitizer and emulation.
#include <limits>

#include "device_test.h"
#include "ops/cuda/sampling.h"
#include "sample/sampler.h"

using namespace sluice;
using namespace sluice::cuda;
using namespace sluice::device_test;

namespace {

double uniform() { return double(rng() >> 11) * 0x1p-53; }
int below(int n) { return int(rng() % uint64_t(n)); }

// What logits look like: 0 spread out, 1 peaked, 2 few distinct values, 3 all equal, 4 with infinities, 5 -inf but one.
std::vector<float> random_logits(int vocab, int kind) {
  std::vector<float> v(vocab);
  for (float& x : v) {
    const double n = normal();
    x = float(kind == 0 ? n * 3 : kind == 1 ? n * 1.5 + (below(vocab) < 5 ? 12 : 0) : kind == 2 ? std::lround(n * 2) : kind == 3 ? 1.25 : n * 4);
    if (kind == 4 && below(3) == 0) x = -std::numeric_limits<float>::infinity();
    if (kind == 5) x = -std::numeric_limits<float>::infinity();
  }
  if (kind == 5) v[below(vocab)] = -3;
  if (kind == 4) v[below(vocab)] = 5;
  return v;
}

struct Row {
  SamplingParams params;
  TokenCounts counts;
  std::vector<SeenToken> seen;
  std::vector<Token> output, banned;
  std::vector<uint32_t> mask;  // empty = none
  std::vector<float> logits;
  int logprobs, position;
};

Row random_row(int vocab, int index) {
  Row r;
  r.logits = random_logits(vocab, index % 11 == 10 ? 5 : below(5));
  SamplingParams& p = r.params;
  const double temperatures[] = {0, 0.3, 0.7, 1, 2.5};
  p.temperature = float(temperatures[below(5)]);
  if (below(2)) p.top_k = below(4) ? 1 + below(60) : 1 + below(vocab + 5);
  if (below(2)) p.top_p = float(below(4) ? uniform() : 0.999);
  if (below(4) == 0) p.min_p = float(uniform() * 0.2);
  p.seed = rng(), p.choice = uint32_t(below(4));
  r.position = below(5000);
  r.logprobs = below(3) ? -1 : below(kSampleMaxLogprobs + 1);
  if (below(3) == 0) {
    p.repetition_penalty = float(0.8 + uniform()), p.presence_penalty = float(normal()), p.frequency_penalty = float(normal() * 0.3);
    std::vector<Token> prompt;
    for (int i = below(200); i > 0; --i) prompt.push_back(below(vocab));
    for (int i = below(100); i > 0; --i) r.output.push_back(below(2) && !r.output.empty() ? r.output.back() : below(vocab));
    r.counts.add_prompt(prompt);
    for (Token t : r.output) r.counts.add_output(t);
    for (const auto& c : r.counts.counts()) r.seen.push_back({c.token, c.in_output});
  }
  if (below(3) == 0)
    for (int i = 0; i < 20; ++i) {
      const Token t = below(vocab);
      if (std::none_of(p.logit_bias.begin(), p.logit_bias.end(), [&](const auto& b) { return b.first == t; })) p.logit_bias.emplace_back(t, float(normal() * 5));
    }
  if (below(3) == 0)
    for (int i = 0; i < 30; ++i) r.banned.push_back(below(vocab)), p.banned_sequences.push_back({r.banned.back()});
  const int masked = below(4);  // 0, 1 none; 2 most allowed; 3 few allowed
  if (masked >= 2) {
    r.mask.assign((vocab + 31) / 32, masked == 2 ? ~0u : 0u);
    for (int i = 0; i < vocab / 50 + 3; ++i) r.mask[below(vocab) / 32] ^= 1u << below(32);
    if (index % 17 == 16) std::fill(r.mask.begin(), r.mask.end(), 0u);
  }
  if (index % 19 == 18) r.logits[below(vocab)] = std::numeric_limits<float>::quiet_NaN();
  if (index % 23 == 22) r.logits[below(vocab)] = std::numeric_limits<float>::infinity();
  return r;
}

void run(int vocab, int n, cudaStream_t stream, const std::vector<int>& all_parts) {
  const std::string label = "vocabulary " + std::to_string(vocab) + ", " + std::to_string(n) + " rows";
  std::vector<Row> rows;
  for (int i = 0; i < n; ++i) rows.push_back(random_row(vocab, i));
  const int64_t stride = (vocab + 3) / 4 * 4 + 4;
  const int words = (vocab + 31) / 32, capacity = 400, max_rows = n + 4;
  std::vector<float> logits(n * stride, std::numeric_limits<float>::quiet_NaN());  // NaN between the rows
  std::vector<uint32_t> masks;
  std::vector<int32_t> mask_ids, logit_tokens, positions(2 * n, -1000), token_rows(2 * n), n_seen(max_rows, 0), bias_offsets(max_rows + 1, 0), banned_offsets(1, 0);
  std::vector<RowWork> work;
  std::vector<SamplingRow> params(max_rows);
  std::vector<SeenToken> seen(size_t(max_rows) * capacity, SeenToken{-1, 0});
  std::vector<Token> bias_tokens, banned;
  std::vector<float> bias_values;
  std::vector<int> row_of(max_rows, -1);
  for (int i = 0; i < n; ++i) {
    const Row& r = rows[i];
    const int id = (i + 2) % max_rows, token = 2 * i + 1;
    row_of[id] = i;
    std::copy(r.logits.begin(), r.logits.end(), logits.begin() + i * stride);
    mask_ids.push_back(r.mask.empty() ? -1 : int(masks.size() / words));
    masks.insert(masks.end(), r.mask.begin(), r.mask.end());
    logit_tokens.push_back(token), positions[token] = r.position - 1, token_rows[token] = i;
    work.push_back({id, 0, 1, 1});
    const SamplingParams& p = r.params;
    params[id] = {p.temperature, p.top_p, p.min_p, p.top_k, p.repetition_penalty, p.presence_penalty, p.frequency_penalty, p.seed, p.choice, r.logprobs};
    std::copy(r.seen.begin(), r.seen.end(), seen.begin() + size_t(id) * capacity);
    n_seen[id] = int(r.seen.size());
    banned.insert(banned.end(), r.banned.begin(), r.banned.end());
    banned_offsets.push_back(int(banned.size()));
  }
  for (int id = 0; id < max_rows; ++id) {
    if (row_of[id] >= 0)
      for (const auto& [t, v] : rows[row_of[id]].params.logit_bias) bias_tokens.push_back(t), bias_values.push_back(v);
    bias_offsets[id + 1] = int(bias_tokens.size());
  }
  masks.push_back(0), bias_tokens.push_back(0), bias_values.push_back(0), banned.push_back(0);
  Buffer<float> d_logits(logits), d_bias_values(bias_values), d_logprobs(size_t(n) * (1 + kSampleMaxLogprobs));
  Buffer<uint32_t> d_masks(masks);
  Buffer<int32_t> d_mask_ids(mask_ids), d_logit_tokens(logit_tokens), d_positions(positions), d_token_rows(token_rows), d_n_seen(n_seen);
  Buffer<int32_t> d_bias_offsets(bias_offsets), d_banned_offsets(banned_offsets), d_bias_tokens(bias_tokens), d_banned(banned);
  Buffer<RowWork> d_work(work);
  Buffer<SamplingRow> d_params(params);
  Buffer<SeenToken> d_seen(seen);
  Buffer<Token> d_tokens(n + 2), d_top(size_t(n) * kSampleMaxLogprobs);
  Buffer<StepCounts> counts(std::vector<StepCounts>{{2 * n, n, n}});
  SampleArgs a{};
  a.counts = counts.p, a.logits = d_logits.p, a.vocab = vocab, a.stride = stride, a.logit_tokens = d_logit_tokens.p, a.positions = d_positions.p;
  a.token_rows = d_token_rows.p, a.rows = d_work.p, a.params = d_params.p, a.masks = d_masks.p, a.mask_ids = d_mask_ids.p, a.seen = d_seen.p;
  a.n_seen = d_n_seen.p, a.seen_capacity = capacity, a.bias_tokens = d_bias_tokens.p, a.bias_values = d_bias_values.p, a.bias_offsets = d_bias_offsets.p;
  a.banned_tokens = d_banned.p, a.banned_offsets = d_banned_offsets.p, a.tokens = d_tokens.p, a.logprobs = d_logprobs.p, a.logprob_tokens = d_top.p;
  a.max_logprobs = kSampleMaxLogprobs;

  Sampler sampler(vocab);
  double worst = 0;
  int drawn = 0;
  for (int parts : all_parts) {
    SampleLaunch launch{n + 2, parts, parts != 2};
    if (vocab / parts > 50000) continue;
    d_tokens.poison(), d_logprobs.poison(), d_top.poison();
    CHECK_CUDA(sample(a, launch, stream));
    CHECK_CUDA(cudaStreamSynchronize(stream));
    const auto tokens = d_tokens.read();
    const auto top = d_top.read();
    const auto logprobs = d_logprobs.read();
    for (int i = 0; i < n; ++i) {
      const Row& r = rows[i];
      const SampleResult want = sampler.sample({r.logits, r.mask, r.params, r.counts, r.output, uint32_t(r.position), r.logprobs});
      const Token expected = want.status == SampleStatus::invalid_logits ? kInvalidLogits : want.status == SampleStatus::nothing_allowed ? kNothingAllowed : want.token;
      const std::string what = label + ", parts " + std::to_string(parts) + ", row " + std::to_string(i);
      expect(tokens[i] == expected, what + ": token " + std::to_string(tokens[i]) + ", not " + std::to_string(expected) + " (temperature " + std::to_string(r.params.temperature) +
                                        " top_k " + std::to_string(r.params.top_k) + " top_p " + std::to_string(r.params.top_p) + " min_p " + std::to_string(r.params.min_p) + ")");
      if (want.status != SampleStatus::ok) continue;
      drawn += r.params.temperature != 0;
      if (r.logprobs < 0) continue;
      auto close = [&](float got, float exact) {
        if (std::isinf(exact)) return got == exact;
        worst = std::max(worst, double(std::fabs(got - exact)));
        return std::fabs(got - exact) <= 2e-6f * (1 + std::fabs(exact));
      };
      expect(close(logprobs[size_t(i) * (1 + kSampleMaxLogprobs)], want.logprob.logprob), what + ": log probability");
      for (size_t j = 0; j < want.logprob.top.size(); ++j) {
        expect(top[size_t(i) * kSampleMaxLogprobs + j] == want.logprob.top[j].first, what + ": likely token " + std::to_string(j));
        expect(close(logprobs[size_t(i) * (1 + kSampleMaxLogprobs) + 1 + j], want.logprob.top[j].second), what + ": its log probability");
      }
    }
    expect(tokens[n] == -1 && tokens[n + 1] == -1, label + ": wrote past its rows");  // 0xffffffff, as poisoned
    d_tokens.poison();
    replay(stream, 1, [&] { CHECK_CUDA(sample(a, launch, stream)); });
    expect(d_tokens.read() == tokens, label + ": graph replay differs");
  }
  std::printf("%-40s %d draws, log probabilities within %.1e\n", label.c_str(), drawn, worst);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  rng.seed(argc > 1 ? std::atoi(argv[1]) : 1);
  cudaStream_t stream;
  CHECK_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  if (argc > 2 && std::string(argv[2]) == "small") {
    run(997, 12, stream, {8, 1});
    run(2600, 24, stream, {4});
    run(33, 6, stream, {2});
    return finish();
  }
  for (int vocab : {1, 33, 512, 997, 32000, 50257, 151936, 201088}) run(vocab, 256, stream, {8, 1, 2, 4});
  return finish();
}
