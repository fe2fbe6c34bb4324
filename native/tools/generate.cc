// sluice-generate: token ids in, token ids out, through the whole engine.
//
//   sluice-generate --model PATH (--tokens "1,2,3" | --prompt-ids-file FILE) [--max 64] [--temperature 0] [--top-k 0]
//                   [--top-p 1] [--seed 0] [--stop "2"] [--rows 1] [--precision fast|exact] [--threads 1] [--kv-tokens N]
//                   [--step-ms 40]
//
// Ids go to standard output as they come, a comma between them; timings to standard error. With --rows N the prompt runs
// N times at once (choices 0 to N-1), one line of ids each.
#include <algorithm>
#include <charconv>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "sluice/engine.h"
#include "sluice/events.h"

namespace {

using namespace sluice;

constexpr const char* kUsage =
    "sluice-generate --model PATH (--tokens \"1,2,3\" | --prompt-ids-file FILE) [--max 64] [--temperature 0] [--top-k 0]\n"
    "                [--top-p 1] [--seed 0] [--stop \"2\"] [--rows 1] [--precision fast|exact] [--threads 1] [--kv-tokens N]\n"
    "                [--step-ms 40]\n";

struct Arguments {
  LoadOptions load;
  Request request;
  int32_t rows = 1;
  int32_t kv_tokens = 0;  // 0 = as many as the request needs
  double step_ms = EngineOptions{}.step_target_ms;
};

// Ids with anything that is no digit between them.
std::vector<Token> parse_ids(const std::string& text) {
  std::vector<Token> ids;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (at < end) {
    Token id = 0;
    const auto [next, error] = std::from_chars(at, end, id);
    if (error == std::errc::result_out_of_range) throw std::runtime_error("a token id is too large");
    if (error == std::errc()) ids.push_back(id);
    at = error == std::errc() ? next : at + 1;
  }
  return ids;
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

template <typename Number>
Number parse_number(const std::string& name, const std::string& text) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) throw std::runtime_error(name + " takes a number, not \"" + text + "\"");
  return value;
}

void apply(Arguments& out, const std::string& name, const std::string& value) {
  if (name == "--model") out.load.path = value;
  else if (name == "--tokens") out.request.prompt = parse_ids(value);
  else if (name == "--prompt-ids-file") out.request.prompt = parse_ids(read_file(value));
  else if (name == "--max") out.request.max_new_tokens = parse_number<int32_t>(name, value);
  else if (name == "--temperature") out.request.sampling.temperature = parse_number<float>(name, value);
  else if (name == "--top-k") out.request.sampling.top_k = parse_number<int32_t>(name, value);
  else if (name == "--top-p") out.request.sampling.top_p = parse_number<float>(name, value);
  else if (name == "--seed") out.request.sampling.seed = parse_number<uint64_t>(name, value);
  else if (name == "--stop") out.request.stop_ids = parse_ids(value);
  else if (name == "--rows") out.rows = parse_number<int32_t>(name, value);
  else if (name == "--threads") out.load.threads = parse_number<int>(name, value);
  else if (name == "--kv-tokens") out.kv_tokens = parse_number<int32_t>(name, value);
  else if (name == "--step-ms") out.step_ms = parse_number<double>(name, value);
  else if (name == "--precision" && value == "exact") out.load.precision = Precision::exact;
  else if (name == "--precision" && value == "fast") out.load.precision = Precision::fast;
  else throw std::runtime_error("unknown option " + name + " " + value);
}

Arguments parse(int argc, char** argv) {
  Arguments out;
  out.request.max_new_tokens = 64;
  for (int i = 1; i < argc; i += 2) {
    if (i + 1 == argc) throw std::runtime_error(std::string(argv[i]) + " needs a value");
    apply(out, argv[i], argv[i + 1]);
  }
  if (out.load.path.empty()) throw std::runtime_error("--model is missing");
  if (out.request.prompt.empty()) throw std::runtime_error("--tokens or --prompt-ids-file is missing");
  if (out.rows < 1) throw std::runtime_error("--rows must be at least 1");
  return out;
}

