// Times the mixture-of-experts layer (router to combine) over shapes, formats, tokens and routings, beside the ceilings of
// the same run. See README.md in this folder.
//
//   moe_decode [--shapes a,b] [--formats bf16,mxfp4] [--tokens 1,2,4] [--variants 0,2:32:96] [--routing uniform,zipf] [--check 1]
//   a variant is kernel shape:stage KB:window KB (MoeLaunch), 0 = as the engine chooses
#include <cmath>
#include <cstring>
#include <ctime>
#include <map>
#include <random>
#include <sstream>
#include <string>

#include "moe_reference.h"
#include "random.cuh"

using namespace sluice;
using namespace sluice::cuda;
using namespace sluice::bench;

namespace {

struct Shape {
  const char* name;
  int hidden, inter, experts, top_k;
  RouteKind kind;
  bool renormalise, gpt_oss;
};
const Shape kShapes[] = {
    {"mixtral-8x7b", 4096, 14336, 8, 2, RouteKind::softmax_topk, true, false},
    {"qwen3-30b-a3b", 2048, 768, 128, 8, RouteKind::softmax_topk, true, false},
    {"gpt-oss-20b", 2880, 2880, 32, 4, RouteKind::topk_softmax, true, true},
    {"olmoe-1b-7b", 2048, 1024, 64, 8, RouteKind::softmax_topk, false, false},
    {"e256-n512-k2048", 2048, 512, 256, 8, RouteKind::sigmoid_bias_grouped, true, false},
};
const std::pair<const char*, WeightFormat> kFormats[] = {{"bf16", WeightFormat::bf16}, {"mxfp4", WeightFormat::mxfp4}, {"fp8", WeightFormat::fp8_e4m3}, {"int8", WeightFormat::int8}, {"int4", WeightFormat::int4}};

// Bytes a weight is stored in, scales included, as the format itself counts them (not our packing).
double weight_bytes(WeightFormat f) {
  switch (f) {
    case WeightFormat::bf16: return 2;
    case WeightFormat::fp8_e4m3: return 1 + 4.0 / 16384;
    case WeightFormat::int8: return 1;
    case WeightFormat::int4: return 0.5 + 2.0 / 128;
    default: return 0.5 + 1.0 / 32;
  }
}

// Packed units of random weights with a standard deviation of 0.02.
__global__ void fill_units(uint32_t* out, size_t words, int unit_words, WeightFormat format, uint64_t seed) {
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < words; i += size_t(gridDim.x) * blockDim.x) {
    int at = i % unit_words;
    uint64_t r = mix(seed + i);
    uint32_t v = uint32_t(r);
    if (format == WeightFormat::bf16) {
      float2 n = normal_pair(seed + i);
      v = ptx::pack_bf16x2(n.x * 0.02f, n.y * 0.02f);
    } else if (format == WeightFormat::fp8_e4m3) {
      if (at >= 256) v = at < 258 ? __float_as_uint(0.02f / 20) : 0;
      else v = r & 0x8f8f8f8f | 0x28282828 | (r >> 32) & 0x10101010;  // +-(0.25 .. 30)
    } else if (format == WeightFormat::int8) {
      v = (v & 0x3f3f3f3f) + 0x60606060;
    } else if (format == WeightFormat::int4) {
      if (at >= 128) v = 0x1d1d1d1d;  // fp16 0.005
    } else {
      if (at >= 128) v = 0x76767676 + (v & 0x01010101);  // exponent 118 or 119
    }
    out[i] = v;
  }
}
struct Variant {
  int variant = 0, stage_kb = 0, window_kb = 0;
};

constexpr int kLayers = 8, kCopies = 4, kMaxTokens = 128;

struct Bench {
  Ceilings ceilings;
  std::map<std::string, std::string> options;
  cudaStream_t stream;
  std::mt19937 rng{7};
  bool bad = false;

  bool chosen(const char* option, const std::string& name) {
    if (!options.count(option)) return true;
    auto list = split(options[option]);
    return std::find(list.begin(), list.end(), name) != list.end();
  }

