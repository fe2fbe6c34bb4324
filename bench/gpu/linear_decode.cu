// Times linear layers for few tokens and the small fused operations. See README.md in this folder.
//
//   linear_decode [--formats bf16,fp8,int8,int4] [--tokens 1,8,16]
#include "ops/cuda/layers.h"
#include "ops/cuda/moe.h"
#include "random.cuh"

using namespace sluice;
using namespace sluice::cuda;
using namespace sluice::bench;

namespace {

struct Matrix {
  const char* name;
  int rows, cols;
};
const Matrix kMatrices[] = {{"qwen3-30b qkv", 5120, 2048},   {"qwen3-30b o", 2048, 4096},    {"gpt-oss-20b qkv", 5120, 2880},
                            {"mixtral qkv", 6144, 4096},     {"smollm2 gate/up", 3072, 576}, {"qwen3-30b head", 151936, 2048}};
const std::pair<const char*, WeightFormat> kFormats[] = {{"bf16", WeightFormat::bf16}, {"fp8", WeightFormat::fp8_e4m3}, {"int8", WeightFormat::int8}, {"int4", WeightFormat::int4}};

// Bytes that are finite numbers in every format; the time does not depend on their values.
__global__ void fill_bytes(uint32_t* out, size_t words, uint64_t seed) {
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < words; i += size_t(gridDim.x) * blockDim.x) out[i] = uint32_t(mix(seed + i)) & 0xbb3fbb3f;
}

void linear(const Ceilings& c, const Options& options, const Matrix& shape, const char* name, WeightFormat format) {
  const size_t bytes = moe_packed_bytes(format, shape.rows, shape.cols);
  const int copies = int(std::max<size_t>(2, std::min<size_t>(64, (size_t(400) << 20) / bytes + 1)));
  auto* weights = allocate<std::byte>(copies * bytes);
  fill_bytes<<<1320, 256, 0, c.stream>>>((uint32_t*)weights, copies * bytes / 4, 5);
  auto* x = allocate<__nv_bfloat16>(size_t(16) * shape.cols);
  fill_normal<<<132, 256, 0, c.stream>>>(x, size_t(16) * shape.cols, 1, 9);
  auto* scale = allocate<float>(shape.rows);
  fill_float<<<132, 256, 0, c.stream>>>(scale, shape.rows, 0.001f, 0.0001f, 3);
  auto* y = allocate<float>(size_t(16) * shape.rows);
  auto* m = allocate<int32_t>(1);
  Ceilings scratch = c;
  const double once = scratch.read_once(bytes);
  for (int tokens : {1, 2, 4, 8, 16}) {
    if (!options.chosen("--tokens", std::to_string(tokens))) continue;
    CHECK_CUDA(cudaMemcpy(m, &tokens, 4, cudaMemcpyHostToDevice));
    SkinnyLinearArgs a{m, x, nullptr, format == WeightFormat::int8 ? scale : nullptr, nullptr, shape.rows, shape.cols, shape.rows, y, false};
    const double us = graph_time(c.stream, std::max(copies, 8), [&](int i) {
      a.weight = weights + size_t(i % copies) * bytes;
      CHECK_CUDA(skinny_linear(format, a, tokens, true, c.stream));
    });
    std::printf("linear %-16s %-5s tokens %2d  floor %7.1f us  %7.1f us  of floor %.3f  one read of the same bytes %.1f us\n", shape.name, name, tokens, bytes / c.read, us, bytes / c.read / us, once);
    std::fflush(stdout);
  }
  for (void* p : {(void*)weights, (void*)x, (void*)scale, (void*)y, (void*)m}) cudaFree(p);
  CHECK_CUDA(cudaGetLastError());
}

void small(const Ceilings& c, int tokens) {
  const int width = 2048, heads = 32, kv_heads = 4, dim = 128, all = heads + 2 * kv_heads, blocks_per_row = 256;
  std::vector<StepCounts> host_counts{{tokens, tokens, tokens}};
  std::vector<int32_t> positions, rows_of, table;
  std::vector<RowWork> rows;
  for (int t = 0; t < tokens; ++t) positions.push_back(1000 + 13 * t), rows_of.push_back(t), rows.push_back({t, positions[t], 1, 1});
  for (int i = 0; i < tokens * blocks_per_row; ++i) table.push_back(i);
  auto* counts = upload(host_counts);
  auto *d_positions = upload(positions), *d_rows_of = upload(rows_of), *d_table = upload(table);
  auto* d_rows = upload(rows);
  auto *residual = allocate<float>(size_t(tokens) * width), *weight = allocate<float>(width), *cos_sin = allocate<float>(size_t(tokens) * dim);
  auto *delta = allocate<__nv_bfloat16>(size_t(tokens) * width), *out = allocate<__nv_bfloat16>(size_t(tokens) * width);
  auto *qkv = allocate<__nv_bfloat16>(size_t(tokens) * all * dim), *q = allocate<__nv_bfloat16>(size_t(tokens) * heads * dim);
  fill_float<<<132, 256, 0, c.stream>>>(residual, size_t(tokens) * width, 0, 1, 1);
  fill_float<<<1, 256, 0, c.stream>>>(weight, width, 1, 0.1f, 2);
  fill_float<<<132, 256, 0, c.stream>>>(cos_sin, size_t(tokens) * dim, 0, 0.5f, 3);
  fill_normal<<<132, 256, 0, c.stream>>>(delta, size_t(tokens) * width, 1e-3f, 4);
  fill_normal<<<132, 256, 0, c.stream>>>(qkv, size_t(tokens) * all * dim, 1, 5);
  RmsnormArgs n{counts, nullptr, residual, delta, weight, out, width, 1e-6f};
  const double norm = graph_time(c.stream, 32, [&](int) { CHECK_CUDA(rmsnorm(n, tokens, true, c.stream)); });
  std::printf("tokens %3d  residual + rmsnorm of %d: %.2f us", tokens, width, norm);
  const AttentionStep step{counts, d_positions, d_rows_of, d_rows, d_table, blocks_per_row};
  for (auto [name, type] : {std::pair{"bf16", KvType::bf16}, {"fp8", KvType::fp8_e4m3}, {"int8", KvType::int8}}) {
    const int64_t block_bytes = kv_layer_bytes(type, kv_heads, dim);
    auto* pool = allocate<std::byte>(size_t(tokens) * blocks_per_row * block_bytes);
    RopeKvArgs a{qkv, q, heads, kv_heads, weight, weight, false, 1e-6f, cos_sin, dim, pool, block_bytes};
    const double us = graph_time(c.stream, 32, [&](int) { CHECK_CUDA(rope_kv_write(step, a, type, dim, tokens, true, c.stream)); });
    std::printf("  q/k norm + rope + KV write %s: %.2f us", name, us);
    cudaFree(pool);
  }
  std::printf("\n");
  for (void* p : {(void*)counts, (void*)d_positions, (void*)d_rows_of, (void*)d_table, (void*)d_rows, (void*)residual, (void*)weight, (void*)cos_sin, (void*)delta, (void*)out, (void*)qkv, (void*)q}) cudaFree(p);
  CHECK_CUDA(cudaGetLastError());
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  const Ceilings c = begin_run();
  for (const Matrix& m : kMatrices)
    for (auto [name, format] : kFormats)
      if (options.chosen("--formats", name)) linear(c, options, m, name, format);
  for (int tokens : {1, 8, 64, 256}) small(c, tokens);
  return 0;
}
