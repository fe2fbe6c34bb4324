// Times decode attention over paged KV beside the read rate of the same run. See README.md in this folder.
//
//   attention_decode [--shapes qwen3,..] [--types bf16,fp8,int8] [--rows 1,64] [--context 4096,..] [--splits even,fixed] [--check 1]
#include <algorithm>
#include <numeric>
#include <random>

#include "ops/cuda/attention.h"
#include "random.cuh"

using namespace sluice;
using namespace sluice::cuda;
using namespace sluice::bench;

namespace {

struct Shape {
  const char* name;
  int n_heads, n_kv_heads, head_dim, window;
  bool sinks;
  bool mla = false;  // 512 + 64, values are the first 512
};
const Shape kShapes[] = {
    {"32-4-128", 32, 4, 128, 0, false},  // Qwen3-30B-A3B
    {"32-8-128", 32, 8, 128, 0, false},  // Mixtral, Llama-3
    {"16-16-128", 16, 16, 128, 0, false},  // OLMoE
    {"64-8-64", 64, 8, 64, 0, true},     // gpt-oss, full layers
    {"64-8-64-w128", 64, 8, 64, 128, true},
    {"mla-16", 16, 1, 576, 0, false, true},    // DeepSeek-V2-Lite
    {"mla-128", 128, 1, 576, 0, false, true},  // DeepSeek-V3
};
const std::pair<const char*, KvType> kTypes[] = {{"bf16", KvType::bf16}, {"fp8", KvType::fp8_e4m3}, {"int8", KvType::int8}};

// Pieces of random values: bf16 N(0, 1), 8-bit all codes, scales so that values are about as large.
__global__ void fill_pool(uint32_t* out, size_t words, int piece_words, int value_words, KvType type, uint64_t seed) {
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < words; i += size_t(gridDim.x) * blockDim.x) {
    const float2 n = normal_pair(seed + i);
    uint32_t v = uint32_t(mix(seed + i));
    if (type == KvType::bf16) v = ptx::pack_bf16x2(n.x, n.y);
    else if (int(i % piece_words) >= value_words) v = __float_as_uint((type == KvType::int8 ? 0.015f : 0.01f) * (1 + 0.2f * n.x));
    else if (type == KvType::fp8_e4m3) v = v & 0xbfbfbfbf;  // up to 1.9; no NaN
    out[i] = v;
  }
}

// The same attention without any art: a block for each (token, head), in fp32.
__global__ void naive(AttentionStep step, AttentionArgs a, KvType type, int dim, int value_dim, int value_part, __nv_bfloat16* out) {
  extern __shared__ float scores[];
  __shared__ float total;
  const int token = blockIdx.x / a.n_heads, head = blockIdx.x % a.n_heads, kv_head = head / (a.n_heads / a.n_kv_heads);
  const int position = step.positions[token], first = a.window ? max(0, position + 1 - a.window) : 0;
  const int64_t row = step.rows[step.token_rows[token]].row;
  auto value = [&](int key, int kv, int d) {
    const std::byte* piece = a.kv + step.blocks[row * step.blocks_per_row + key / 16] * a.block_bytes + int64_t(kv * a.n_kv_heads + kv_head) * kv_piece_bytes(type, dim);
    const int size = kv_element_bytes(type), byte = d * size;
    const std::byte* at = piece + kv_chunk_offset(dim * size, key % 16, byte / 16) + byte % 16;
    if (type == KvType::bf16) return __bfloat162float(*reinterpret_cast<const __nv_bfloat16*>(at));
    const float scale = *reinterpret_cast<const float*>(piece + 16 * dim + key % 16 * 4);
    const uint8_t b = *reinterpret_cast<const uint8_t*>(at);
    if (type == KvType::int8) return float(int8_t(b)) * scale;
    const int e = b >> 3 & 15, m = b & 7;
    const float f = e ? ldexpf(1 + m / 8.0f, e - 7) : ldexpf(m / 8.0f, -6);
    return (b & 0x80 ? -f : f) * scale;
  };
  for (int key = first + threadIdx.x; key <= position; key += blockDim.x) {
    float s = 0;
    for (int d = 0; d < dim; ++d) s += __bfloat162float(a.q[(int64_t(token) * a.n_heads + head) * dim + d]) * value(key, 0, d);
    scores[key - first] = s * a.scale;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    float top = a.sinks ? a.sinks[head] : -INFINITY, sum = 0;
    for (int key = first; key <= position; ++key) top = fmaxf(top, scores[key - first]);
    for (int key = first; key <= position; ++key) sum += scores[key - first] = expf(scores[key - first] - top);
    total = sum + (a.sinks ? expf(a.sinks[head] - top) : 0);
  }
  __syncthreads();
  for (int d = threadIdx.x; d < value_dim; d += blockDim.x) {
    float o = 0;
    for (int key = first; key <= position; ++key) o += scores[key - first] * value(key, value_part, d);
    out[(int64_t(token) * a.n_heads + head) * value_dim + d] = __float2bfloat16(o / total);
  }
}