  // Tokens whose router logits are log(popularity) + Gumbel noise, so that top-k draws without replacement by popularity:
  // the router's rows pick single inputs, which hold the logits.
  std::vector<uint16_t> tokens(const Shape& s, bool zipf, std::vector<int>& rank) {
    std::vector<uint16_t> x(size_t(kMaxTokens) * s.hidden);
    std::normal_distribution<float> normal;
    std::uniform_real_distribution<double> uniform(1e-9, 1);
    for (auto& v : x) v = reference::to_bf16(normal(rng));
    for (int t = 0; t < kMaxTokens; ++t)
      for (int e = 0; e < s.experts; ++e) {
        double logit = -std::log(-std::log(uniform(rng))) - (zipf ? std::log(1.0 + rank[e]) : 0);
        // bf16 has few steps: without the small shift equal logits would be frequent.
        x[size_t(t) * s.hidden + e * (s.hidden / s.experts)] = reference::to_bf16(float(logit));
      }
    return x;
  }

  void shape_format(const Shape& s, const char* format_name, WeightFormat format) {
    const size_t gu = moe_packed_bytes(format, 2 * s.inter, s.hidden), dn = moe_packed_bytes(format, s.hidden, s.inter);
    std::vector<std::byte*> gate_up(kCopies), down(kCopies);
    for (int c = 0; c < kCopies; ++c) {
      gate_up[c] = allocate<std::byte>(gu * s.experts);
      down[c] = allocate<std::byte>(dn * s.experts);
      fill_units<<<1320, 256, 0, stream>>>((uint32_t*)gate_up[c], gu * s.experts / 4, moe_unit_bytes(format) / 4, format, 1000 * c + 1);
      fill_units<<<1320, 256, 0, stream>>>((uint32_t*)down[c], dn * s.experts / 4, moe_unit_bytes(format) / 4, format, 1000 * c + (1ull << 40));
    }
    float *gu_scale = nullptr, *dn_scale = nullptr, *gu_bias = nullptr, *dn_bias = nullptr;
    auto per_row = [&](float*& p, size_t n, float mean, float scale) { p = allocate<float>(n); fill_float<<<132, 256, 0, stream>>>(p, n, mean, scale, n); };
    if (format == WeightFormat::int8) per_row(gu_scale, size_t(s.experts) * 2 * s.inter, 0.001f, 0.0001f), per_row(dn_scale, size_t(s.experts) * s.hidden, 0.001f, 0.0001f);
    if (s.gpt_oss) per_row(gu_bias, size_t(s.experts) * 2 * s.inter, 0, 0.1f), per_row(dn_bias, size_t(s.experts) * s.hidden, 0, 0.1f);

    std::vector<uint16_t> router(size_t(s.experts) * s.hidden, 0);
    for (int e = 0; e < s.experts; ++e) router[size_t(e) * s.hidden + e * (s.hidden / s.experts)] = 0x3f80;
    auto* d_router = allocate<uint16_t>(router.size());
    CHECK_CUDA(cudaMemcpy(d_router, router.data(), router.size() * 2, cudaMemcpyHostToDevice));
    auto* logits = allocate<float>(size_t(kMaxTokens) * s.experts);
    std::vector<int32_t*> ids(kLayers);
    std::vector<float*> weights(kLayers);
    std::vector<uint16_t*> x(kLayers), out(kLayers);
    for (int i = 0; i < kLayers; ++i) {
      ids[i] = allocate<int32_t>(kMaxTokens * s.top_k), weights[i] = allocate<float>(kMaxTokens * s.top_k);
      x[i] = allocate<uint16_t>(size_t(kMaxTokens) * s.hidden), out[i] = allocate<uint16_t>(size_t(kMaxTokens) * s.hidden);
    }
    auto* n_tokens = allocate<int32_t>(1);
    auto* sync = allocate<MoeSync>(1);
    CHECK_CUDA(cudaMemset(sync, 0, sizeof(MoeSync)));
    MoeWorkspace work{sync, allocate<__nv_bfloat16>(size_t(kMaxTokens) * s.top_k * s.inter), allocate<float>(size_t(kMaxTokens) * s.top_k * s.hidden),
                      allocate<__nv_bfloat16>(size_t(kMaxTokens) * s.hidden)};
    std::vector<int> rank(s.experts);
    std::iota(rank.begin(), rank.end(), 0);
    std::shuffle(rank.begin(), rank.end(), rng);

    for (const char* routing : {"uniform", "zipf"}) {
      if (!chosen("--routing", routing)) continue;
      for (int i = 0; i < kLayers; ++i) {
        auto host = tokens(s, !std::strcmp(routing, "zipf"), rank);
        CHECK_CUDA(cudaMemcpy(x[i], host.data(), host.size() * 2, cudaMemcpyHostToDevice));
      }
      for (int m : {1, 2, 4, 8, 16, 32, 64, 128}) {
        if (!chosen("--tokens", std::to_string(m))) continue;
        CHECK_CUDA(cudaMemcpy(n_tokens, &m, 4, cudaMemcpyHostToDevice));
        auto layer = [&](int i, Variant v, bool overlap) {
          MoeRouteArgs r{};
          r.n_tokens = n_tokens, r.x = (const __nv_bfloat16*)x[i], r.weight = (const __nv_bfloat16*)d_router, r.hidden = s.hidden, r.n_experts = s.experts, r.top_k = s.top_k;
          r.kind = s.kind, r.n_groups = 1, r.top_groups = 1, r.renormalise = s.renormalise, r.scale = 1, r.logits = logits, r.ids = ids[i], r.weights = weights[i];
          MoeExpertsArgs a{};
          a.hidden = s.hidden, a.inter = s.inter;
          a.gate_up = gate_up[i % kCopies], a.down = down[i % kCopies], a.gate_up_scale = gu_scale, a.down_scale = dn_scale, a.gate_up_bias = gu_bias, a.down_bias = dn_bias;
          a.activation.kind = s.gpt_oss ? ActivationKind::swiglu_clamped : ActivationKind::swiglu;
          a.out = (__nv_bfloat16*)out[i];
          CHECK_CUDA(moe_layer(format, r, a, work, MoeLaunch{m, ceilings.blocks, overlap, v.variant, v.stage_kb, v.window_kb}, stream));
        };
        if (options.count("--once")) {  // for a profiler: one layer, no graph
          layer(0, {std::atoi(options["--once"].c_str())}, false);
          CHECK_CUDA(cudaStreamSynchronize(stream));
          continue;
        }
        std::string line;
        double best = 1e30;
        for (const auto& name : split(options.count("--variants") ? options["--variants"] : "0")) {
          Variant v;
          std::sscanf(name.c_str(), "%d:%d:%d", &v.variant, &v.stage_kb, &v.window_kb);
          double us = graph_time(stream, kLayers, [&](int i) { layer(i, v, true); });
          best = std::min(best, us);
          char text[64];
          std::snprintf(text, sizeof text, "  %s=%.1f", name.c_str(), us);
          line += text;
        }
        if (options.count("--serial")) {
          double us = graph_time(stream, kLayers, [&](int i) { layer(i, {}, false); });
          char text[64];
          std::snprintf(text, sizeof text, "  without overlap %.1f", us);
          line += text;
        }
        double hit = 0;
        for (int i = 0; i < kLayers; ++i) {
          auto got = download(ids[i], size_t(m) * s.top_k);
          std::vector<bool> seen(s.experts);
          for (int e : got) seen.at(e) = true;
          hit += double(std::count(seen.begin(), seen.end(), true)) / kLayers;
        }
        double bytes = hit * 3.0 * s.hidden * s.inter * weight_bytes(format) + 2.0 * s.experts * s.hidden + 4.0 * m * s.hidden;
        double floor = bytes / ceilings.read;
        std::printf("%-16s %-6s %-8s tokens %3d  experts %5.1f  floor %7.1f us  best %7.1f us  of floor %.3f ", s.name, format_name, routing, m, hit, floor, best, floor / best);
        if (m <= 8) {
          double once = ceilings.read_once(size_t(bytes));
          std::printf(" one read of the same bytes %6.1f us, ratio %.3f, excess over 1.15x %+.1f us ", once, best / once, best - 1.15 * once);
        }
        std::printf("%s\n", line.c_str());
        std::fflush(stdout);
        if (options.count("--check") && (m == 1 || m == 16 || m == 128) && (s.inter < 10000 || m == 16)) check(s, format, m, x[0], out[0], ids[0], weights[0], gate_up[0], down[0], gu, dn, gu_scale, dn_scale, gu_bias, dn_bias);
      }
    }
    for (int c = 0; c < kCopies; ++c) cudaFree(gate_up[c]), cudaFree(down[c]);
    for (int i = 0; i < kLayers; ++i) cudaFree(ids[i]), cudaFree(weights[i]), cudaFree(x[i]), cudaFree(out[i]);
    for (void* p : {(void*)gu_scale, (void*)dn_scale, (void*)gu_bias, (void*)dn_bias, (void*)d_router, (void*)logits, (void*)n_tokens, (void*)sync, (void*)work.activated, (void*)work.partial, (void*)work.scaled_x}) cudaFree(p);
    CHECK_CUDA(cudaGetLastError());
  }

