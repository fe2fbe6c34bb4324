// The small fused operations and the skinny linear layers against double precision.
// Exit status 0 = all passed. Arguments: a seed (default 1); "small" = few small cases, for compute-sanitizer and emulation.
#include "device_test.h"
#include "moe_reference.h"
#include "ops/cuda/layers.h"
#include "ops/cuda/moe_pack.h"

using namespace sluice;
using namespace sluice::cuda;
using namespace sluice::device_test;

namespace {

void test_rmsnorm(int width, int n_tokens, bool gather, bool delta, cudaStream_t stream) {
  const std::string label = "rmsnorm " + std::to_string(width) + " x " + std::to_string(n_tokens) + (gather ? " gathered" : "");
  auto residual = normal_floats(size_t(n_tokens) * width, 3);
  const auto deltas = normal_bf16(residual.size());
  const auto weight = normal_floats(width, 0.2, 1);
  std::vector<int32_t> wanted;
  for (int t = n_tokens - 1; t >= 0; t -= 2) wanted.push_back(t);
  const int rows = gather ? int(wanted.size()) : n_tokens;
  Buffer<float> d_residual(residual), d_weight(weight);
  Buffer<uint16_t> d_delta(deltas), out(size_t(n_tokens + 1) * width);
  Buffer<int32_t> d_wanted(wanted);
  Buffer<StepCounts> counts(std::vector<StepCounts>{{n_tokens, n_tokens, int(wanted.size())}});
  RmsnormArgs a{counts.p, gather ? d_wanted.p : nullptr, d_residual.p, delta ? (const __nv_bfloat16*)d_delta.p : nullptr, d_weight.p, (__nv_bfloat16*)out.p, width, 1e-5f};
  CHECK_CUDA(rmsnorm(a, rows + 3, true, stream));
  CHECK_CUDA(cudaStreamSynchronize(stream));
  const auto got = out.read();
  const auto after = d_residual.read();
  Error error;
  for (int r = 0; r < rows; ++r) {
    const size_t at = size_t(gather ? wanted[r] : r) * width;
    double squares = 0;
    for (int i = 0; i < width; ++i) {
      if (delta) residual[at + i] += from_bf16(deltas[at + i]);
      squares += double(residual[at + i]) * residual[at + i];
    }
    const double f = 1 / std::sqrt(squares / width + 1e-5);
    for (int i = 0; i < width; ++i) error.add(from_bf16(got[size_t(r) * width + i]), residual[at + i] * f * weight[i]);
  }
  expect(error.relative() < 3e-3, label + " relative error " + std::to_string(error.relative()));
  expect(after == residual, label + ": residual");
  for (size_t i = size_t(rows) * width; i < got.size(); ++i) if (got[i] != 0xffff) { expect(false, label + " wrote past its rows"); break; }
  std::printf("%-60s relative error %.1e\n", label.c_str(), error.relative());
}

void test_rope(KvType type, int dim, int n_heads, int n_kv_heads, int rope_dim, int norms, int n_tokens, cudaStream_t stream) {
  const std::string label = "rope and KV write, type " + std::to_string(int(type)) + " d" + std::to_string(dim) + " heads " + std::to_string(n_heads) + "/" +
                            std::to_string(n_kv_heads) + " norms " + std::to_string(norms) + " tokens " + std::to_string(n_tokens);
  const int all = n_heads + 2 * n_kv_heads, blocks_per_row = 6, n_rows = 3, layers = 3, layer = 1;
  const auto qkv = normal_bf16(size_t(n_tokens) * all * dim, 2);
  const auto q_norm = normal_floats(size_t(n_heads) * dim, 0.2, 1), k_norm = normal_floats(size_t(n_kv_heads) * dim, 0.2, 1);
  const auto angles = normal_floats(size_t(n_tokens) * rope_dim, 1);
  std::vector<float> cos_sin(angles.size());
  for (int t = 0; t < n_tokens; ++t)
    for (int i = 0; i < rope_dim / 2; ++i) {
      cos_sin[t * rope_dim + i] = std::cos(angles[t * rope_dim + i]);
      cos_sin[t * rope_dim + rope_dim / 2 + i] = std::sin(angles[t * rope_dim + i]);
    }
  std::vector<int32_t> table, positions, token_rows;
  for (int i = 0; i < n_rows * blocks_per_row; ++i) table.push_back((i * 5 + 2) % (n_rows * blocks_per_row));
  for (int t = 0; t < n_tokens; ++t) positions.push_back((t * 7 + 3) % (blocks_per_row * 16)), token_rows.push_back(t % n_rows);
  std::vector<RowWork> rows = {{2, 0, 1, 1}, {0, 0, 1, 1}, {1, 0, 1, 1}};
  const int size = type == KvType::bf16 ? 2 : 1, row_bytes = dim * size;
  const size_t piece = kv_piece_bytes(type, dim), layer_bytes = 2 * n_kv_heads * piece, block_bytes = layers * layer_bytes;
  Buffer<uint16_t> d_qkv(qkv), q_out(size_t(n_tokens + 1) * n_heads * dim);
  Buffer<float> d_q_norm(q_norm), d_k_norm(k_norm), d_cos_sin(cos_sin);
  Buffer<int32_t> d_table(table), d_positions(positions), d_token_rows(token_rows);
  Buffer<RowWork> d_rows(rows);
  Buffer<uint8_t> pool(size_t(n_rows) * blocks_per_row * block_bytes);
  Buffer<StepCounts> counts(std::vector<StepCounts>{{n_tokens, n_rows, 0}});
  AttentionStep step{counts.p, d_positions.p, d_token_rows.p, d_rows.p, d_table.p, blocks_per_row};
  RopeKvArgs a{(const __nv_bfloat16*)d_qkv.p, (__nv_bfloat16*)q_out.p, n_heads, n_kv_heads, norms ? d_q_norm.p : nullptr, norms ? d_k_norm.p : nullptr, norms == 2, 1e-6f,
               d_cos_sin.p, rope_dim, (std::byte*)pool.p + layer * layer_bytes, int64_t(block_bytes)};
  CHECK_CUDA(rope_kv_write(step, a, type, dim, n_tokens + 2, true, stream));
  CHECK_CUDA(cudaStreamSynchronize(stream));
  const auto got_q = q_out.read();
  const auto got = pool.read();
  Error error;
  size_t written = 0;
  for (int t = 0; t < n_tokens; ++t) {
    double squares[2] = {};
    auto value = [&](int head, int d) { return double(from_bf16(qkv[(size_t(t) * all + head) * dim + d])); };
    for (int h = 0; h < n_heads + n_kv_heads; ++h)
      for (int d = 0; d < dim; ++d) squares[h >= n_heads] += value(h, d) * value(h, d);
    for (int h = 0; h < all; ++h) {
      const bool is_q = h < n_heads, is_v = h >= n_heads + n_kv_heads;
      std::vector<double> x(dim), y;
      double own = 0;
      for (int d = 0; d < dim; ++d) x[d] = value(h, d), own += x[d] * x[d];
      if (norms && !is_v)
        for (int d = 0; d < dim; ++d) {
          const double mean = norms == 2 ? squares[!is_q] / ((is_q ? n_heads : n_kv_heads) * dim) : own / dim;
          const auto& w = is_q ? q_norm : k_norm;
          x[d] = x[d] / std::sqrt(mean + 1e-6) * w[norms == 2 ? (is_q ? h : h - n_heads) * dim + d : d];
        }
      y = x;
      if (!is_v)
        for (int i = 0; i < rope_dim / 2; ++i) {
          const double c = std::cos(double(angles[t * rope_dim + i])), s = std::sin(double(angles[t * rope_dim + i]));
          y[i] = x[i] * c - x[i + rope_dim / 2] * s, y[i + rope_dim / 2] = x[i + rope_dim / 2] * c + x[i] * s;
        }
      if (is_q) {
        for (int d = 0; d < dim; ++d) error.add(from_bf16(got_q[(size_t(t) * n_heads + h) * dim + d]), y[d]);
        continue;
      }
      const int slot = positions[t] % 16;
      const size_t base = size_t(table[rows[token_rows[t]].row * blocks_per_row + positions[t] / 16]) * block_bytes + layer * layer_bytes + (h - n_heads) * piece;
      float scale = 1;
      double largest = 0, worst = 0;
      for (double v : y) largest = std::max(largest, std::fabs(v));
      if (size == 1) std::memcpy(&scale, &got[base + 16 * row_bytes + slot * 4], 4), written += 4;
      for (int d = 0; d < dim; ++d) {
        const int byte = d * size, chunk = byte % 128 / 16;
        const int place = row_bytes >= 128 ? chunk ^ slot % 8 : row_bytes == 64 ? chunk ^ slot / 2 % 4 : chunk ^ slot / 4 % 2;
        const uint8_t* from = &got[base + byte / 128 * 2048 + slot * std::min(row_bytes, 128) + place * 16 + byte % 16];
        uint16_t half;
        std::memcpy(&half, from, size);
        const double v = type == KvType::bf16 ? from_bf16(half) : (type == KvType::int8 ? double(int8_t(*from)) : from_e4m3(*from)) * scale;
        worst = std::max(worst, std::fabs(v - y[d]) / (type == KvType::int8 ? largest / 250 : type == KvType::bf16 ? std::fabs(y[d]) / 250 + largest * 1e-5 : std::fabs(y[d]) / 15 + largest / 440 / 900));
        written += size;
      }
      expect(worst <= 1, label + ": stored value off by " + std::to_string(worst) + " of what rounding may");
    }
  }
  expect(error.relative() < 3e-3, label + " relative error " + std::to_string(error.relative()));
  size_t touched = 0, overwritten = 0;
  for (uint8_t b : got) touched += b != 0xff;
  for (int t = 0; t < n_tokens; ++t)
    for (int u = 0; u < t; ++u) overwritten += positions[t] == positions[u] && token_rows[t] == token_rows[u];
  expect(overwritten == 0 && touched <= written && touched > written * 9 / 10, label + ": wrote " + std::to_string(touched) + " bytes, not " + std::to_string(written));
  for (size_t i = size_t(n_tokens) * n_heads * dim; i < got_q.size(); ++i) if (got_q[i] != 0xffff) { expect(false, label + " wrote past its tokens"); break; }
  std::printf("%-60s relative error of q %.1e\n", label.c_str(), error.relative());
}

void test_linear(WeightFormat format, int rows, int cols, bool fp32, const std::vector<int>& batches, cudaStream_t stream) {
  const std::string label = "skinny linear, format " + std::to_string(int(format)) + ", " + std::to_string(rows) + " x " + std::to_string(cols);
  const int padded = (rows + 15) / 16 * 16;
  const size_t n = size_t(padded) * cols;
  std::vector<uint8_t> values(n * 2);
  std::vector<float> scales;
  MoeMatrix matrix;
  if (format == WeightFormat::bf16) {
    const auto w = normal_bf16(n, 1 / std::sqrt(double(cols)));
    std::memcpy(values.data(), w.data(), n * 2);
  } else {
    for (auto& v : values) do v = uint8_t(rng()); while (format == WeightFormat::fp8_e4m3 && (v & 127) > 0x70);
    const size_t count = format == WeightFormat::fp8_e4m3 ? size_t((padded + 127) / 128) * ((cols + 127) / 128) : format == WeightFormat::int4 ? n / 64 : 0;
    for (size_t i = 0; i < count; ++i) scales.push_back(float(0.01 + 0.01 * double(rng() % 100) / 100));
  }
  matrix.values = values.data(), matrix.scales = scales.empty() ? nullptr : scales.data();
  std::vector<std::byte> packed(moe_packed_bytes(format, padded, cols));
  moe_pack(format, matrix, nullptr, padded, cols, packed.data());
  const auto w = reference::unpack(format, packed.data(), padded, cols);
  const auto x = normal_bf16(size_t(kSkinnyMaxRows) * cols);
  const auto row_scale = normal_floats(padded, 0.001, 0.01), bias = normal_floats(padded, 0.5);
  Buffer<std::byte> d_packed(packed);
  Buffer<uint16_t> d_x(x);
  Buffer<float> d_scale(row_scale), d_bias(bias), y(size_t(kSkinnyMaxRows + 1) * rows);
  Buffer<int32_t> d_m(1);
  SkinnyLinearArgs a{d_m.p, (const __nv_bfloat16*)d_x.p, d_packed.p, format == WeightFormat::int8 ? d_scale.p : nullptr, d_bias.p, padded, cols, rows, y.p, fp32};
  std::vector<double> first;
  for (int m : batches) {
    d_m.write({m});
    y.poison();
    CHECK_CUDA(skinny_linear(format, a, m, m % 2 == 0, stream));
    CHECK_CUDA(cudaStreamSynchronize(stream));
    const auto raw = y.read();
    auto at = [&](size_t i) {
      uint16_t h;
      std::memcpy(&h, reinterpret_cast<const uint8_t*>(raw.data()) + i * 2, 2);
      return fp32 ? raw[i] : from_bf16(h);
    };
    Error error;
    for (int t = 0; t < m; ++t)
      for (int r = 0; r < rows; ++r) {
        double sum = 0;
        for (int c = 0; c < cols; ++c) sum += double(w[size_t(r) * cols + c]) * from_bf16(x[size_t(t) * cols + c]);
        error.add(at(size_t(t) * rows + r), sum * (a.row_scale ? row_scale[r] : 1) + bias[r]);
      }
    expect(error.relative() < (fp32 ? 2e-5 : 3e-3), label + ", m " + std::to_string(m) + ": relative error " + std::to_string(error.relative()));
    std::vector<double> token0;
    for (int r = 0; r < rows; ++r) token0.push_back(at(r));
    if (first.empty()) first = token0;
    expect(first == token0, label + ", m " + std::to_string(m) + ": bits depend on the batch");
    bool past = false;
    for (size_t i = size_t(m) * rows; i < size_t(kSkinnyMaxRows) * rows; ++i) past |= fp32 ? !std::isnan(at(i)) : !std::isnan(at(i));
    expect(!past, label + ": wrote past its rows");
  }
  std::printf("%s\n", label.c_str());
}

}  // namespace