bool bad = false;

void measure(const Ceilings& c, const Options& options, const Shape& s, const char* type_name, KvType type, int n_rows, int context) {
  const size_t piece = kv_piece_bytes(type, s.head_dim), layer_bytes = (s.mla ? 1 : 2) * s.n_kv_heads * piece;
  const size_t blocks_a_row = (context + 15) / 16, n_blocks = n_rows * blocks_a_row;
  const double seen = s.window ? std::min(context, s.window) : context;
  const double bytes = n_rows * seen * double(layer_bytes) / 16;
  // As many layers as it takes to leave the caches behind, within 40 GB.
  const size_t total_limit = size_t(40) << 30;
  int layers = int(std::min<size_t>(32, std::max<size_t>(2, (size_t(400) << 20) / size_t(bytes) + 1)));
  layers = int(std::min<size_t>(layers, total_limit / (n_blocks * layer_bytes)));
  if (layers < 1) return;
  const size_t block_bytes = layers * layer_bytes, pool_bytes = n_blocks * block_bytes;
  auto* pool = allocate<std::byte>(pool_bytes);
  fill_pool<<<1320, 256, 0, c.stream>>>((uint32_t*)pool, pool_bytes / 4, int(piece / 4), s.head_dim * kv_element_bytes(type) * 4, type, 17);

  std::vector<int32_t> table(n_blocks), positions(n_rows, context - 1), token_rows(n_rows);
  std::iota(table.begin(), table.end(), 0);
  std::shuffle(table.begin(), table.end(), std::mt19937(5));
  std::iota(token_rows.begin(), token_rows.end(), 0);
  std::vector<RowWork> rows;
  for (int r = 0; r < n_rows; ++r) rows.push_back({r, context - 1, 1, 1});
  const size_t width = size_t(s.n_heads) * s.head_dim, out_width = size_t(s.n_heads) * (s.mla ? kMlaLatentDim : s.head_dim);
  std::vector<StepCounts> host_counts{{n_rows, n_rows, n_rows}};
  auto* counts = upload(host_counts);
  auto *d_table = upload(table), *d_positions = upload(positions), *d_token_rows = upload(token_rows);
  auto* d_rows = upload(rows);
  auto *q = allocate<__nv_bfloat16>(n_rows * width), *out = allocate<__nv_bfloat16>(n_rows * out_width), *want = allocate<__nv_bfloat16>(n_rows * out_width);
  auto* sinks = allocate<float>(s.n_heads);
  fill_normal<<<132, 256, 0, c.stream>>>(q, n_rows * width, 1, 23);
  fill_float<<<1, 256, 0, c.stream>>>(sinks, s.n_heads, 1, 1, 29);
  const AttentionStep step{counts, d_positions, d_token_rows, d_rows, d_table, int32_t(blocks_a_row)};

  for (auto [name, splits] : {std::pair{"even", AttentionSplits::even}, {"fixed", AttentionSplits::fixed}}) {
    if (!options.chosen("--splits", name)) continue;
    AttentionLaunch l;
    l.type = type, l.kind = s.mla ? KvGroupKind::mla_latent : KvGroupKind::full, l.head_dim = s.head_dim, l.n_heads = s.n_heads, l.n_kv_heads = s.n_kv_heads, l.max_tokens = n_rows, l.blocks = c.blocks, l.splits = splits;
    if (options.has("--shared")) l.shared_kb = std::atoi(options.values.at("--shared").c_str());
    auto* plan = (AttentionPlan*)allocate<std::byte>(attention_plan_bytes(n_rows));
    auto* partial = allocate<float>(attention_partial_floats(l));
    auto* tickets = allocate<uint32_t>(size_t(n_rows) * attention_groups(l));
    CHECK_CUDA(cudaMemset(tickets, 0, size_t(n_rows) * attention_groups(l) * 4));
    AttentionArgs a{};
    a.q = q, a.out = out, a.n_heads = s.n_heads, a.n_kv_heads = s.n_kv_heads, a.block_bytes = int64_t(block_bytes), a.scale = 1 / std::sqrt(float(s.head_dim));
    a.window = s.window, a.sinks = s.sinks ? sinks : nullptr, a.plan = plan, a.partial = partial, a.tickets = tickets;
    auto layer = [&](int i, bool overlap) {
      a.kv = pool + (i % layers) * layer_bytes;
      l.overlap = overlap;
      CHECK_CUDA(attention(step, a, l, c.stream));
    };
    CHECK_CUDA(attention_plan(step, s.window, l, plan, c.stream));
    CHECK_CUDA(cudaStreamSynchronize(c.stream));
    const double plan_us = graph_time(c.stream, 8, [&](int) { CHECK_CUDA(attention_plan(step, s.window, l, plan, c.stream)); });
    const int count = std::max(layers, 8);
    const double us = graph_time(c.stream, count, [&](int i) { layer(i, true); });
    const double floor = bytes / c.read;
    std::printf("%-13s %-5s rows %3d context %6d %-5s  floor %8.1f us  %8.1f us  of floor %.3f  (%.3f TB/s; plan once a step %.1f us", s.name, type_name, n_rows, context, name, floor, us, floor / us,
                bytes / us / 1e6, plan_us);
    if (bytes < 64e6) {
      Ceilings copy = c;
      std::printf("; one read of the same bytes %.1f us", copy.read_once(size_t(bytes)));
    }
    std::printf(")\n");
    std::fflush(stdout);
    if (options.has("--check") && seen <= 50000) {
      layer(0, true);
      CHECK_CUDA(cudaFuncSetAttribute(naive, cudaFuncAttributeMaxDynamicSharedMemorySize, 200 * 1024));
      a.kv = pool;
      naive<<<n_rows * s.n_heads, 256, size_t(seen) * 4 + 16, c.stream>>>(step, a, type, s.head_dim, s.mla ? kMlaLatentDim : s.head_dim, s.mla ? 0 : 1, want);
      CHECK_CUDA(cudaStreamSynchronize(c.stream));
      const auto x = download(out, n_rows * out_width), y = download(want, n_rows * out_width);
      double difference = 0, norm = 0;
      for (size_t i = 0; i < x.size(); ++i) {
        const double e = double(__bfloat162float(x[i])) - __bfloat162float(y[i]);
        difference += e * e, norm += double(__bfloat162float(y[i])) * __bfloat162float(y[i]);
      }
      const double relative = std::sqrt(difference / norm);
      if (!(relative < 6e-3)) bad = true;
      std::printf("    against a plain kernel in fp32: relative error %.2e%s\n", relative, relative < 6e-3 ? "" : "  WRONG");
    }
    cudaFree(plan), cudaFree(partial), cudaFree(tickets);
  }
  for (void* p : {(void*)pool, (void*)counts, (void*)d_table, (void*)d_positions, (void*)d_token_rows, (void*)d_rows, (void*)q, (void*)out, (void*)want, (void*)sinks}) cudaFree(p);
  CHECK_CUDA(cudaGetLastError());
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  const Ceilings c = begin_run();
  for (const Shape& s : kShapes)
    for (auto [name, type] : kTypes)
      for (auto [rows, context] : {std::pair{1, 4096}, {1, 32768}, {1, 131072}, {8, 4096}, {64, 1024}, {64, 4096}, {64, 16384}, {256, 1024}, {256, 4096}})
        if ((!s.mla || type == KvType::bf16) && options.chosen("--shapes", s.name) && options.chosen("--types", name) && options.chosen("--rows", std::to_string(rows)) && options.chosen("--context", std::to_string(context)))
          measure(c, options, s, name, type, rows, context);
  return bad;
}