  // One token of the batch against double precision, from the packed weights.
  void check(const Shape& s, WeightFormat format, int m, const uint16_t* x, const uint16_t* out, const int32_t* ids, const float* weights, const std::byte* gate_up, const std::byte* down, size_t gu,
             size_t dn, const float* gu_scale, const float* dn_scale, const float* gu_bias, const float* dn_bias) {
    int t = m - 1;
    auto hx = download(x + size_t(t) * s.hidden, s.hidden), ho = download(out + size_t(t) * s.hidden, s.hidden);
    auto hi = download(ids + t * s.top_k, s.top_k);
    auto hw = download(weights + t * s.top_k, s.top_k);
    std::vector<double> xt(s.hidden), y(s.hidden, 0);
    for (int h = 0; h < s.hidden; ++h) xt[h] = reference::from_bf16(hx[h]);
    Activation activation;
    if (s.gpt_oss) activation.kind = ActivationKind::swiglu_clamped;
    for (int k = 0; k < s.top_k; ++k) {
      size_t e = hi[k];
      auto rows = [&](const float* p, size_t n) { return p ? download(p + e * n, n) : std::vector<float>(); };
      auto gv = reference::unpack(format, download(gate_up + gu * e, gu).data(), 2 * s.inter, s.hidden);
      auto dv = reference::unpack(format, download(down + dn * e, dn).data(), s.hidden, s.inter);
      auto a = rows(gu_scale, 2 * s.inter), b = rows(dn_scale, s.hidden), c = rows(gu_bias, 2 * s.inter), d = rows(dn_bias, s.hidden);
      auto v = reference::expert(gv, dv, xt.data(), s.hidden, s.inter, activation, a.empty() ? nullptr : a.data(), b.empty() ? nullptr : b.data(), c.empty() ? nullptr : c.data(), d.empty() ? nullptr : d.data());
      for (int h = 0; h < s.hidden; ++h) y[h] += hw[k] * v[h];
    }
    double err = 0, norm = 0;
    for (int h = 0; h < s.hidden; ++h) {
      double d = reference::from_bf16(ho[h]) - y[h];
      err += d * d, norm += y[h] * y[h];
    }
    double rel = std::sqrt(err / norm);
    if (!(rel < 6e-3)) bad = true;
    std::printf("    token %d against double precision: relative error %.2e%s\n", t, rel, rel < 6e-3 ? "" : "  WRONG");
  }
};

}  // namespace

