// The CPU kernels against plain arithmetic, the instruction sets against each other, and the thread pool.
#include <algorithm>
#include <cmath>
#include <random>

#include "base/half.h"
#include "base/thread_pool.h"
#include "check.h"
#include "io/tensor.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/pack.h"

using namespace sluice;
using namespace sluice::cpu;

namespace {

std::vector<CpuIsa> isas() {
  std::vector<CpuIsa> out;
  for (const CpuIsa isa : {CpuIsa::generic, CpuIsa::avx2, CpuIsa::avx512}) {
    if (cpu_has(isa)) out.push_back(isa);
  }
  return out;
}

struct Matrix {
  std::vector<std::byte> bytes;
  WeightSource source;
  std::vector<float> values;
};

// Random bits are random weights in every block format, once the scales are sensible halves.
Matrix random_matrix(WeightFormat format, int rows, int cols, uint32_t seed) {
  std::mt19937 random(seed);
  Matrix m;
  const FormatLayout layout = format_layout(format);
  const int64_t blocks = int64_t{rows} * cols / layout.elements;
  m.bytes.resize(static_cast<size_t>(blocks * layout.bytes));
  for (std::byte& b : m.bytes) b = static_cast<std::byte>(random());
  std::normal_distribution<float> normal(0, 0.05f);
  for (int64_t b = 0; b < blocks; ++b) {
    std::byte* block = m.bytes.data() + b * layout.bytes;
    const int halves = format == WeightFormat::q4_1 ? 2 : format == WeightFormat::f32 ? 0 : 1;
    for (int h = 0; h < halves; ++h) {
      const uint16_t bits = float_to_half(normal(random));
      std::memcpy(block + 2 * h, &bits, 2);
    }
    if (format == WeightFormat::f32) {
      const float value = normal(random);
      std::memcpy(block, &value, 4);
    }
  }
  m.source.name = "test";
  m.source.format = format;
  m.source.rows = rows;
  m.source.cols = cols;
  m.source.data = m.bytes.data();
  m.values.resize(static_cast<size_t>(rows) * static_cast<size_t>(cols));
  dequantize(format, m.bytes.data(), int64_t{rows} * cols, m.values.data());
  return m;
}

std::vector<float> random_floats(size_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 1);
  std::vector<float> out(n);
  for (float& v : out) v = normal(random);
  return out;
}

// A backend with room for m tokens, and the linear's result over a step of m tokens.
std::vector<float> linear(const CpuOpsOptions& options, const Matrix& matrix, const std::vector<float>& bias, const std::vector<float>& x, int m) {
  const std::unique_ptr<Ops> ops = make_cpu_ops(options);
  ops->make_kv_pool({KvGroupKind::full, 1, 1, 16, 0}, 64);
  ops->reserve({m, 1, m, 1024, matrix.source.cols, 1, 1, 16});
  const std::unique_ptr<Linear> weight = ops->prepare_linear({&matrix.source, 1}, bias);
  std::vector<Token> tokens(static_cast<size_t>(m), 0);
  const RowWork row{0, 0, m, 0};
  std::vector<int32_t> blocks(64);
  const BlockTables::Group group{blocks.data(), 64};
  const StepView& step = ops->begin_step({{&row, 1}, tokens, 0}, {{&group, 1}});
  std::vector<float> y(static_cast<size_t>(m) * static_cast<size_t>(matrix.source.rows), -1.0f);
  ops->linear(step, *weight, x.data(), y.data(), false);
  return y;
}

double worst_error(const Matrix& matrix, const std::vector<float>& bias, const std::vector<float>& x, int m, const std::vector<float>& y) {
  double worst = 0;
  const auto rows = static_cast<size_t>(matrix.source.rows), cols = static_cast<size_t>(matrix.source.cols);
  for (size_t t = 0; t < static_cast<size_t>(m); ++t) {
    for (size_t r = 0; r < rows; ++r) {
      double sum = bias.empty() ? 0.0 : double{bias[r]}, size = 0;
      for (size_t k = 0; k < cols; ++k) {
        const double product = double{matrix.values[r * cols + k]} * double{x[t * cols + k]};
        sum += product;
        size += product * product;
      }
      worst = std::max(worst, std::fabs(double{y[t * rows + r]} - sum) / std::sqrt(size));
    }
  }
  return worst;
}

}  // namespace

