// Attention over paged KV against double precision, over types, head counts, windows, sinks and awkward batches.
// Exit status 0 = all passed. Arguments: a seed (default 1); "small" = a few small cases, for compute-sanitizer and emulation.
#include "device_test.h"
#include "ops/cuda/attention.h"

using namespace sluice;
using namespace sluice::cuda;
using namespace sluice::device_test;

namespace {

struct Row {
  int first_pos, n_new;
};
struct Case {
  KvType type;
  int head_dim, n_heads, n_kv_heads, window;
  bool sinks;
  AttentionSplits splits;
  std::vector<Row> rows;
  int blocks;
  bool mla = false;  // head_dim 512 + 64, values are the first 512 of the keys
};

const char* name(KvType t) { return t == KvType::bf16 ? "bf16" : t == KvType::fp8_e4m3 ? "fp8" : "int8"; }

// The layout in words of its own: writes one token's vector, and returns what a reader must see.
std::vector<double> store(std::vector<uint8_t>& pool, size_t piece, KvType type, int dim, int token, const std::vector<double>& v) {
  std::vector<double> seen(dim);
  const int size = type == KvType::bf16 ? 2 : 1, row = dim * size;
  double largest = 0;
  for (double x : v) largest = std::max(largest, std::fabs(x));
  const float scale = float(largest / (type == KvType::int8 ? 127 : 448));
  for (int d = 0; d < dim; ++d) {
    const int byte = d * size, panel = byte / 128, in_panel = byte % 128, chunk = in_panel / 16;
    const int swizzled = row >= 128 ? chunk ^ token % 8 : row == 64 ? chunk ^ token / 2 % 4 : chunk ^ token / 4 % 2;
    uint8_t* to = &pool[piece + size_t(panel) * 16 * 128 + size_t(token) * std::min(row, 128) + swizzled * 16 + byte % 16];
    if (type == KvType::bf16) {
      const uint16_t b = to_bf16(float(v[d]));
      std::memcpy(to, &b, 2);
      seen[d] = from_bf16(b);
    } else if (type == KvType::int8) {
      const int q = int(std::lround(v[d] / scale));
      *to = uint8_t(q);
      seen[d] = double(q) * scale;
    } else {
      uint8_t best = 0;
      const double m = std::fabs(v[d]) / scale;
      for (int i = 0; i < 127; ++i)
        if (std::fabs(from_e4m3(uint8_t(i)) - m) < std::fabs(from_e4m3(best) - m)) best = uint8_t(i);
      if (v[d] < 0) best |= 0x80;
      *to = best;
      seen[d] = from_e4m3(best) * scale;
    }
  }
  if (size == 1) std::memcpy(&pool[piece + size_t(16) * row + token * 4], &scale, 4);
  return seen;
}

void run(const Case& c, cudaStream_t stream) {
  const int n_rows = int(c.rows.size()), group = c.n_heads / c.n_kv_heads, layers = 2, layer = 1, value_dim = c.mla ? 512 : c.head_dim;
  std::string label = std::string(name(c.type)) + " d" + std::to_string(c.head_dim) + " heads " + std::to_string(c.n_heads) + "/" +
                      std::to_string(c.n_kv_heads) + " window " + std::to_string(c.window) + (c.sinks ? " sinks" : "") +
                      (c.splits == AttentionSplits::fixed ? " fixed" : " even") + " rows " + std::to_string(n_rows);
  int max_positions = 0, n_tokens = 0;
  for (const Row& r : c.rows) max_positions = std::max(max_positions, r.first_pos + r.n_new), n_tokens += r.n_new;
  const int blocks_per_row = (max_positions + 15) / 16 + 1;

  // Rows have ids out of order, blocks are dealt at random, and what no token was written to is NaN.
  std::vector<int> ids(n_rows);
  for (int r = 0; r < n_rows; ++r) ids[r] = (r * 7 + 3) % (n_rows + 5);
  if (n_rows + 5 == 7) for (int r = 0; r < n_rows; ++r) ids[r] = r;
  std::vector<int32_t> table(size_t(n_rows + 5) * blocks_per_row, -1);
  std::vector<int32_t> free;
  size_t needed = 0;
  for (const Row& r : c.rows) needed += (r.first_pos + r.n_new + 15) / 16;
  for (size_t i = 0; i < needed + 3; ++i) free.push_back(int32_t(i));
  std::shuffle(free.begin(), free.end(), rng);
  const size_t piece = kv_piece_bytes(c.type, c.head_dim), layer_bytes = (c.mla ? 1 : 2) * c.n_kv_heads * piece, block_bytes = layers * layer_bytes;
  std::vector<uint8_t> pool((needed + 3) * block_bytes, 0xff);
  std::vector<std::vector<std::vector<double>>> k(n_rows), v(n_rows);  // [row][position * kv heads + head]
  for (int r = 0; r < n_rows; ++r) {
    const int n = c.rows[r].first_pos + c.rows[r].n_new;
    for (int pos = 0; pos < n; ++pos) {
      if (pos % 16 == 0) table[size_t(ids[r]) * blocks_per_row + pos / 16] = free.back(), free.pop_back();
      const size_t block = table[size_t(ids[r]) * blocks_per_row + pos / 16];
      for (int h = 0; h < c.n_kv_heads; ++h)
        for (int kv = 0; kv < (c.mla ? 1 : 2); ++kv) {
          std::vector<double> value(c.head_dim);
          const double scale = kv ? std::exp(normal()) : 1;  // values of very different size
          for (double& x : value) x = from_bf16(to_bf16(float(normal() * scale)));
          (kv ? v : k)[r].push_back(store(pool, block * block_bytes + layer * layer_bytes + (kv * c.n_kv_heads + h) * piece, c.type, c.head_dim, pos % 16, value));
        }
    }
    if (c.mla) v[r] = k[r];
    // Blocks that the window has left behind may be gone.
    if (c.window)
      for (int b = 0; b < (c.rows[r].first_pos + 1 - c.window) / 16; ++b) table[size_t(ids[r]) * blocks_per_row + b] = -1;
  }
  std::vector<RowWork> rows;
  std::vector<int32_t> positions, token_rows;
  for (int r = 0; r < n_rows; ++r) {
    rows.push_back({ids[r], c.rows[r].first_pos, c.rows[r].n_new, 1});
    for (int i = 0; i < c.rows[r].n_new; ++i) positions.push_back(c.rows[r].first_pos + i), token_rows.push_back(r);
  }
  const size_t q_width = size_t(c.n_heads) * c.head_dim, out_width = size_t(c.n_heads) * value_dim;
  const auto q = normal_bf16(n_tokens * q_width);
  const auto sinks = normal_floats(c.n_heads, 2, 2);
  const float scale = float(1 / std::sqrt(double(c.head_dim)));

  AttentionLaunch launch;
  launch.type = c.type, launch.kind = c.mla ? KvGroupKind::mla_latent : KvGroupKind::full, launch.head_dim = c.head_dim, launch.n_heads = c.n_heads, launch.n_kv_heads = c.n_kv_heads;
  launch.max_tokens = n_tokens + 3, launch.blocks = c.blocks, launch.splits = c.splits;
  Buffer<uint8_t> d_pool(pool), d_plan(attention_plan_bytes(launch.max_tokens));
  Buffer<uint16_t> d_q(q), d_out(size_t(launch.max_tokens) * out_width);
  Buffer<int32_t> d_positions(positions), d_token_rows(token_rows), d_table(table);
  Buffer<RowWork> d_rows(rows);
  Buffer<float> d_sinks(sinks), partial(attention_partial_floats(launch));
  Buffer<uint32_t> tickets(size_t(launch.max_tokens) * attention_groups(launch));
  Buffer<StepCounts> counts(std::vector<StepCounts>{{n_tokens, n_rows, n_rows}});
  tickets.zero();
  AttentionStep step{counts.p, d_positions.p, d_token_rows.p, d_rows.p, d_table.p, blocks_per_row};
  auto* plan = reinterpret_cast<AttentionPlan*>(d_plan.p);
  AttentionArgs args{};
  args.q = (const __nv_bfloat16*)d_q.p, args.out = (__nv_bfloat16*)d_out.p, args.n_heads = c.n_heads, args.n_kv_heads = c.n_kv_heads;
  args.kv = (const std::byte*)d_pool.p + layer * layer_bytes, args.block_bytes = int64_t(block_bytes), args.scale = scale, args.window = c.window;
  args.sinks = c.sinks ? d_sinks.p : nullptr, args.plan = plan, args.partial = partial.p, args.tickets = tickets.p;
  auto go = [&](bool overlap) {
    launch.overlap = overlap;
    CHECK_CUDA(attention_plan(step, c.window, launch, plan, stream));
    CHECK_CUDA(attention(step, args, launch, stream));
  };
  go(true);
  CHECK_CUDA(cudaStreamSynchronize(stream));
  const auto out = d_out.read();

  Error error;
  for (int t = 0; t < n_tokens; ++t)
    for (int h = 0; h < c.n_heads; ++h) {
      const int r = token_rows[t], first = c.window ? std::max(0, positions[t] + 1 - c.window) : 0;
      std::vector<double> s, want(value_dim);
      double top = c.sinks ? sinks[h] : -1e300, sum = 0;
      for (int j = first; j <= positions[t]; ++j) {
        double dot = 0;
        for (int d = 0; d < c.head_dim; ++d) dot += from_bf16(q[t * q_width + h * c.head_dim + d]) * k[r][j * c.n_kv_heads + h / group][d];
        s.push_back(dot * scale);
        top = std::max(top, s.back());
      }
      if (c.sinks) sum = std::exp(sinks[h] - top);
      for (int j = first; j <= positions[t]; ++j) {
        const double e = std::exp(s[j - first] - top);
        sum += e;
        for (int d = 0; d < value_dim; ++d) want[d] += e * v[r][j * c.n_kv_heads + h / group][d];
      }
      for (int d = 0; d < value_dim; ++d) error.add(from_bf16(out[t * out_width + h * value_dim + d]), want[d] / sum);
    }
  expect(error.relative() < 5e-3, label + " relative error " + std::to_string(error.relative()));
  for (size_t i = n_tokens * out_width; i < out.size(); ++i)
    if (out[i] != 0xffff) { expect(false, label + " wrote past its tokens"); break; }

  // Replayed after garbage: the same bits, and the tickets are as they were.
  d_plan.poison(), partial.poison(), d_out.poison();
  replay(stream, 2, [&] { go(true); go(false); });
  expect(d_out.read() == out, label + " graph replay differs");
  for (uint32_t ticket : tickets.read()) if (ticket) { expect(false, label + " left a ticket"); break; }

  // Fixed: a token alone, on another number of multiprocessors, has the bits that it has in the batch.
  if (c.splits == AttentionSplits::fixed)
    for (int t = 0; t < n_tokens; t += 1 + n_tokens / 4) {
      counts.write({{1, 1, 1}});
      d_positions.write({positions[t]}), d_token_rows.write({token_rows[t]});
      CHECK_CUDA(cudaMemcpy(d_q.p, &q[t * q_width], q_width * 2, cudaMemcpyHostToDevice));
      launch.blocks = std::max(1, c.blocks - 2);
      go(true);
      CHECK_CUDA(cudaStreamSynchronize(stream));
      const auto alone = d_out.read();
      expect(std::equal(alone.begin(), alone.begin() + out_width, out.begin() + t * out_width), label + " token " + std::to_string(t) + ": bits depend on the batch");
      launch.blocks = c.blocks;
    }
  std::printf("%-70s relative error %.2e\n", label.c_str(), error.relative());
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  rng.seed(argc > 1 ? std::atoi(argv[1]) : 1);
  cudaDeviceProp device;
  CHECK_CUDA(cudaGetDeviceProperties(&device, 0));
  cudaStream_t stream;
  CHECK_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const int sms = device.multiProcessorCount;
  using T = KvType;
  constexpr auto even = AttentionSplits::even, fixed = AttentionSplits::fixed;
  if (argc > 2 && std::string(argv[2]) == "small") {
    run({T::bf16, 128, 8, 1, 0, true, even, {{0, 1}, {70, 1}, {15, 1}, {200, 3}}, 3}, stream);
    run({T::bf16, 64, 9, 3, 0, false, fixed, {{16, 1}, {330, 1}}, 5}, stream);
    run({T::bf16, 64, 16, 2, 40, true, even, {{200, 1}, {3, 1}, {39, 2}, {40, 1}}, 4}, stream);
    run({T::bf16, 64, 24, 2, 0, false, fixed, {{31, 2}}, 2}, stream);
    run({T::fp8_e4m3, 128, 8, 1, 0, false, even, {{150, 1}, {20, 1}}, 3}, stream);
    run({T::fp8_e4m3, 64, 4, 2, 20, true, fixed, {{100, 1}}, 2}, stream);
    run({T::int8, 64, 16, 1, 0, true, even, {{140, 1}, {0, 2}}, 3}, stream);
    run({T::int8, 128, 4, 2, 0, false, even, {{90, 1}}, 7}, stream);
    run({T::bf16, 576, 16, 1, 0, false, even, {{100, 1}, {0, 1}, {330, 1}}, 3, true}, stream);
    run({T::bf16, 576, 20, 1, 70, true, fixed, {{150, 2}}, 3, true}, stream);
    return finish();
  }
  std::vector<Row> decode, mixed = {{0, 1}, {1, 1}, {15, 1}, {16, 1}, {255, 1}, {256, 5}, {4095, 1}, {1000, 4}, {0, 33}, {700, 64}, {8191, 1}, {8192, 1}, {20000, 1}};
  for (int i = 0; i < 64; ++i) decode.push_back({int(rng() % 3000), 1});
  for (auto splits : {even, fixed}) {
    run({T::bf16, 576, 16, 1, 0, false, splits, {{0, 1}, {63, 1}, {64, 1}, {255, 3}, {4095, 1}, {1000, 1}, {0, 17}, {9000, 1}}, sms, true}, stream);
    run({T::bf16, 576, 128, 1, 0, false, splits, {{300, 1}, {2000, 1}}, sms, true}, stream);
    run({T::bf16, 576, 10, 1, 200, true, splits, {{5, 1}, {1000, 4}}, 7, true}, stream);
  }
  for (T type : {T::bf16, T::fp8_e4m3, T::int8})
    for (auto splits : {even, fixed}) {
      run({type, 128, 32, 4, 0, false, splits, mixed, sms}, stream);
      run({type, 128, 16, 16, 0, true, splits, {{511, 1}, {512, 1}, {37, 1}}, sms}, stream);
      run({type, 64, 64, 8, 128, true, splits, mixed, sms}, stream);
      run({type, 64, 9, 3, 0, false, splits, decode, sms}, stream);
      run({type, 64, 32, 1, 0, false, splits, {{2000, 1}, {64, 7}}, sms}, stream);
      run({type, 128, 40, 8, 1000, false, splits, decode, 17}, stream);
      run({type, 128, 8, 1, 0, false, splits, {{40000, 1}}, sms}, stream);
    }
  return finish();
}