int main(int argc, char** argv) {
  Bench b;
  for (int i = 1; i + 1 < argc; i += 2) b.options[argv[i]] = argv[i + 1];
  cudaDeviceProp device;
  CHECK_CUDA(cudaGetDeviceProperties(&device, 0));
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver), cudaRuntimeGetVersion(&runtime);
  std::time_t now = std::time(nullptr);
  char date[32];
  std::strftime(date, sizeof date, "%Y-%m-%d %H:%M UTC", std::gmtime(&now));
  std::printf("%s, %s, %d multiprocessors, L2 %d MB, CUDA driver %d, runtime %d\n", date, device.name, device.multiProcessorCount, device.l2CacheSize >> 20, driver, runtime);
  CHECK_CUDA(cudaStreamCreateWithFlags(&b.stream, cudaStreamNonBlocking));
  b.ceilings.stream = b.stream, b.ceilings.blocks = device.multiProcessorCount;
  b.ceilings.data = allocate<std::byte>(b.ceilings.bytes), b.ceilings.sink = allocate<uint32_t>(1);
  fill_normal<<<1320, 256, 0, b.stream>>>((__nv_bfloat16*)b.ceilings.data, b.ceilings.bytes / 2, 0.02f, 5);
  if (!b.options.count("--once")) b.ceilings.measure();
  for (const auto& s : kShapes)
    for (const auto& [name, format] : kFormats)
      if (b.chosen("--shapes", s.name) && b.chosen("--formats", name)) b.shape_format(s, name, format);
  if (!b.options.count("--once")) b.ceilings.measure();
  return b.bad;
}
