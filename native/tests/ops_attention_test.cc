// Paged attention on the CPU, with windows, sinks and latents, against plain arithmetic over the tokens in order.
#include <algorithm>
#include <cmath>
#include <functional>
#include <random>

#include "base/half.h"
#include "check.h"
#include "ops/cpu/cpu_ops.h"

using namespace sluice;

namespace {

std::vector<float> random_floats(size_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 1);
  std::vector<float> out(n);
  for (float& v : out) v = normal(random);
  return out;
}

// softmax(scale q k + sink) v over keys [begin, position], all in double.
std::vector<double> plain(const std::function<double(int)>& score, const std::function<double(int, int)>& value, int width, int position,
                          int window, const float* sink) {
  const int begin = window > 0 ? std::max(0, position + 1 - window) : 0;
  double total = sink == nullptr ? 0.0 : std::exp(double{*sink});
  std::vector<double> out(static_cast<size_t>(width), 0.0);
  for (int key = begin; key <= position; ++key) {
    const double p = std::exp(score(key));
    total += p;
    for (int i = 0; i < width; ++i) out[static_cast<size_t>(i)] += p * value(key, i);
  }
  for (double& v : out) v /= total;
  return out;
}

struct Case {
  int n_heads, n_kv_heads, head_dim, context, chunk, window;
  bool sinks;
};

// Writes `context` tokens of one row in chunks, as a prompt would, and compares the attention of every token of the last.
void check_heads(const Case& c, bool exact, int threads) {
  const auto ops = make_cpu_ops({.exact = exact, .threads = threads, .isa = choose_cpu_isa()});
  const int n_blocks = (c.context + kBlockTokens - 1) / kBlockTokens;
  KvPool pool = ops->make_kv_pool({c.window > 0 ? KvGroupKind::sliding : KvGroupKind::full, 2, c.n_kv_heads, c.head_dim, 0}, n_blocks);
  ops->reserve({c.context, 1, 1, c.context, 64, c.n_heads, c.n_kv_heads, c.head_dim});
  std::vector<int32_t> blocks;
  for (int b = 0; b < n_blocks; ++b) blocks.push_back(n_blocks - 1 - b);
  const BlockTables::Group group{blocks.data(), n_blocks};
  const int width = (c.n_heads + 2 * c.n_kv_heads) * c.head_dim;
  const std::vector<float> qkv = random_floats(static_cast<size_t>(c.context) * static_cast<size_t>(width), 11);
  const std::vector<float> sinks = random_floats(static_cast<size_t>(c.n_heads), 12);
  // No rotation: cos 1, sin 0.
  std::vector<float> cos_sin(static_cast<size_t>(c.context * c.head_dim), 0.0f);
  for (int t = 0; t < c.context; ++t) std::fill_n(cos_sin.begin() + t * c.head_dim, c.head_dim / 2, 1.0f);
  const float scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  std::vector<float> q(static_cast<size_t>(c.context * c.n_heads * c.head_dim)), out(q.size());
  int first = 0, n = 0;
  for (; first < c.context; first += n) {
    n = std::min(c.chunk, c.context - first);
    const std::vector<Token> tokens(static_cast<size_t>(n), 0);
    const RowWork row{0, first, n, 0};
    const StepView& step = ops->begin_step({{&row, 1}, tokens, 0}, {{&group, 1}});
    std::vector<float> part(qkv.begin() + first * width, qkv.begin() + (first + n) * width);
    ops->rope_kv_write(step, {.qkv = part.data(), .n_heads = c.n_heads, .n_kv_heads = c.n_kv_heads, .head_dim = c.head_dim,
                              .q_norm = nullptr, .k_norm = nullptr, .norm_whole = false, .norm_eps = 0, .cos_sin = cos_sin.data(),
                              .rope_dim = c.head_dim, .layer = 1, .group = 0, .q_out = q.data()}, pool);
    ops->attention(step, {.q = q.data(), .n_heads = c.n_heads, .layer = 1, .group = 0, .scale = scale, .window = c.window,
                          .sinks = c.sinks ? sinks.data() : nullptr, .out = out.data()}, pool);
    if (first + n == c.context) break;
  }
  const auto at = [&](int token, int head) { return qkv.data() + static_cast<long>(token) * width + static_cast<long>(head) * c.head_dim; };
  double worst = 0;
  for (int t = 0; t < n; ++t) {
    for (int h = 0; h < c.n_heads; ++h) {
      const int kv = h / (c.n_heads / c.n_kv_heads);
      const auto score = [&](int key) {
        double s = 0;
        for (int i = 0; i < c.head_dim; ++i) s += double{at(first + t, h)[i]} * double{at(key, c.n_heads + kv)[i]};
        return s * double{scale};
      };
      const auto value = [&](int key, int i) { return double{at(key, c.n_heads + c.n_kv_heads + kv)[i]}; };
      const std::vector<double> wanted = plain(score, value, c.head_dim, first + t, c.window, c.sinks ? &sinks[static_cast<size_t>(h)] : nullptr);
      for (int i = 0; i < c.head_dim; ++i) {
        worst = std::max(worst, std::fabs(double{out[static_cast<size_t>((t * c.n_heads + h) * c.head_dim + i)]} - wanted[static_cast<size_t>(i)]));
      }
    }
  }
  CHECK_NEAR(worst, 0, exact ? 1e-6 : 4e-3);  // fast: K and V are fp16
}

}  // namespace