// What all rows have told so far.
class Answers {
 public:
  explicit Answers(bool stream) : stream_(stream) {}
  void take(std::span<const uint32_t> words) {
    const std::lock_guard lock(mutex_);
    for (const Event& event : decode_events(words)) take(event);
    changed_.notify_all();
  }
  void wait_ended(size_t n) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return ended_ == n; });
  }
  const std::vector<Token>& tokens(GenerationId id) { return rows_[id].tokens; }
  const Event& end(GenerationId id) { return rows_[id].end; }

 private:
  struct Row {
    std::vector<Token> tokens;
    Event end;
  };
  void take(const Event& event) {
    Row& row = rows_[event.id];
    if (event.kind == EventKind::tokens) {
      for (const Token token : event.ids) {
        if (stream_) std::printf(row.tokens.empty() ? "%d" : ",%d", token);
        row.tokens.push_back(token);
      }
      if (stream_) std::fflush(stdout);
    } else if (event.kind == EventKind::finish || event.kind == EventKind::error) {
      row.end = event;
      ++ended_;
    }
  }
  bool stream_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<GenerationId, Row> rows_;
  size_t ended_ = 0;
};

int run(const Arguments& arguments) {
  EngineOptions options;
  options.max_rows = arguments.rows;
  options.step_target_ms = arguments.step_ms;
  options.max_step_tokens = std::max(512, arguments.rows);
  const auto tokens_a_row = static_cast<int32_t>(arguments.request.prompt.size()) + arguments.request.max_new_tokens;
  const int32_t blocks_a_row = tokens_a_row / kBlockTokens + 1;
  options.kv_tokens = arguments.kv_tokens > 0 ? arguments.kv_tokens : blocks_a_row * kBlockTokens * arguments.rows;

  Answers answers(arguments.rows == 1);
  auto engine = Engine::create(options, load_model(arguments.load), {},
                               [&answers](std::span<const uint32_t> words) { answers.take(words); });
  const auto begin = std::chrono::steady_clock::now();
  std::vector<GenerationId> ids;
  for (int32_t row = 0; row < arguments.rows; ++row) {
    Request request = arguments.request;
    request.sampling.choice = static_cast<uint32_t>(row);
    const SubmitResult result = engine->submit(std::move(request));
    if (result.refusal != Refusal::none)
      throw std::runtime_error(std::string(refusal_code(result.refusal)) + ": " + result.message);
    ids.push_back(result.id);
  }
  answers.wait_ended(ids.size());
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  engine->close();

  size_t produced = 0;
  for (const GenerationId id : ids) {
    const Event& end = answers.end(id);
    if (end.kind == EventKind::error) throw std::runtime_error(std::string(error_code_name(end.code)) + ": " + end.message);
    produced += answers.tokens(id).size();
    if (ids.size() > 1)
      for (size_t i = 0; i < answers.tokens(id).size(); ++i) std::printf(i == 0 ? "%d" : ",%d", answers.tokens(id)[i]);
    std::printf("\n");
  }
  const Event& end = answers.end(ids.front());
  const auto rate = [](double n, double ms) { return ms > 0 ? n * 1000 / ms : 0; };
  const EngineStats stats = engine->stats();
  std::fprintf(stderr, "prompt %zu tokens, %.1f tok/s; decode %.1f tok/s a row; %zu tokens in %.2f s, %.1f tok/s; slowest step %.1f ms\n",
               arguments.request.prompt.size(), rate(static_cast<double>(arguments.request.prompt.size()), end.timings.prefill_ms),
               rate(static_cast<double>(answers.tokens(ids.front()).size()) - 1, end.timings.decode_ms), produced, seconds,
               static_cast<double>(produced) / seconds, stats.step_ms.max_ms);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string first = argc > 1 ? argv[1] : "";
  if (argc == 1 || first == "--help" || first == "-h") {
    std::fputs(kUsage, argc == 1 ? stderr : stdout);
    return argc == 1 ? 2 : 0;
  }
  try {
    return run(parse(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "sluice-generate: %s\n", error.what());
    return 1;
  }
}