TEST(linear_equals_plain_arithmetic_in_every_format_and_instruction_set) {
  // 50 outputs: the last panel has two rows. 23 tokens: every tile size and a remainder.
  for (const WeightFormat format : {WeightFormat::q4_0, WeightFormat::q4_1, WeightFormat::q5_0, WeightFormat::q8_0, WeightFormat::f16, WeightFormat::f32}) {
    const Matrix matrix = random_matrix(format, 50, 160, 1);
    const std::vector<float> bias = random_floats(50, 2);
    const std::vector<float> x = random_floats(23 * 160, 3);
    // Formats without a kernel of their own are rounded to 8 bits at load.
    const bool rounded = format == WeightFormat::q5_0 || format == WeightFormat::f16 || format == WeightFormat::f32;
    std::vector<float> first;
    for (const CpuIsa isa : isas()) {
      const std::vector<float> y = linear({.exact = false, .threads = 1, .isa = isa, .wide_activations = true}, matrix, bias, x, 23);
      CHECK_NEAR(worst_error(matrix, bias, x, 23, y), 0, rounded ? 3e-2 : 2e-4);
      if (first.empty()) first = y;
      CHECK(std::memcmp(first.data(), y.data(), y.size() * 4) == 0);
      CHECK_NEAR(worst_error(matrix, bias, x, 23, linear({.exact = true, .threads = 1, .isa = isa, .wide_activations = true}, matrix, bias, x, 23)), 0, 1e-6);
      CHECK_NEAR(worst_error(matrix, bias, x, 23, linear({.exact = false, .threads = 1, .isa = isa, .wide_activations = false}, matrix, bias, x, 23)), 0, 4e-2);
    }
  }
}

TEST(linear_pads_widths_that_end_inside_a_block) {
  const Matrix matrix = random_matrix(WeightFormat::f32, 17, 44, 4);
  const std::vector<float> x = random_floats(3 * 44, 5);
  for (const CpuIsa isa : isas()) {
    CHECK_NEAR(worst_error(matrix, {}, x, 3, linear({.exact = false, .threads = 1, .isa = isa, .wide_activations = true}, matrix, {}, x, 3)), 0, 3e-2);
    CHECK_NEAR(worst_error(matrix, {}, x, 3, linear({.exact = true, .threads = 1, .isa = isa, .wide_activations = true}, matrix, {}, x, 3)), 0, 1e-6);
  }
}

TEST(linear_survives_extreme_activations) {
  const Matrix matrix = random_matrix(WeightFormat::q8_0, 16, 64, 6);
  for (const CpuIsa isa : isas()) {
    for (const float size : {0.0f, 1e-38f, 1e-20f, 1e20f}) {
      std::vector<float> x(64, size);
      x[5] = -size;
      for (const float y : linear({.exact = false, .threads = 1, .isa = isa, .wide_activations = true}, matrix, {}, x, 1)) CHECK(std::isfinite(y));
    }
  }
}

TEST(elementwise_kernels_agree_with_double_arithmetic_and_with_each_other) {
  const int n = 100;  // six vectors and a rest
  const std::vector<float> x = random_floats(n, 7), delta = random_floats(n, 8), weight = random_floats(n, 9);
  std::vector<std::vector<float>> all;
  for (const CpuIsa isa : isas()) {
    std::vector<float> residual = x, normed(n), gated(n);
    kernels(isa).rmsnorm(residual.data(), delta.data(), weight.data(), n, 1e-5f, normed.data());
    kernels(isa).swiglu(x.data(), delta.data(), n, gated.data());
    double mean = 0;
    for (int i = 0; i < n; ++i) mean += std::pow(double{x[i]} + double{delta[i]}, 2) / n;
    for (int i = 0; i < n; ++i) {
      CHECK_NEAR(normed[i], (double{x[i]} + double{delta[i]}) / std::sqrt(mean + 1e-5) * double{weight[i]}, 2e-6);
      CHECK_NEAR(gated[i], double{x[i]} / (1 + std::exp(-double{x[i]})) * double{delta[i]}, 2e-6);
    }
    normed.insert(normed.end(), gated.begin(), gated.end());
    all.push_back(normed);
  }
  for (const auto& one : all) CHECK(std::memcmp(one.data(), all[0].data(), one.size() * 4) == 0);
}