TEST(attention_with_windows_and_sinks_equals_plain_arithmetic) {
  // Contexts over one and over several splits of 512 in `fast`; windows inside a block, across blocks and across splits;
  // heads that end inside a vector; one token (shared by threads) and many.
  const std::vector<Case> cases = {
      {4, 2, 16, 40, 40, 0, false},  {4, 2, 16, 40, 7, 12, true},     {8, 1, 8, 70, 64, 5, true},     {6, 2, 24, 70, 33, 16, false},
      {4, 2, 16, 1100, 1099, 0, true}, {4, 2, 16, 1100, 1099, 700, true}, {4, 1, 16, 1100, 550, 30, true}, {2, 2, 64, 530, 500, 1, true},
  };
  for (const Case& c : cases) {
    for (const bool exact : {true, false}) {
      for (const int threads : {1, 2}) check_heads(c, exact, threads);
    }
  }
}

TEST(a_sink_far_above_or_below_the_scores_gives_numbers) {
  for (const bool exact : {true, false}) {
    const auto ops = make_cpu_ops({.exact = exact, .threads = 1, .isa = choose_cpu_isa()});
    KvPool pool = ops->make_kv_pool({KvGroupKind::full, 1, 1, 16, 0}, 1);
    ops->reserve({1, 1, 1, 16, 64, 2, 1, 16});
    const int32_t block = 0;
    const BlockTables::Group group{&block, 1};
    const Token token = 0;
    const RowWork row{0, 0, 1, 0};
    const StepView& step = ops->begin_step({{&row, 1}, {&token, 1}, 0}, {{&group, 1}});
    std::vector<float> qkv(64, 1.0f), cos_sin(16, 0.0f), q(32), out(32);
    std::fill_n(cos_sin.begin(), 8, 1.0f);
    ops->rope_kv_write(step, {.qkv = qkv.data(), .n_heads = 2, .n_kv_heads = 1, .head_dim = 16, .q_norm = nullptr, .k_norm = nullptr,
                              .norm_whole = false, .norm_eps = 0, .cos_sin = cos_sin.data(), .rope_dim = 16, .layer = 0, .group = 0,
                              .q_out = q.data()}, pool);
    const std::vector<float> sinks = {1000.0f, -1000.0f};
    ops->attention(step, {.q = q.data(), .n_heads = 2, .layer = 0, .group = 0, .scale = 1, .window = 0, .sinks = sinks.data(), .out = out.data()}, pool);
    CHECK_EQ(out[0], 0.0f);
    CHECK_EQ(out[16], 1.0f);
  }
}

