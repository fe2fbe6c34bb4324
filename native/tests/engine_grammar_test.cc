// Generations under a grammar: masks, ends, dead ends, resume.
#include "engine_support.h"

using namespace support;

namespace {

struct Fixture {
  explicit Fixture(size_t cache_bytes = size_t{1} << 20) {
    EngineOptions options;
    options.mask_threads = 2;
    options.grammar_cache_bytes = cache_bytes;
    engine = Engine::create(options, std::make_unique<FakeModel>(), grammars(), sink.sink());
  }
  Answer run(Request what) { return sink.wait(submit(*engine, std::move(what))); }
  Request constrained(const std::string& grammar, int32_t n) {
    if (!engine->has_grammar(grammar)) load_grammar(*engine, grammar, grammar);
    Request out = request(tokens(12, 3), n);
    out.stop_ids = {};
    out.grammar = grammar;
    return out;
  }
  Sink sink;
  std::unique_ptr<Engine> engine;
};

}  // namespace

TEST(every_token_lies_in_the_grammar_and_its_end_is_the_answers_end) {
  Fixture f;
  auto what = f.constrained("5|6 7 8|9|10 *", 20);
  what.sampling.temperature = 1.5f;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    what.sampling.seed = seed;
    const Answer answer = f.run(what);
    CHECK(answer.reason == FinishReason::stop);
    CHECK_EQ(answer.tokens.size(), size_t{4});
    CHECK(answer.tokens[0] == 5 || answer.tokens[0] == 6);
    CHECK_EQ(answer.tokens[1], 7);
    CHECK(answer.tokens[2] >= 8 && answer.tokens[2] <= 10);
    CHECK_EQ(answer.usage.completion_tokens, 5);
  }
  CHECK_EQ(f.engine->stats().mask_ms.count, uint64_t{20 * 5});
}

TEST(an_answer_cut_in_the_middle_of_its_grammar_ends_in_length) {
  Fixture f;
  CHECK(f.run(f.constrained("5 6 7 8", 3)).reason == FinishReason::length);
}

TEST(an_answer_that_uses_its_last_token_to_complete_the_grammar_ends_in_stop) {
  Fixture f;
  const Answer answer = f.run(f.constrained("5 6 7", 3));
  CHECK(answer.reason == FinishReason::stop);
  CHECK((answer.tokens == std::vector<Token>{5, 6, 7}));
  CHECK_EQ(answer.usage.completion_tokens, 3);
}

TEST(a_dead_end_is_an_error_and_frees_the_row) {
  Fixture f;
  const Answer answer = f.run(f.constrained("5 - 7", 10));
  CHECK_EQ(answer.error, std::string("grammar_dead_end"));
  CHECK_EQ(answer.tokens.size(), size_t{1});
  auto banned = f.constrained("5 6", 10);
  banned.sampling.banned_sequences = {{5, 6}};
  CHECK_EQ(f.run(banned).error, std::string("grammar_dead_end"));
  CHECK_EQ(f.engine->stats().blocks.leased, 0);
}

TEST(a_callers_stop_token_inside_the_grammar_does_not_cut_the_answer) {
  Fixture f;
  auto what = f.constrained("5 6 7", 10);
  what.stop_ids = {6};
  const Answer answer = f.run(what);
  CHECK((answer.tokens == std::vector<Token>{5, 6, 7}));
  CHECK(answer.reason == FinishReason::stop);
}

TEST(a_resumed_answer_continues_its_grammar) {
  Fixture f;
  auto what = f.constrained("5|6 7|8 * 9|10 11", 10);
  what.sampling.temperature = 1;
  what.sampling.seed = 4;
  const Answer whole = f.run(what);
  CHECK_EQ(whole.tokens.size(), size_t{5});
  for (size_t at = 1; at < whole.tokens.size(); ++at) {
    auto rest = what;
    rest.generated.assign(whole.tokens.begin(), whole.tokens.begin() + static_cast<std::ptrdiff_t>(at));
    const Answer resumed = f.run(rest);
    CHECK(std::equal(resumed.tokens.begin(), resumed.tokens.end(), whole.tokens.begin() + static_cast<std::ptrdiff_t>(at),
                     whole.tokens.end()));
    CHECK(resumed.reason == FinishReason::stop);
  }
  auto foreign = what;
  foreign.generated = {5, 44};
  CHECK_EQ(f.run(foreign).error, std::string("grammar_mismatch"));
}

TEST(many_constrained_rows_at_once_equal_each_alone) {
  Fixture f;
  std::vector<Request> requests;
  std::vector<GenerationId> ids;
  for (int i = 0; i < 32; ++i) {
    auto what = f.constrained(i % 2 == 0 ? "5|6|7|8 * * 9|10 * 11" : "20|21|22 30|31 * 40|41|42", 12);
    what.prompt = tokens(10 + static_cast<size_t>(i), static_cast<uint32_t>(i));
    what.sampling.temperature = 1;
    what.sampling.seed = static_cast<uint64_t>(i);
    requests.push_back(what);
    ids.push_back(submit(*f.engine, what));
  }
  for (size_t i = 0; i < ids.size(); ++i) {
    const Answer together = f.sink.wait(ids[i]);
    const Answer alone = f.run(requests[i]);
    CHECK(together.tokens == alone.tokens);
    CHECK(together.reason == FinishReason::stop);
  }
}

TEST(the_grammar_cache_is_bounded_and_forgets_the_least_recently_used) {
  Fixture f(2500);  // a fake artifact counts 1000 bytes
  load_grammar(*f.engine, "a", "5");
  load_grammar(*f.engine, "b", "6");
  auto with_a = request(tokens(3, 1), 2);
  with_a.grammar = "a";
  f.run(with_a);
  load_grammar(*f.engine, "c", "7");
  CHECK(f.engine->has_grammar("a"));
  CHECK(!f.engine->has_grammar("b"));
  CHECK(f.engine->has_grammar("c"));
  f.engine->drop_grammar("a");
  CHECK(f.engine->submit(with_a).refusal == Refusal::grammar_missing);
  CHECK_THROWS(load_grammar(*f.engine, "d", ""), "without steps");
}

TEST(a_grammar_may_be_dropped_while_it_is_in_use) {
  Fixture f;
  auto what = f.constrained("* * * * * * * * * * * * 5", 30);
  const auto id = submit(*f.engine, what);
  f.engine->drop_grammar(what.grammar);
  CHECK_EQ(f.sink.wait(id).tokens.size(), size_t{13});
}
