// The router and the experts against double precision, over formats, shapes, routers and awkward batches.
// Exit status 0 = all passed. Arguments: a seed (default: 1); "small" = a few small cases, for compute-sanitizer.
#include "device_test.h"
#include "moe_reference.h"
#include "ops/cuda/moe_pack.h"

using namespace sluice;
using namespace sluice::cuda;
using namespace sluice::device_test;

namespace {

struct Case {
  WeightFormat format;
  int hidden, inter, experts, top_k, shared;
  RouteKind kind;
  bool renormalise;
  int groups, top_groups;
  bool biases, row_scales, residual;
  int skew;      // 0 = as it comes, 1 = every token to the same experts
  int variant;
};

const char* name(WeightFormat f) {
  switch (f) {
    case WeightFormat::bf16: return "bf16";
    case WeightFormat::fp8_e4m3: return "fp8";
    case WeightFormat::int8: return "int8";
    case WeightFormat::int4: return "int4";
    default: return "mxfp4";
  }
}

// A random matrix [rows][cols] as a file of this format would hold it.
struct FileMatrix {
  std::vector<uint8_t> values, exponents;
  std::vector<float> scales;
  MoeMatrix view(WeightFormat f) const { return {values.data(), f == WeightFormat::mxfp4 ? (const void*)exponents.data() : scales.empty() ? nullptr : scales.data(), 64}; }
};
FileMatrix random_matrix(WeightFormat f, int rows, int cols) {
  FileMatrix m;
  size_t n = size_t(rows) * cols;
  double std_dev = 1 / std::sqrt(double(cols));
  if (f == WeightFormat::bf16) {
    m.values.resize(n * 2);
    for (size_t i = 0; i < n; ++i) { uint16_t v = reference::to_bf16(float(normal() * std_dev)); std::memcpy(&m.values[i * 2], &v, 2); }
  } else if (f == WeightFormat::fp8_e4m3) {
    m.values.resize(n);
    for (auto& v : m.values) { do v = uint8_t(rng()); while ((v & 127) == 127 || (v & 127) > 0x68); }
    m.scales.resize(size_t((rows + 127) / 128) * ((cols + 127) / 128));
    for (auto& s : m.scales) s = float(std_dev / 20 * (0.5 + (rng() % 1000) / 1000.0));
  } else if (f == WeightFormat::int8) {
    m.values.resize(n);
    for (auto& v : m.values) v = uint8_t(rng());
  } else {
    m.values.resize(n / 2);
    for (auto& v : m.values) v = uint8_t(rng());
    if (f == WeightFormat::int4) {
      m.scales.resize(n / 64);
      for (auto& s : m.scales) s = float(std_dev / 5 * (0.5 + (rng() % 1000) / 1000.0));
    } else {
      m.exponents.resize(n / 32);
      for (auto& s : m.exponents) s = uint8_t(127 - std::lround(std::log2(std::sqrt(double(cols)))) - rng() % 4);
    }
  }
  return m;
}

void run(const Case& c, const std::vector<int>& batches, cudaStream_t stream, int blocks) {
  const int all_experts = c.experts + c.shared, width = c.top_k + c.shared, max_tokens = 128;
  std::string label = std::string(name(c.format)) + " H" + std::to_string(c.hidden) + " I" + std::to_string(c.inter) + " E" +
                      std::to_string(c.experts) + "+" + std::to_string(c.shared) + " k" + std::to_string(c.top_k) + " route " +
                      std::to_string(int(c.kind)) + " skew " + std::to_string(c.skew) + " variant " + std::to_string(c.variant);
  // Weights, in the file's order, packed, and as numbers again.
  const size_t gu_bytes = moe_packed_bytes(c.format, 2 * c.inter, c.hidden), dn_bytes = moe_packed_bytes(c.format, c.hidden, c.inter);
  std::vector<std::byte> gate_up(gu_bytes * all_experts), down(dn_bytes * all_experts);
  std::vector<std::vector<float>> gu_values(all_experts), dn_values(all_experts);
  for (int e = 0; e < all_experts; ++e) {
    FileMatrix g = random_matrix(c.format, c.inter, c.hidden), u = random_matrix(c.format, c.inter, c.hidden), d = random_matrix(c.format, c.hidden, c.inter);
    MoeMatrix gv = g.view(c.format), uv = u.view(c.format), dv = d.view(c.format);
    moe_pack(c.format, gv, &uv, c.inter, c.hidden, &gate_up[gu_bytes * e]);
    moe_pack(c.format, dv, nullptr, c.hidden, c.inter, &down[dn_bytes * e]);
    gu_values[e] = reference::unpack(c.format, &gate_up[gu_bytes * e], 2 * c.inter, c.hidden);
    dn_values[e] = reference::unpack(c.format, &down[dn_bytes * e], c.hidden, c.inter);
    // The numbers must be those of the file, not only of the packed form.
    for (int probe = 0; probe < 200; ++probe) {
      int row = int(rng() % c.inter), col = int(rng() % c.hidden);
      size_t at = size_t(row) * c.hidden + col;
      double want = 0;
      if (c.format == WeightFormat::bf16) { uint16_t v; std::memcpy(&v, &u.values[at * 2], 2); want = reference::from_bf16(v); }
      if (c.format == WeightFormat::fp8_e4m3) want = reference::from_e4m3(u.values[at]) * u.scales[row / 128 * ((c.hidden + 127) / 128) + col / 128];
      if (c.format == WeightFormat::int8) want = int8_t(u.values[at]);
      if (c.format == WeightFormat::int4) want = (double(u.values[at / 2] >> at % 2 * 4 & 15) - 8) * u.scales[at / 64];
      if (c.format == WeightFormat::mxfp4) want = std::ldexp(reference::from_e2m1(u.values[at / 2] >> at % 2 * 4 & 15), u.exponents[at / 32] - 127);
      double got = gu_values[e][size_t(row / 8 * 16 + 8 + row % 8) * c.hidden + col];
      if (!(std::fabs(got - want) <= 1e-3 * std::fabs(want))) { expect(false, label + ": packing, " + std::to_string(got) + " for " + std::to_string(want)); break; }
    }
  }
  auto floats = [&](size_t n, double scale, double mean = 0) { std::vector<float> v(n); for (auto& x : v) x = float(mean + scale * normal()); return v; };
  double row_scale = c.format == WeightFormat::int8 ? 1.0 / 74 / std::sqrt(double(c.hidden)) : 1.0;
  std::vector<float> gu_scale, dn_scale, gu_bias, dn_bias;
  if (c.row_scales || c.format == WeightFormat::int8) {
    gu_scale = floats(size_t(all_experts) * 2 * c.inter, row_scale * 0.1, row_scale);
    dn_scale = floats(size_t(all_experts) * c.hidden, row_scale * 0.1, row_scale);
  }
  if (c.biases) gu_bias = floats(size_t(all_experts) * 2 * c.inter, 0.5), dn_bias = floats(size_t(all_experts) * c.hidden, 0.5);
  std::vector<uint16_t> x(size_t(max_tokens) * c.hidden), router(size_t(c.experts) * c.hidden), residual(x.size());
  for (auto& v : x) v = reference::to_bf16(float(normal() * (c.biases ? 3 : 1)));
  for (auto& v : residual) v = reference::to_bf16(float(normal()));
  for (auto& v : router) v = reference::to_bf16(float(normal() / std::sqrt(double(c.hidden))));
  std::vector<float> router_bias(c.experts, 0), selection_bias(c.experts, 0);
  if (c.skew == 1) for (int e = 0; e < c.top_k; ++e) (c.kind == RouteKind::sigmoid_bias_grouped ? selection_bias : router_bias)[(e * 7 + 3) % c.experts] = 50.0f - e;
  else for (auto& b : selection_bias) b = float(normal() * 0.1);
  bool use_bias = c.skew == 1 || c.kind == RouteKind::topk_softmax;

  Buffer<std::byte> d_gate_up(gate_up), d_down(down);
  Buffer<float> d_gu_scale(gu_scale), d_dn_scale(dn_scale), d_gu_bias(gu_bias), d_dn_bias(dn_bias), d_router_bias(router_bias), d_selection(selection_bias);
  Buffer<uint16_t> d_x(x), d_router(router), d_residual(residual), d_out(x.size());
  Buffer<float> logits(size_t(max_tokens) * c.experts), weights(size_t(max_tokens) * width), partial(size_t(max_tokens) * width * c.hidden);
  Buffer<int32_t> ids(size_t(max_tokens) * width), n_tokens(1);
  Buffer<uint16_t> activated(size_t(max_tokens) * width * c.inter);
  Buffer<MoeSync> sync(1);
  Buffer<uint32_t> counters(all_experts);
  sync.zero();
  counters.zero();
  uint64_t pairs_run = 0;

  MoeRouteArgs r{};
  r.n_tokens = n_tokens.p, r.x = (const __nv_bfloat16*)d_x.p, r.weight = (const __nv_bfloat16*)d_router.p;
  r.bias = use_bias ? d_router_bias.p : nullptr, r.selection_bias = d_selection.p, r.hidden = c.hidden, r.n_experts = c.experts;
  r.top_k = c.top_k, r.n_shared = c.shared, r.kind = c.kind, r.n_groups = c.groups, r.top_groups = c.top_groups, r.renormalise = c.renormalise;
  r.scale = c.kind == RouteKind::sigmoid_bias_grouped ? 2.5f : 1.0f, r.logits = logits.p, r.ids = ids.p, r.weights = weights.p;
  MoeExpertsArgs a{};
  a.hidden = c.hidden, a.inter = c.inter;
  a.gate_up = d_gate_up.p, a.down = d_down.p, a.out = (__nv_bfloat16*)d_out.p, a.expert_tokens = counters.p;
  if (!gu_scale.empty()) a.gate_up_scale = d_gu_scale.p, a.down_scale = d_dn_scale.p;
  if (c.biases) a.gate_up_bias = d_gu_bias.p, a.down_bias = d_dn_bias.p, a.activation.kind = ActivationKind::swiglu_clamped;
  if (c.residual) a.residual = (const __nv_bfloat16*)d_residual.p;
  Buffer<uint16_t> scaled(x.size());
  MoeWorkspace w{sync.p, (__nv_bfloat16*)activated.p, partial.p, (__nv_bfloat16*)scaled.p};

  // The double-precision answer of every token, once.
  std::vector<std::vector<double>> want_logits(max_tokens, std::vector<double>(c.experts));
  std::vector<reference::Choice> want(max_tokens);
  for (int t = 0; t < max_tokens; ++t) {
    for (int e = 0; e < c.experts; ++e) {
      double s = use_bias ? router_bias[e] : 0;
      for (int h = 0; h < c.hidden; ++h) s += reference::from_bf16(x[size_t(t) * c.hidden + h]) * reference::from_bf16(router[size_t(e) * c.hidden + h]);
      want_logits[t][e] = s;
    }
    want[t] = reference::route(want_logits[t], r, selection_bias.data());
  }
  std::vector<std::vector<uint16_t>> alone(max_tokens);  // a token's bits when it was alone
  auto launch = [&](int bucket, bool overlap) {
    MoeLaunch l{bucket, blocks, overlap, c.variant};
    CHECK_CUDA(moe_layer(c.format, r, a, w, l, stream));
  };
  double worst = 0;
  for (int m : batches) {
    int bucket = m <= 1 ? 1 : m <= 8 ? 8 : m <= 16 ? 16 : m <= 32 ? 32 : m <= 64 ? 64 : 128;
    CHECK_CUDA(cudaMemcpy(n_tokens.p, &m, 4, cudaMemcpyHostToDevice));
    logits.poison(), weights.poison(), ids.poison(), partial.poison(), activated.poison(), d_out.poison();
    launch(bucket, m % 2 == 0);
    CHECK_CUDA(cudaStreamSynchronize(stream));
    pairs_run += uint64_t(m) * width;
    auto out = d_out.read(), after = x;
    auto got_ids = ids.read();
    auto got_weights = weights.read(), got_logits = logits.read();
    std::string what = label + " M" + std::to_string(m);
    double err = 0, norm = 0;
    int compared = 0;
    for (int t = 0; t < m; ++t) {
      bool same = true;
      for (int e = 0; e < c.experts; ++e) expect(std::fabs(got_logits[t * c.experts + e] - want_logits[t][e]) < 2e-4 * (1 + std::fabs(want_logits[t][e])), what + " logits");
      for (int k = 0; k < width; ++k) {
        same &= got_ids[t * width + k] == want[t].ids[k];
        if (same) expect(std::fabs(got_weights[t * width + k] - want[t].weights[k]) < 1e-4 * (1 + want[t].weights[k]), what + " weights");
      }
      if (!same) { expect(want[t].margin < 1e-5, what + " ids of token " + std::to_string(t)); continue; }
      if (m > 9 && t % 13 && t != m - 1) continue;  // the slow part: some tokens of each batch
      std::vector<double> y(c.hidden, 0), xt(c.hidden);
      for (int h = 0; h < c.hidden; ++h) {
        xt[h] = reference::from_bf16(x[size_t(t) * c.hidden + h]);
        if (c.residual) y[h] = reference::from_bf16(residual[size_t(t) * c.hidden + h]);
      }
      for (int k = 0; k < width; ++k) {
        size_t e = want[t].ids[k];
        auto v = reference::expert(gu_values[e], dn_values[e], xt.data(), c.hidden, c.inter, a.activation, gu_scale.empty() ? nullptr : &gu_scale[e * 2 * c.inter],
                                   dn_scale.empty() ? nullptr : &dn_scale[e * c.hidden], c.biases ? &gu_bias[e * 2 * c.inter] : nullptr, c.biases ? &dn_bias[e * c.hidden] : nullptr);
        for (int h = 0; h < c.hidden; ++h) y[h] += want[t].weights[k] * v[h];
      }
      ++compared;
      for (int h = 0; h < c.hidden; ++h) {
        double d = reference::from_bf16(out[size_t(t) * c.hidden + h]) - y[h];
        err += d * d, norm += y[h] * y[h];
      }
      std::vector<uint16_t> bits(out.begin() + size_t(t) * c.hidden, out.begin() + size_t(t + 1) * c.hidden);
      if (alone[t].empty()) {
        // The same token, alone: moved to row 0.
        int one = 1;
        CHECK_CUDA(cudaMemcpy(n_tokens.p, &one, 4, cudaMemcpyHostToDevice));
        CHECK_CUDA(cudaMemcpy(d_x.p, &x[size_t(t) * c.hidden], c.hidden * 2, cudaMemcpyHostToDevice));
        CHECK_CUDA(cudaMemcpy(d_residual.p, &residual[size_t(t) * c.hidden], c.hidden * 2, cudaMemcpyHostToDevice));
        launch(t % 3 ? 1 : 8, true);
        CHECK_CUDA(cudaStreamSynchronize(stream));
        pairs_run += width;
        alone[t].resize(c.hidden);
        CHECK_CUDA(cudaMemcpy(alone[t].data(), d_out.p, c.hidden * 2, cudaMemcpyDeviceToHost));
        CHECK_CUDA(cudaMemcpy(d_x.p, x.data(), x.size() * 2, cudaMemcpyHostToDevice));
        CHECK_CUDA(cudaMemcpy(d_residual.p, residual.data(), x.size() * 2, cudaMemcpyHostToDevice));
        CHECK_CUDA(cudaMemcpy(n_tokens.p, &m, 4, cudaMemcpyHostToDevice));
      }
      expect(bits == alone[t], what + " token " + std::to_string(t) + ": bits depend on the batch");
    }
    double rel = compared ? std::sqrt(err / norm) : 0;
    worst = std::max(worst, rel);
    if (compared) expect(rel < 6e-3, what + " relative error " + std::to_string(rel));
    for (size_t i = size_t(m) * c.hidden; i < out.size(); ++i) if (out[i] != 0xffff) { expect(false, what + " wrote past its tokens"); break; }
    // Again as a graph of four layers, replayed, after garbage: same bits.
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < 4; ++i) launch(bucket, true);
    CHECK_CUDA(cudaStreamEndCapture(stream, &graph));
    CHECK_CUDA(cudaGraphInstantiate(&exec, graph, 0));
    scaled.poison(), partial.poison(), activated.poison(), d_out.poison(), ids.poison(), weights.poison();
    for (int i = 0; i < 5; ++i) CHECK_CUDA(cudaGraphLaunch(exec, stream));
    CHECK_CUDA(cudaStreamSynchronize(stream));
    pairs_run += uint64_t(m) * width * 20;
    expect(d_out.read() == out, what + " graph replay differs");
    CHECK_CUDA(cudaGraphExecDestroy(exec));
    CHECK_CUDA(cudaGraphDestroy(graph));
  }
  uint64_t counted = 0;
  for (uint32_t v : counters.read()) counted += v;
  expect(counted == pairs_run, label + " expert counters");
  std::printf("%-70s worst relative error %.2e\n", label.c_str(), worst);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  rng.seed(argc > 1 ? std::atoi(argv[1]) : 1);
  cudaDeviceProp device;
  CHECK_CUDA(cudaGetDeviceProperties(&device, 0));
  cudaStream_t stream;
  CHECK_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const int blocks = device.multiProcessorCount;
  using F = WeightFormat;
  using R = RouteKind;
  const std::vector<int> some = {1, 2, 3, 7, 8, 9, 16, 17, 33, 64, 65, 100, 128}, few = {0, 1, 5, 13, 31, 40, 127};
  if (argc > 2 && std::string(argv[2]) == "small") {
    const std::vector<int> three = {1, 9, 40};
    for (F f : {F::bf16, F::mxfp4, F::fp8_e4m3}) run({f, 192, 128, 16, 2, 1, R::topk_softmax, true, 1, 1, true, false, true, 0, 0}, three, stream, blocks);
    run({F::bf16, 64, 64, 64, 4, 0, R::sigmoid_bias_grouped, true, 8, 4, false, false, false, 1, 0}, three, stream, blocks);
    return finish();
  }
  for (F f : {F::bf16, F::mxfp4, F::fp8_e4m3, F::int8, F::int4}) {
    run({f, 256, 128, 64, 8, 0, R::softmax_topk, true, 1, 1, false, false, false, 0, 1}, some, stream, blocks);
    run({f, 192, 320, 8, 2, 0, R::softmax_topk, true, 1, 1, false, f == F::fp8_e4m3, true, 0, 2}, few, stream, blocks);
    run({f, 320, 192, 32, 4, 0, R::topk_softmax, true, 1, 1, true, false, false, 0, 3}, some, stream, blocks);
    run({f, 64, 64, 16, 2, 0, R::softmax_topk, false, 1, 1, false, false, false, 1, 0}, few, stream, 17);
    run({f, 128, 64, 256, 8, 1, R::sigmoid_bias_grouped, true, 8, 4, false, false, false, 0, 0}, few, stream, blocks);
  }
  run({F::bf16, 128, 64, 160, 6, 2, R::softmax_topk, false, 1, 1, false, false, false, 0, 0}, few, stream, blocks);
  run({F::bf16, 128, 64, 60, 4, 4, R::softmax_topk, false, 1, 1, false, false, true, 1, 0}, some, stream, blocks);
  run({F::bf16, 64, 64, 1, 1, 0, R::topk_softmax, true, 1, 1, false, false, false, 0, 0}, few, stream, 3);
  run({F::mxfp4, 2880, 64, 32, 4, 0, R::topk_softmax, true, 1, 1, true, false, false, 0, 0}, few, stream, blocks);
  run({F::bf16, 64, 2112, 8, 3, 0, R::sigmoid_bias_grouped, false, 1, 1, false, false, false, 0, 0}, few, stream, blocks);
  run({F::fp8_e4m3, 128, 64, 500, 15, 1, R::sigmoid_bias_grouped, true, 20, 8, false, false, false, 0, 0}, {1, 128}, stream, blocks);
  return finish();
}
