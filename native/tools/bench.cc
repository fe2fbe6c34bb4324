// sluice-bench: the model alone, without the scheduler: prefill and decode tokens a second, by wall clock and by CPU time.
//
//   sluice-bench --model PATH [--threads 1] [--precision fast|exact] [--prompt 512] [--decode 128] [--chunk 512]
//                [--batch 1] [--rounds 3] [--json]
//
// The median of the rounds counts. SLUICE_PROF=1 adds a table of stages with their share of the time and, where a stage
// is bound by memory, bytes a second. SLUICE_CPU_ISA and SLUICE_ACTIVATION_BITS switch kernels for comparison.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <stdexcept>
#include <string>
#include <vector>

#include "model/transformer.h"

namespace {

using namespace sluice;

constexpr const char* kUsage =
    "sluice-bench --model PATH [--threads 1] [--precision fast|exact] [--prompt 512] [--decode 128] [--chunk 512]\n"
    "             [--batch 1] [--rounds 3] [--json]\n";

struct Arguments {
  LoadOptions load;
  int prompt = 512;
  int decode = 128;
  int chunk = 512;
  int batch = 1;
  int rounds = 3;
  bool json = false;
};

int parse_count(const char* name, const char* value, int low, int high) {
  char* end = nullptr;
  const long n = std::strtol(value, &end, 10);
  if (*value == '\0' || *end != '\0' || n < low || n > high) {
    throw std::runtime_error(std::string(name) + " is a number from " + std::to_string(low) + " to " + std::to_string(high));
  }
  return static_cast<int>(n);
}

Arguments parse(int argc, char** argv) {
  Arguments out;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--json") {
      out.json = true;
      continue;
    }
    if (i + 1 == argc) throw std::runtime_error("unknown or incomplete option " + name + "\n" + kUsage);
    const char* value = argv[++i];
    if (name == "--model") {
      out.load.path = value;
    } else if (name == "--threads") {
      out.load.threads = parse_count("--threads", value, 1, 256);
    } else if (name == "--precision") {
      if (std::strcmp(value, "fast") != 0 && std::strcmp(value, "exact") != 0) throw std::runtime_error("--precision is fast or exact");
      out.load.precision = std::strcmp(value, "exact") == 0 ? Precision::exact : Precision::fast;
    } else if (name == "--prompt") {
      out.prompt = parse_count("--prompt", value, 1, 1 << 20);
    } else if (name == "--decode") {
      out.decode = parse_count("--decode", value, 0, 1 << 20);
    } else if (name == "--chunk") {
      out.chunk = parse_count("--chunk", value, 1, 1 << 16);
    } else if (name == "--batch") {
      out.batch = parse_count("--batch", value, 1, 1024);
    } else if (name == "--rounds") {
      out.rounds = parse_count("--rounds", value, 1, 1000);
    } else {
      throw std::runtime_error("unknown option " + name + "\n" + kUsage);
    }
  }
  if (out.load.path.empty()) throw std::runtime_error(kUsage);
  return out;
}

struct Elapsed {
  double wall = 0;
  double cpu = 0;
};

class Stopwatch {
 public:
  Stopwatch() : wall_(std::chrono::steady_clock::now()), cpu_(cpu_now()) {}
  Elapsed elapsed() const {
    return {std::chrono::duration<double>(std::chrono::steady_clock::now() - wall_).count(), cpu_now() - cpu_};
  }

 private:
  static double cpu_now() {
    timespec t{};
    ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  }
  std::chrono::steady_clock::time_point wall_;
  double cpu_;
};

// Rows of forced tokens, so that every run computes the same positions.
class Bench {
 public:
  Bench(Model& model, const Arguments& a)
      : model_(model), a_(a), context_(a.prompt + a.decode), blocks_per_row_((context_ + kBlockTokens - 1) / kBlockTokens) {
    if (context_ > model.info().context_length) throw std::runtime_error("prompt and decode exceed the model's context");
    model.reserve(a.batch * blocks_per_row_, a.batch, std::max(a.chunk, a.batch), a.batch);
    for (int i = 0; i < a.batch * blocks_per_row_; ++i) table_.push_back(i);
    uint32_t state = 1;
    const auto span = static_cast<uint32_t>(std::min(49000, model.info().vocab_size - 3));
    for (int i = 0; i < context_; ++i) {
      state = state * 1664525u + 1013904223u;
      tokens_.push_back(static_cast<Token>(3 + (state >> 8) % span));
    }
    logits_.resize(static_cast<size_t>(a.batch) * static_cast<size_t>(model.info().vocab_size));
  }

