// Routers and expert layers on the CPU against plain arithmetic, and the ways in which files hold experts.
#include <algorithm>
#include <cmath>
#include <deque>
#include <numeric>
#include <random>

#include "base/half.h"
#include "check.h"
#include "io/tensor.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/moe_route.h"

using namespace sluice;
using namespace sluice::cpu;

namespace {

std::vector<float> random_floats(size_t n, uint32_t seed, float spread = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> out(n);
  for (float& v : out) v = normal(random);
  return out;
}

struct Choice {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

Choice choose(const MoeSpec& spec, const std::vector<float>& logits, const std::vector<float>& bias = {}) {
  Choice out{std::vector<int32_t>(static_cast<size_t>(spec.top_k)), std::vector<float>(static_cast<size_t>(spec.top_k))};
  choose_experts(spec, logits.data(), bias.empty() ? nullptr : bias.data(), out.ids.data(), out.weights.data());
  return out;
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// A layer's weights, and what it computes in plain double arithmetic.
struct Layer {
  MoeSpec spec;
  int hidden, inter, n_physical;
  std::vector<float> router, router_bias, shared_gate;
  struct Expert {
    std::vector<float> gate, up, down, gate_bias, up_bias, down_bias;
  };
  std::deque<Expert> experts;  // physical, then shared

  Layer(const MoeSpec& s, int hidden_, int inter_, bool biases, bool gated, uint32_t seed)
      : spec(s), hidden(hidden_), inter(inter_), n_physical(s.n_experts) {
    const auto h = static_cast<size_t>(hidden), i = static_cast<size_t>(inter);
    router = random_floats(static_cast<size_t>(spec.n_experts) * h, seed, 0.3f);
    if (biases) router_bias = random_floats(static_cast<size_t>(spec.n_experts), seed + 1, 0.5f);
    if (gated) shared_gate = random_floats(h, seed + 2, 0.3f);
    for (int e = 0; e < spec.n_experts + spec.n_shared; ++e) {
      const uint32_t own = seed + 100 + 10 * static_cast<uint32_t>(e);
      Expert expert{random_floats(i * h, own, 0.3f), random_floats(i * h, own + 1, 0.3f), random_floats(h * i, own + 2, 0.3f), {}, {}, {}};
      if (biases) {
        expert.gate_bias = random_floats(i, own + 3);
        expert.up_bias = random_floats(i, own + 4);
        expert.down_bias = random_floats(h, own + 5);
      }
      experts.push_back(std::move(expert));
    }
  }

  static WeightSource matrix(const std::vector<float>& values, int rows, int cols) {
    WeightSource source;
    source.name = "test";
    source.rows = rows;
    source.cols = cols;
    source.data = reinterpret_cast<const std::byte*>(values.data());
    return source;
  }
  std::unique_ptr<MoeWeights> prepare(Ops& ops) const {
    std::vector<ExpertSource> sources;
    for (const Expert& e : experts) {
      sources.push_back({matrix(e.gate, inter, hidden), matrix(e.up, inter, hidden), matrix(e.down, hidden, inter), e.gate_bias, e.up_bias, e.down_bias});
    }
    MoeSource source;
    source.spec = spec;
    source.router = matrix(router, spec.n_experts, hidden);
    source.router_bias = router_bias;
    source.experts = sources;
    if (!shared_gate.empty()) source.shared_gate = matrix(shared_gate, 1, hidden);
    return ops.prepare_moe(source);
  }
  std::vector<double> expert(const Expert& e, const float* x) const {
    const auto dot = [](const float* w, const auto* v, int n) {
      double sum = 0;
      for (int i = 0; i < n; ++i) sum += double{w[i]} * double{v[i]};
      return sum;
    };
    std::vector<double> act, out;
    for (int i = 0; i < inter; ++i) {
      const auto at = static_cast<size_t>(i);
      double g = dot(&e.gate[at * static_cast<size_t>(hidden)], x, hidden) + (e.gate_bias.empty() ? 0.0 : double{e.gate_bias[at]});
      double u = dot(&e.up[at * static_cast<size_t>(hidden)], x, hidden) + (e.up_bias.empty() ? 0.0 : double{e.up_bias[at]});
      if (spec.activation.kind == ActivationKind::swiglu_clamped) {
        const double limit = spec.activation.limit, alpha = spec.activation.alpha;
        g = std::min(g, limit);
        u = std::clamp(u, -limit, limit);
        act.push_back(g * sigmoid(alpha * g) * (u + 1));
      } else {
        act.push_back(g * sigmoid(g) * u);
      }
    }
    for (int i = 0; i < hidden; ++i) {
      const auto at = static_cast<size_t>(i);
      out.push_back(dot(&e.down[at * static_cast<size_t>(inter)], act.data(), inter) + (e.down_bias.empty() ? 0.0 : double{e.down_bias[at]}));
    }
    return out;
  }
  std::vector<double> plain(const float* x) const {
    std::vector<float> logits;
    for (int e = 0; e < spec.n_experts; ++e) {
      double sum = router_bias.empty() ? 0.0 : double{router_bias[static_cast<size_t>(e)]};
      for (int i = 0; i < hidden; ++i) sum += double{router[static_cast<size_t>(e * hidden + i)]} * double{x[i]};
      logits.push_back(static_cast<float>(sum));
    }
    const Choice chosen = choose(spec, logits);
    std::vector<double> out(static_cast<size_t>(hidden), 0.0);
    const auto add = [&](const Expert& e, double weight) {
      const std::vector<double> y = expert(e, x);
      for (size_t i = 0; i < y.size(); ++i) out[i] += weight * y[i];
    };
    for (size_t k = 0; k < chosen.ids.size(); ++k) add(experts[static_cast<size_t>(chosen.ids[k])], double{chosen.weights[k]});
    double g = 1;
    if (!shared_gate.empty()) {
      double sum = 0;
      for (int i = 0; i < hidden; ++i) sum += double{shared_gate[static_cast<size_t>(i)]} * double{x[i]};
      g = sigmoid(sum);
    }
    for (int s = 0; s < spec.n_shared; ++s) add(experts[static_cast<size_t>(n_physical + s)], g);
    return out;
  }
};

// A backend with room for m tokens of the layer, and a step of as many.
struct Bench {
  Bench(const Layer& layer, int m, bool exact, int threads = 1)
      : ops(make_cpu_ops({.exact = exact, .threads = threads, .isa = choose_cpu_isa()})), blocks(64), tokens(static_cast<size_t>(m), 0) {
    ops->make_kv_pool({KvGroupKind::full, 1, 1, 16, 0}, 64);
    StepLimits limits{m, 1, m, 1024, layer.hidden, 1, 1, 16};
    limits.n_experts = layer.spec.n_experts;
    limits.experts_a_token = layer.spec.top_k + layer.spec.n_shared;
    limits.expert_inter = layer.inter;
    limits.expert_hidden = layer.hidden;
    ops->reserve(limits);
    row = {0, 0, m, 0};
    group = {blocks.data(), 64};
    step = &ops->begin_step({{&row, 1}, tokens, 0}, {{&group, 1}});
  }
  std::unique_ptr<Ops> ops;
  std::vector<int32_t> blocks;
  std::vector<Token> tokens;
  RowWork row{};
  BlockTables::Group group{};
  const StepView* step = nullptr;
};

MoeSpec spec_of(RouteKind route, int n_experts, int top_k) {
  MoeSpec spec;
  spec.route = route;
  spec.n_experts = n_experts;
  spec.top_k = top_k;
  return spec;
}

}  // namespace

TEST(softmax_routers_choose_by_logit_and_renormalise_on_demand) {
  MoeSpec spec = spec_of(RouteKind::softmax_topk, 4, 2);
  const std::vector<float> logits = {0.0f, 2.0f, 1.0f, -1.0f};
  const double total = 1 + std::exp(2.0) + std::exp(1.0) + std::exp(-1.0);
  Choice chosen = choose(spec, logits);
  CHECK(chosen.ids == (std::vector<int32_t>{1, 2}));
  CHECK_NEAR(chosen.weights[0], std::exp(2.0) / total, 1e-7);
  CHECK_NEAR(chosen.weights[1], std::exp(1.0) / total, 1e-7);
  spec.renormalise = true;
  spec.scale = 2.5f;
  chosen = choose(spec, logits);
  CHECK_NEAR(chosen.weights[0], 2.5 * sigmoid(1.0), 1e-6);
  CHECK_NEAR(chosen.weights[1], 2.5 * (1 - sigmoid(1.0)), 1e-6);
  spec.route = RouteKind::topk_softmax;
  spec.renormalise = false;
  spec.scale = 1;
  CHECK_NEAR(choose(spec, logits).weights[0], sigmoid(1.0), 1e-7);
}

TEST(ties_go_to_the_smaller_id) {
  const std::vector<float> logits = {0.5f, 1.0f, 1.0f, 0.5f, 1.0f, 0.5f};
  for (const RouteKind route : {RouteKind::softmax_topk, RouteKind::topk_softmax, RouteKind::sigmoid_bias_grouped}) {
    CHECK(choose(spec_of(route, 6, 4), logits).ids == (std::vector<int32_t>{1, 2, 4, 0}));
  }
  MoeSpec grouped = spec_of(RouteKind::sigmoid_bias_grouped, 6, 2);
  grouped.n_groups = 3;
  grouped.top_groups = 1;
  CHECK(choose(grouped, {1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f}).ids == (std::vector<int32_t>{0, 1}));
}

TEST(logits_of_any_size_give_weights_that_are_numbers) {
  for (const RouteKind route : {RouteKind::softmax_topk, RouteKind::topk_softmax, RouteKind::sigmoid_bias_grouped}) {
    MoeSpec spec = spec_of(route, 3, 2);
    const Choice chosen = choose(spec, {3e38f, -3e38f, 1e30f});
    CHECK(chosen.ids == (std::vector<int32_t>{0, 2}));
    CHECK_EQ(chosen.weights[0], 1.0f);
    CHECK(std::isfinite(chosen.weights[1]));
  }
}

TEST(a_correction_bias_changes_the_choice_and_not_the_weights) {
  MoeSpec spec = spec_of(RouteKind::sigmoid_bias_grouped, 4, 2);
  const Choice chosen = choose(spec, {2.0f, 1.0f, 0.0f, -1.0f}, {0.0f, 0.0f, 0.0f, 0.9f});
  CHECK(chosen.ids == (std::vector<int32_t>{3, 0}));
  CHECK_NEAR(chosen.weights[0], sigmoid(-1.0), 1e-7);
  CHECK_NEAR(chosen.weights[1], sigmoid(2.0), 1e-7);
}

TEST(groups_are_judged_by_their_best_expert_or_by_their_best_two) {
  // Group 0 has the best expert, group 1 the best pair, group 2 nothing.
  const std::vector<float> logits = {3.0f, -3.0f, 2.0f, 1.9f, 0.0f, 0.0f};
  MoeSpec spec = spec_of(RouteKind::softmax_topk, 6, 2);
  spec.n_groups = 3;
  spec.top_groups = 1;
  CHECK(choose(spec, logits).ids == (std::vector<int32_t>{0, 1}));
  spec.route = RouteKind::sigmoid_bias_grouped;
  CHECK(choose(spec, logits).ids == (std::vector<int32_t>{2, 3}));
  spec.top_groups = 2;
  CHECK(choose(spec, logits).ids == (std::vector<int32_t>{0, 2}));
}

TEST(contradicting_router_shapes_are_refused) {
  const auto with = [](const std::function<void(MoeSpec&)>& change) {
    MoeSpec spec = spec_of(RouteKind::softmax_topk, 8, 2);
    change(spec);
    check_moe_spec(spec);
  };
  with([](MoeSpec&) {});
  CHECK_THROWS(with([](MoeSpec& s) { s.top_k = 9; }), "top-k");
  CHECK_THROWS(with([](MoeSpec& s) { s.n_groups = 3; }), "do not divide");
  CHECK_THROWS(with([](MoeSpec& s) { s.n_groups = 4, s.top_groups = 5; }), "more groups");
  CHECK_THROWS(with([](MoeSpec& s) { s.n_groups = 8; }), "fewer than top-k");
  CHECK_THROWS(with([](MoeSpec& s) { s.n_experts = 2000; }), "1 to 1024");
}

TEST(an_expert_layer_equals_plain_arithmetic) {
  MoeSpec clamped = spec_of(RouteKind::topk_softmax, 6, 4);
  clamped.activation = {ActivationKind::swiglu_clamped, 1.702f, 0.8f};  // low enough to clamp often
  MoeSpec shared = spec_of(RouteKind::softmax_topk, 7, 3);
  shared.n_shared = 2;
  MoeSpec grouped = spec_of(RouteKind::sigmoid_bias_grouped, 8, 2);
  grouped.n_groups = 4;
  grouped.top_groups = 2;
  grouped.renormalise = true;
  grouped.scale = 2.5f;
  const std::vector<Layer> layers = {{clamped, 32, 20, true, false, 1}, {shared, 40, 24, false, true, 2000}, {grouped, 33, 17, false, false, 4000}};
  for (const Layer& layer : layers) {
    for (const int m : {1, 23}) {
      const std::vector<float> x = random_floats(static_cast<size_t>(m * layer.hidden), 7);
      for (const bool exact : {true, false}) {
        Bench bench(layer, m, exact);
        const auto weights = layer.prepare(*bench.ops);
        std::vector<float> out(x.size(), -1.0f);
        bench.ops->moe_layer(*bench.step, {.weights = weights.get(), .x = x.data(), .out = out.data()});
        double worst = 0, size = 0;
        for (int t = 0; t < m; ++t) {
          const std::vector<double> wanted = layer.plain(x.data() + t * layer.hidden);
          for (int i = 0; i < layer.hidden; ++i) {
            const double d = std::fabs(double{out[static_cast<size_t>(t * layer.hidden + i)]} - wanted[static_cast<size_t>(i)]);
            worst = std::max(worst, d);
            size = std::max(size, std::fabs(wanted[static_cast<size_t>(i)]));
          }
        }
        CHECK_NEAR(worst / size, 0, exact ? 1e-6 : 3e-2);
      }
    }
  }
}

TEST(all_tokens_to_one_expert_and_none_to_the_others) {
  Layer layer(spec_of(RouteKind::softmax_topk, 5, 1), 16, 8, true, false, 1);
  std::ranges::fill(layer.router, 0.0f);
  layer.router_bias = {0, 0, 0, 9, 0};
  const std::vector<float> x = random_floats(40 * 16, 3);
  Bench bench(layer, 40, true, 2);
  const auto weights = layer.prepare(*bench.ops);
  std::vector<float> out(x.size());
  std::vector<int64_t> counts(5, 7);
  std::vector<int32_t> ids(40);
  std::vector<float> chosen(40);
  bench.ops->moe_layer(*bench.step, {.weights = weights.get(), .x = x.data(), .out = out.data(), .expert_tokens = counts.data(),
                                     .expert_ids = ids.data(), .expert_weights = chosen.data()});
  CHECK(counts == (std::vector<int64_t>{7, 7, 7, 47, 7}));
  CHECK(ids == std::vector<int32_t>(40, 3));
  const std::vector<double> wanted = layer.plain(x.data() + 39 * 16);
  for (size_t i = 0; i < 16; ++i) CHECK_NEAR(out[39 * 16 + i], wanted[i], 1e-5);
}

TEST(replicas_share_the_tokens_and_change_no_bit) {
  MoeSpec spec = spec_of(RouteKind::softmax_topk, 4, 2);
  spec.n_shared = 1;
  Layer layer(spec, 24, 12, false, false, 1);
  const int m = 30;
  const std::vector<float> x = random_floats(static_cast<size_t>(m) * 24, 5);
  Bench bench(layer, m, true);
  const auto plain = layer.prepare(*bench.ops);
  std::vector<float> wanted(x.size()), got(x.size());
  std::vector<int64_t> logical(4, 0), physical(6, 0);
  bench.ops->moe_layer(*bench.step, {.weights = plain.get(), .x = x.data(), .out = wanted.data(), .expert_tokens = logical.data()});
  // Physical experts 4 and 5 are further copies of 1 and 2.
  layer.experts.insert(layer.experts.end() - 1, {layer.experts[1], layer.experts[2]});
  const auto replicated = layer.prepare(*bench.ops);
  CHECK_EQ(replicated->n_physical, 6);
  const std::vector<int32_t> replicas = {0, -1, 1, 4, 5, 2, 3, -1};
  bench.ops->moe_layer(*bench.step, {.weights = replicated.get(), .x = x.data(), .out = got.data(), .replicas = replicas.data(),
                                     .max_replicas = 2, .expert_tokens = physical.data()});
  CHECK(std::memcmp(wanted.data(), got.data(), got.size() * sizeof(float)) == 0);
  CHECK_EQ(physical[0], logical[0]);
  CHECK_EQ(physical[1] + physical[4], logical[1]);
  CHECK_EQ(physical[2] + physical[5], logical[2]);
  CHECK(physical[1] > 0 && physical[4] > 0);
}

TEST(rows_are_read_in_every_order_and_format) {
  // 4 x 6 bf16 stored inputs first: value (row, column) = 10 row + column.
  std::vector<uint16_t> turned(24);
  for (int r = 0; r < 4; ++r) {
    for (int c = 0; c < 6; ++c) turned[static_cast<size_t>(c * 4 + r)] = static_cast<uint16_t>(std::bit_cast<uint32_t>(static_cast<float>(10 * r + c)) >> 16);
  }
  WeightSource source;
  source.format = WeightFormat::bf16;
  source.rows = 2;
  source.cols = 6;
  source.data = reinterpret_cast<const std::byte*>(turned.data());
  source.row_stride = 2;
  source.col_stride = 8;
  const std::vector<int32_t> odd = {1, 3};
  source.row_order = odd;
  std::vector<float> row(32);
  read_row(source, 1, row.data());
  for (int c = 0; c < 6; ++c) CHECK_EQ(row[static_cast<size_t>(c)], static_cast<float>(30 + c));

  // MXFP4: every code, low nibble first, two blocks of other exponents.
  std::vector<uint8_t> codes(32);
  for (size_t i = 0; i < 32; ++i) codes[i] = static_cast<uint8_t>((2 * i) % 16 | ((2 * i + 1) % 16) << 4);
  const std::vector<uint8_t> exponents = {127, 130};
  WeightSource mx;
  mx.format = WeightFormat::mxfp4;
  mx.rows = 1;
  mx.cols = 64;
  mx.data = reinterpret_cast<const std::byte*>(codes.data());
  mx.exponents = exponents.data();
  row.resize(64);
  read_row(mx, 0, row.data());
  const std::vector<float> e2m1 = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  for (size_t i = 0; i < 64; ++i) {
    const float value = e2m1[i % 8] * (i % 16 < 8 ? 1.0f : -1.0f) * (i < 32 ? 1.0f : 8.0f);
    CHECK_EQ(row[i], value);
  }
  mx.exponents = nullptr;
  CHECK_THROWS(read_row(mx, 0, row.data()), "without its scales");
  mx.exponents = exponents.data();
  mx.cols = 40;
  CHECK_THROWS(read_row(mx, 0, row.data()), "whole blocks of 32");
}

TEST(mxfp4_experts_lose_nothing_in_fast) {
  std::mt19937 random(9);
  std::vector<uint8_t> codes(16 * 48), exponents(16 * 3);
  for (uint8_t& c : codes) c = static_cast<uint8_t>(random());
  for (uint8_t& e : exponents) e = static_cast<uint8_t>(118 + random() % 12);
  WeightSource mx;
  mx.name = "test";
  mx.format = WeightFormat::mxfp4;
  mx.rows = 16;
  mx.cols = 96;
  mx.data = reinterpret_cast<const std::byte*>(codes.data());
  mx.exponents = exponents.data();
  Layer layer(spec_of(RouteKind::softmax_topk, 1, 1), 96, 16, false, false, 1);
  Bench bench(layer, 1, false);
  const auto weight = bench.ops->prepare_linear({&mx, 1}, {});
  // The largest activation of a block is 127 x 255, so their scale is 1 and integers are kept: any difference would be the weights'.
  std::vector<float> x(96), y(16), row(96);
  for (size_t i = 0; i < 96; ++i) x[i] = i % 32 == 0 ? 32385.0f : static_cast<float>(static_cast<int>(i % 7) - 3);
  bench.ops->linear(*bench.step, *weight, x.data(), y.data(), false);
  for (int r = 0; r < 16; ++r) {
    read_row(mx, r, row.data());
    double sum = 0, size = 0;
    for (size_t i = 0; i < 96; ++i) {
      sum += double{row[i]} * double{x[i]};
      size += std::fabs(double{row[i]} * double{x[i]});
    }
    CHECK_NEAR((double{y[static_cast<size_t>(r)]} - sum) / size, 0, 1e-6);
  }
}
