// The engine over the real transformer on the CPU: batching, prefix hits, chunking and threads change no token.
#include <array>
#include <functional>

#include "engine_support.h"

using namespace support;

namespace {

// All of vocabulary 93, context 256: a dense model; windows, sinks and experts; latent attention and experts.
constexpr std::array<const char*, 3> kModels = {"llama-gqa-tied", "gpt-oss-mxfp4", "deepseek-v2"};

struct Fixture {
  Fixture(const char* name, Precision precision, int threads, EngineOptions options = {}) {
    options.kv_tokens = 4096;
    const std::string path = std::string(SLUICE_TEST_GOLDENS "/") + name;
    engine = Engine::create(options, load_model({.path = path, .precision = precision, .threads = threads, .progress = {}}),
                            {}, sink.sink());
  }
  Answer run(Request what) { return sink.wait(submit(*engine, std::move(what))); }
  Sink sink;
  std::unique_ptr<Engine> engine;
};

// `body(model, precision)` for each of both.
void each(const std::function<void(const char*, Precision)>& body) {
  for (const char* name : kModels) {
    for (const Precision precision : {Precision::exact, Precision::fast}) body(name, precision);
  }
}

std::vector<Request> requests() {
  std::vector<Request> out;
  for (uint32_t i = 0; i < 16; ++i) {
    Request what = request(tokens(3 + i * 9, i / 2), static_cast<int32_t>(10 + i * 3));
    what.stop_ids = {};
    what.logprobs = 2;
    if (i % 2 == 1) {
      what.sampling.temperature = 1;
      what.sampling.seed = i;
      what.sampling.repetition_penalty = 1.2f;
    }
    out.push_back(std::move(what));
  }
  return out;
}

void check_same(const Answer& a, const Answer& b) {
  CHECK(a.tokens == b.tokens);
  CHECK_EQ(a.logprobs.size(), b.logprobs.size());
  for (size_t i = 0; i < std::min(a.logprobs.size(), b.logprobs.size()); ++i) {
    CHECK_EQ(a.logprobs[i].logprob, b.logprobs[i].logprob);
    CHECK(a.logprobs[i].top == b.logprobs[i].top);
  }
}

}  // namespace

TEST(sixteen_streams_over_the_transformer_equal_each_alone_to_the_last_bit) {
  each([](const char* name, Precision precision) {
    Fixture together(name, precision, 2);
    std::vector<GenerationId> ids;
    for (Request& what : requests()) ids.push_back(submit(*together.engine, std::move(what)));
    const auto all = requests();
    for (size_t i = 0; i < ids.size(); ++i) {
      Fixture alone(name, precision, 1);
      check_same(together.sink.wait(ids[i]), alone.run(all[i]));
    }
    together.engine->drain(std::chrono::seconds(20));
    CHECK(together.engine->integrity().ok);
  });
}

TEST(prefix_hits_and_chunks_change_no_bit) {
  each([](const char* name, Precision precision) {
    Request what = request(tokens(130, 9), 20);
    what.logprobs = 1;
    Fixture cold(name, precision, 1);
    const Answer expected = cold.run(what);
    CHECK_EQ(expected.cached, 0u);
    const Answer warm = cold.run(what);
    CHECK_EQ(warm.cached, 128u);
    check_same(warm, expected);
    EngineOptions options;
    options.max_step_tokens = 19;
    Fixture chunked(name, precision, 2, options);
    check_same(chunked.run(what), expected);
  });
}

// A hit may end anywhere in what was computed: also where a sliding layer needs keys from behind the longer prompt's window.
TEST(a_hit_on_part_of_a_prompt_changes_no_bit) {
  each([](const char* name, Precision precision) {
    Fixture warm(name, precision, 1);
    const auto whole = tokens(130, 9);
    warm.run(request(whole, 20));
    for (const size_t kept : {size_t{17}, size_t{50}, size_t{97}}) {
      std::vector<Token> prompt(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(kept));
      const auto other = tokens(30, 4);
      prompt.insert(prompt.end(), other.begin(), other.end());
      Request what = request(prompt, 10);
      what.logprobs = 1;
      const Answer answer = warm.run(what);
      CHECK_EQ(answer.cached, static_cast<uint32_t>(kept / kBlockTokens * kBlockTokens));
      Fixture cold(name, precision, 1);
      check_same(answer, cold.run(what));
    }
    CHECK(warm.engine->integrity().ok);
  });
}

TEST(cancelling_half_of_the_streams_changes_none_of_the_others) {
  for (const char* name : kModels) {
    Fixture f(name, Precision::fast, 2);
    std::vector<GenerationId> ids;
    for (Request& what : requests()) ids.push_back(submit(*f.engine, std::move(what)));
    for (size_t i = 0; i < ids.size(); i += 2) {
      f.sink.wait_tokens(ids[i], 3);
      f.engine->cancel(ids[i]);
    }
    const auto all = requests();
    for (size_t i = 1; i < ids.size(); i += 2) {
      Fixture alone(name, Precision::fast, 1);
      check_same(f.sink.wait(ids[i]), alone.run(all[i]));
    }
    f.engine->drain(std::chrono::seconds(20));
    CHECK(f.engine->integrity().ok);
    CHECK_EQ(f.engine->stats().blocks.leased, 0);
  }
}