TEST(halves_convert_as_the_hardware_does) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = half_to_float(static_cast<uint16_t>(bits));
    if (std::isnan(value)) continue;
    if (float_to_half(value) != bits) CHECK_EQ(float_to_half(value), bits);
  }
  CHECK_EQ(float_to_half(65519.0f), 0x7BFF);
  CHECK_EQ(float_to_half(65520.0f), 0x7C00);
  CHECK_EQ(float_to_half(1.0f + 0x1p-11f), 0x3C00);            // a tie goes to even
  CHECK_EQ(float_to_half(1.0f + 0x1p-11f + 0x1p-20f), 0x3C01);
  CHECK_EQ(float_to_half(0x1p-25f), 0x0000);                   // half of the smallest: to even
  CHECK_EQ(float_to_half(0x1.8p-25f), 0x0001);
  for (const CpuIsa isa : isas()) {
    const std::vector<float> values = random_floats(40, 10);
    std::vector<uint16_t> row(40), column(40 * 16);
    kernels(isa).store_half(values.data(), 40, row.data(), 1);
    kernels(isa).store_half(values.data(), 40, column.data(), 16);
    for (size_t i = 0; i < 40; ++i) {
      CHECK_EQ(row[i], float_to_half(values[i]));
      CHECK_EQ(column[i * 16], row[i]);
    }
  }
}

TEST(what_is_not_built_says_so) {
  const std::unique_ptr<Ops> ops = make_cpu_ops({});
  CHECK_THROWS(ops->sample({}, {}), "operation sample is not supported by backend cpu-fast-generic: not built");
  const std::vector<std::byte> bytes(64);
  WeightSource int8;
  int8.name = "w";
  int8.format = WeightFormat::int8;
  int8.rows = 2;
  int8.cols = 32;
  int8.data = bytes.data();
  CHECK_THROWS(ops->prepare_linear({&int8, 1}, {}), "tensor w: cannot decode I8 without its scales");
}

TEST(a_step_that_does_not_fit_is_refused) {
  const std::unique_ptr<Ops> ops = make_cpu_ops({});
  ops->make_kv_pool({KvGroupKind::full, 1, 1, 16, 0}, 4);
  ops->reserve({8, 2, 2, 64, 64, 1, 1, 16});
  std::vector<int32_t> blocks = {0, 1, 2, 9};
  const BlockTables::Group group{blocks.data(), 2};
  const std::vector<Token> tokens(8, 0);
  const auto begin = [&](RowWork row, size_t n, int n_logits) {
    ops->begin_step({{&row, 1}, std::span(tokens).first(n), n_logits}, {{&group, 1}});
  };
  begin({0, 0, 8, 1}, 8, 1);
  CHECK_THROWS(begin({0, 0, 8, 1}, 7, 1), "out of bounds");
  CHECK_THROWS(begin({0, 0, 4, 1}, 8, 1), "do not add up");
  CHECK_THROWS(begin({0, 0, 4, 2}, 4, 1), "do not add up");
  CHECK_THROWS(begin({2, 0, 1, 1}, 1, 1), "out of bounds");
  CHECK_THROWS(begin({0, -1, 1, 1}, 1, 1), "out of bounds");
  CHECK_THROWS(begin({0, 64, 1, 1}, 1, 1), "out of bounds");
  CHECK_THROWS(begin({0, 32, 1, 1}, 1, 1), "KV block that does not exist");  // a third block of a table of two
  CHECK_THROWS(begin({1, 16, 1, 1}, 1, 1), "KV block that does not exist");  // block 9 of 4
  CHECK_THROWS(begin({0, 0, 8, 3}, 8, 3), "larger than reserved");
}

TEST(the_thread_pool_runs_every_task_once) {
  CHECK_THROWS(ThreadPool(0), "threads must be 1..256");
  for (const int threads : {1, 2, 4}) {
    ThreadPool pool(threads);
    int64_t wrong = 0;
    for (int region = 0; region < 3000; ++region) {
      const int n = region % 37;
      std::vector<std::atomic<int>> ran(static_cast<size_t>(n));
      pool.for_each(n, [&](int task, int thread) {
        if (thread < 0 || thread >= threads) ran[static_cast<size_t>(task)] += 100;
        ++ran[static_cast<size_t>(task)];
      });
      for (const auto& count : ran) wrong += count != 1;
    }
    CHECK_EQ(wrong, 0);
  }
}

TEST(idle_threads_sleep) {
  ThreadPool pool(4);
  pool.for_each(8, [](int, int) {});
  // CPU time of the process while nothing runs: spinning workers would use about three times the wall time.
  const auto cpu_seconds = [] {
    timespec t{};
    ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  };
  const double before = cpu_seconds();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));  // the subject itself: time passes and costs nothing
  CHECK(cpu_seconds() - before < 0.1);
}