int main(int argc, char** argv) {
  rng.seed(argc > 1 ? std::atoi(argv[1]) : 1);
  cudaStream_t stream;
  CHECK_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const bool small = argc > 2 && std::string(argv[2]) == "small";
  using T = KvType;
  test_rmsnorm(576, 3, false, true, stream);
  test_rmsnorm(2880, 5, true, false, stream);
  test_rope(T::bf16, 64, 9, 3, 64, 0, 5, stream);
  test_rope(T::bf16, 128, 8, 2, 128, 1, 3, stream);
  test_rope(T::fp8_e4m3, 128, 4, 4, 64, 2, 4, stream);
  test_rope(T::int8, 64, 2, 1, 64, 1, 6, stream);
  using F = WeightFormat;
  for (F f : {F::bf16, F::fp8_e4m3, F::int8, F::int4}) test_linear(f, 40, 128 * 5, f != F::int8, small ? std::vector<int>{1, 3, 9} : std::vector<int>{1, 2, 3, 8, 9, 16}, stream);
  if (small) return finish();
  for (int width : {4, 2048, 4096, 7168, 16384})
    for (int n : {1, 64, 257}) test_rmsnorm(width, n, n == 64, n != 1, stream);
  for (T type : {T::bf16, T::fp8_e4m3, T::int8})
    for (int dim : {64, 128, 256})
      for (int norms : {0, 1, 2}) test_rope(type, dim, 32, 4, norms == 1 ? dim / 2 : dim, norms, 90, stream);
  for (F f : {F::bf16, F::fp8_e4m3, F::int8, F::int4})
    for (auto [rows, cols] : {std::pair{5120, 2048}, {2048, 4096}, {1001, 64}, {16, 14336}, {2880, 2880}}) test_linear(f, rows, cols, rows == 1001, {1, 2, 5, 8, 13, 16}, stream);
  return finish();
}