  Elapsed prefill() {
    const Stopwatch watch;
    for (int row = 0; row < a_.batch; ++row) {
      for (int at = 0; at < a_.prompt; at += a_.chunk) {
        const int n = std::min(a_.chunk, a_.prompt - at);
        step({{row, at, n, at + n == a_.prompt ? 1 : 0}}, {tokens_.begin() + at, tokens_.begin() + at + n});
      }
    }
    return watch.elapsed();
  }

  Elapsed decode() {
    const Stopwatch watch;
    for (int at = a_.prompt; at < context_; ++at) {
      std::vector<RowWork> rows;
      for (int row = 0; row < a_.batch; ++row) rows.push_back({row, at, 1, 1});
      step(rows, std::vector<Token>(static_cast<size_t>(a_.batch), tokens_[static_cast<size_t>(at)]));
    }
    return watch.elapsed();
  }

 private:
  void step(const std::vector<RowWork>& rows, const std::vector<Token>& tokens) {
    int n_logits = 0;
    for (const RowWork& row : rows) n_logits += row.n_logits;
    const std::vector<BlockTables::Group> groups(model_.info().kv_groups.size(), {table_.data(), blocks_per_row_});
    model_.forward({rows, tokens, n_logits}, {groups}, logits_);
  }

  Model& model_;
  const Arguments& a_;
  int context_;
  int blocks_per_row_;
  std::vector<int32_t> table_;
  std::vector<Token> tokens_;
  std::vector<float> logits_;
};

Elapsed median(std::vector<Elapsed> rounds) {
  const auto middle = [&](double Elapsed::*member) {
    std::vector<double> values;
    for (const Elapsed& e : rounds) values.push_back(e.*member);
    std::ranges::sort(values);
    return values[values.size() / 2];
  };
  return {middle(&Elapsed::wall), middle(&Elapsed::cpu)};
}

void print_stages(const Ops& ops) {
  const std::vector<StageTime> stages = ops.stage_times();
  double total = 0;
  for (const StageTime& stage : stages) total += stage.seconds;
  if (total == 0) return;
  std::printf("%-12s %10s %10s %7s %9s\n", "stage", "calls", "ms", "share", "GB/s");
  for (const StageTime& s : stages) {
    std::printf("%-12s %10lld %10.2f %6.1f%% ", s.stage.c_str(), static_cast<long long>(s.calls), s.seconds * 1e3, 100 * s.seconds / total);
    if (s.bytes > 0 && s.seconds > 0) {
      std::printf("%9.2f\n", static_cast<double>(s.bytes) / s.seconds * 1e-9);
    } else {
      std::printf("%9s\n", "-");
    }
  }
}

int run(const Arguments& a) {
  const Stopwatch loading;
  const std::unique_ptr<Model> model = load_model(a.load);
  const Elapsed load = loading.elapsed();
  Bench bench(*model, a);
  bench.prefill();  // warm: pages, threads
  std::vector<Elapsed> prefills, decodes;
  for (int round = 0; round < a.rounds; ++round) {
    prefills.push_back(bench.prefill());
    decodes.push_back(bench.decode());
  }
  const Elapsed prefill = median(prefills), decode = median(decodes);
  const double prompt_tokens = static_cast<double>(a.prompt) * a.batch, decode_tokens = static_cast<double>(a.decode) * a.batch;
  const auto* transformer = dynamic_cast<const Transformer*>(model.get());
  if (a.json) {
    std::printf("{\"prefill\":{\"wall\":%.6f,\"cpu\":%.6f},\"decode\":{\"wall\":%.6f,\"cpu\":%.6f},\"threads\":%d,\"load\":%.3f}\n",
                prefill.wall, prefill.cpu, decode.wall, decode.cpu, a.load.threads, load.wall);
    return 0;
  }
  std::printf("%s, %s, %d threads, batch %d; loaded in %.2f s\n", model->info().name.c_str(),
              transformer != nullptr ? std::string(transformer->ops().name()).c_str() : "", a.load.threads, a.batch, load.wall);
  std::printf("prefill %6.0f tokens: %9.1f tok/s wall, %9.1f tok/CPU-s\n", prompt_tokens, prompt_tokens / prefill.wall, prompt_tokens / prefill.cpu);
  if (a.decode > 0) {
    std::printf("decode  %6.0f tokens: %9.1f tok/s wall, %9.1f tok/CPU-s\n", decode_tokens, decode_tokens / decode.wall, decode_tokens / decode.cpu);
  }
  if (transformer != nullptr) print_stages(transformer->ops());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(parse(argc, argv));
  } catch (const std::exception& e) {
    std::fprintf(stderr, "sluice-bench: %s\n", e.what());
    return 1;
  }
}