// Against the definition (arXiv:2405.04434, 2.1): keys and values of each head, projected up from the latents.
TEST(latent_attention_equals_heads_of_their_own) {
  constexpr int kHeads = 3, kNope = 6, kRope = 4, kLatent = 10, kValue = 5, kContext = 37, kWidth = kLatent + kRope;
  const auto ops = make_cpu_ops({.exact = false, .threads = 2, .isa = choose_cpu_isa()});  // latents are fp32 in both precisions
  KvPool pool = ops->make_kv_pool({KvGroupKind::mla_latent, 2, 1, kRope, kLatent}, 3);
  ops->reserve({kContext, 1, 1, kContext, 64, kHeads, 1, kWidth});
  const std::vector<int32_t> blocks = {2, 0, 1};
  const BlockTables::Group group{blocks.data(), 3};
  const std::vector<Token> tokens(kContext, 0);
  const RowWork row{0, 0, kContext, 0};
  const StepView& step = ops->begin_step({{&row, 1}, tokens, 0}, {{&group, 1}});

  const std::vector<float> q = random_floats(kContext * kHeads * (kNope + kRope), 1);
  const std::vector<float> kv = random_floats(kContext * kWidth, 2);
  const std::vector<float> up = random_floats(kHeads * (kNope + kValue) * kLatent, 3);  // [head][nope, value][latent]
  const std::vector<float> norm = random_floats(kLatent, 4);
  RopeSpec rope;
  rope.dim = kRope;
  rope.inv_frequency = {1.0f, 0.1f};
  std::vector<float> cos_sin(kContext * kRope);
  ops->rope_tables(step, rope, cos_sin.data());

  std::vector<WeightSource> keys, values;
  for (int h = 0; h < kHeads; ++h) {
    WeightSource key;
    key.name = "test";
    key.rows = kLatent;
    key.cols = kNope;
    key.data = reinterpret_cast<const std::byte*>(up.data() + h * (kNope + kValue) * kLatent);
    key.row_stride = 4;
    key.col_stride = 4 * kLatent;
    keys.push_back(key);
    WeightSource value;
    value.name = "test";
    value.rows = kValue;
    value.cols = kLatent;
    value.data = reinterpret_cast<const std::byte*>(up.data() + (h * (kNope + kValue) + kNope) * kLatent);
    values.push_back(value);
  }
  const auto up_key = ops->prepare_head_linear(keys), up_value = ops->prepare_head_linear(values);
  std::vector<float> absorbed(kContext * kHeads * kWidth), latent(kContext * kHeads * kLatent), out(kContext * kHeads * kValue);
  ops->head_linear(step, {.weight = up_key.get(), .n_heads = kHeads, .x = q.data(), .x_stride = kNope + kRope, .y = absorbed.data(), .y_stride = kWidth});
  ops->mla_kv_write(step, {.q = q.data(), .kv = kv.data(), .n_heads = kHeads, .nope_dim = kNope, .rope_dim = kRope, .latent_dim = kLatent,
                           .latent_norm = norm.data(), .norm_eps = 1e-6f, .cos_sin = cos_sin.data(), .layer = 1, .group = 0, .q_out = absorbed.data()}, pool);
  ops->attention(step, {.q = absorbed.data(), .n_heads = kHeads, .layer = 1, .group = 0, .scale = 0.3f, .window = 0, .sinks = nullptr, .out = latent.data()}, pool);
  ops->head_linear(step, {.weight = up_value.get(), .n_heads = kHeads, .x = latent.data(), .x_stride = kLatent, .y = out.data(), .y_stride = kValue});

  const auto turned = [&](const float* x, int t) {
    std::vector<double> r;
    for (int i = 0; i < kRope; ++i) {
      const int pair = i % 2;
      const double c = std::cos(t * double{rope.inv_frequency[static_cast<size_t>(pair)]}), s = std::sin(t * double{rope.inv_frequency[static_cast<size_t>(pair)]});
      r.push_back(i < 2 ? double{x[pair]} * c - double{x[pair + 2]} * s : double{x[pair + 2]} * c + double{x[pair]} * s);
    }
    return r;
  };
  const auto normed = [&](int t) {
    double sum = 0;
    for (int i = 0; i < kLatent; ++i) sum += std::pow(double{kv[static_cast<size_t>(t * kWidth + i)]}, 2);
    std::vector<double> r;
    for (int i = 0; i < kLatent; ++i) {
      r.push_back(double{kv[static_cast<size_t>(t * kWidth + i)]} / std::sqrt(sum / kLatent + 1e-6) * double{norm[static_cast<size_t>(i)]});
    }
    return r;
  };
  // Row `r` of a head's key and value projections, times a token's latent.
  const auto projected = [&](int h, int r, int t) {
    const std::vector<double> c = normed(t);
    double sum = 0;
    for (int i = 0; i < kLatent; ++i) sum += double{up[static_cast<size_t>((h * (kNope + kValue) + r) * kLatent + i)]} * c[static_cast<size_t>(i)];
    return sum;
  };
  double worst = 0;
  for (int t = 0; t < kContext; ++t) {
    for (int h = 0; h < kHeads; ++h) {
      const float* query = q.data() + (t * kHeads + h) * (kNope + kRope);
      const std::vector<double> query_turned = turned(query + kNope, t);
      const auto score = [&](int key) {
        const std::vector<double> key_turned = turned(kv.data() + key * kWidth + kLatent, key);
        double s = 0;
        for (int i = 0; i < kNope; ++i) s += double{query[i]} * projected(h, i, key);
        for (int i = 0; i < kRope; ++i) s += query_turned[static_cast<size_t>(i)] * key_turned[static_cast<size_t>(i)];
        return s * double{0.3f};
      };
      const std::vector<double> wanted = plain(score, [&](int key, int i) { return projected(h, kNope + i, key); }, kValue, t, 0, nullptr);
      for (int i = 0; i < kValue; ++i) {
        worst = std::max(worst, std::fabs(double{out[static_cast<size_t>((t * kHeads + h) * kValue + i)]} - wanted[static_cast<size_t>(i)]));
      }
    }
  }
  CHECK_NEAR(worst, 0, 1e-5);
}
