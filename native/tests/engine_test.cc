// The engine from outside: what a caller of submit and cancel sees.
#include <thread>

#include "engine_support.h"

using namespace support;

namespace {

struct Fixture {
  explicit Fixture(EngineOptions options = {}, FakeModel::Hooks hooks = {})
      : engine(Engine::create(options, std::make_unique<FakeModel>(std::move(hooks)), grammars(), sink.sink())) {}
  Answer run(Request what) { return sink.wait(submit(*engine, std::move(what))); }
  Sink sink;
  std::unique_ptr<Engine> engine;
};

Request sampled(std::vector<Token> prompt, int32_t n, uint64_t seed) {
  Request out = request(std::move(prompt), n);
  out.sampling.temperature = 0.9f;
  out.sampling.top_p = 0.95f;
  out.sampling.repetition_penalty = 1.1f;
  out.sampling.presence_penalty = 0.3f;
  out.sampling.frequency_penalty = 0.2f;
  out.sampling.seed = seed;
  out.logprobs = 3;
  return out;
}

std::vector<Request> mixed_requests() {
  std::vector<Request> requests;
  for (uint32_t i = 0; i < 16; ++i) {
    auto prompt = tokens(5 + i * 13, i);
    const auto n = static_cast<int32_t>(20 + 3 * i);
    requests.push_back(i % 2 == 0 ? request(prompt, n) : sampled(prompt, n, i));
  }
  return requests;
}

bool same(const Answer& a, const Answer& b) {
  if (a.tokens != b.tokens || a.reason != b.reason || a.logprobs.size() != b.logprobs.size()) return false;
  for (size_t i = 0; i < a.logprobs.size(); ++i)
    if (a.logprobs[i].logprob != b.logprobs[i].logprob || a.logprobs[i].top != b.logprobs[i].top) return false;
  return true;
}

}  // namespace

TEST(sixteen_concurrent_generations_equal_each_alone) {
  const auto requests = mixed_requests();
  Fixture together;
  std::vector<GenerationId> ids;
  for (const Request& what : requests) ids.push_back(submit(*together.engine, what));
  for (size_t i = 0; i < requests.size(); ++i) {
    Fixture alone;
    CHECK(same(together.sink.wait(ids[i]), alone.run(requests[i])));
  }
  together.engine->drain(std::chrono::seconds(10));
  CHECK(together.engine->integrity().ok);
  CHECK_EQ(together.engine->stats().blocks.leased, 0);
}

TEST(cancelling_half_leaves_the_rest_unchanged_and_the_accounting_exact) {
  const auto requests = mixed_requests();
  Fixture fixture;
  std::vector<GenerationId> ids;
  for (const Request& what : requests) ids.push_back(submit(*fixture.engine, what));
  for (size_t i = 0; i < ids.size(); i += 2) fixture.sink.wait_tokens(ids[i], 5);
  for (size_t i = 0; i < ids.size(); i += 2) fixture.engine->cancel(ids[i]);
  for (size_t i = 1; i < ids.size(); i += 2) {
    Fixture alone;
    CHECK(same(fixture.sink.wait(ids[i]), alone.run(requests[i])));
  }
  fixture.engine->drain(std::chrono::seconds(10));
  const auto report = fixture.engine->integrity();
  CHECK_EQ(report.ok ? "ok" : report.detail, std::string("ok"));
  CHECK_EQ(fixture.engine->stats().blocks.leased, 0);
}

TEST(a_cancelled_row_is_free_at_the_end_of_the_running_step) {
  Gate gate;
  EngineOptions options;
  options.max_rows = 1;
  Fixture fixture(options, {.before_step = [&](const StepPlan&) { gate.pass(); }});
  const auto first = submit(*fixture.engine, request(tokens(4, 1), 500));
  const auto second = submit(*fixture.engine, request(tokens(4, 2), 1));
  gate.wait_arrived(1);
  fixture.engine->cancel(first);
  gate.allow(2);  // the running step, and the first of the second generation
  CHECK_EQ(fixture.sink.wait(second).tokens.size(), size_t{1});
  CHECK(!fixture.sink.now(first).ended);
  CHECK_EQ(fixture.engine->stats().running, 0);
  gate.open();
}

TEST(cancelling_a_waiting_generation_gives_its_place_away) {
  Gate gate;
  EngineOptions options;
  options.max_rows = 1;
  options.max_queued = 1;
  Fixture fixture(options, {.before_step = [&](const StepPlan&) { gate.pass(); }});
  submit(*fixture.engine, request(tokens(4, 1), 2));
  gate.wait_arrived(1);
  const auto waiting = submit(*fixture.engine, request(tokens(4, 2), 2));
  CHECK(fixture.engine->submit(request(tokens(4, 3), 2)).refusal == Refusal::queue_full);
  fixture.engine->cancel(waiting);
  gate.open();
  fixture.engine->drain(std::chrono::seconds(10));
  CHECK_EQ(fixture.engine->stats().queued, 0);
  CHECK(!fixture.sink.now(waiting).accepted);
}

TEST(a_second_turn_reuses_the_blocks_of_the_first_and_gives_the_same_tokens) {
  Fixture fixture;
  const auto prompt = tokens(40, 7);
  const Answer first = fixture.run(request(prompt, 30));
  CHECK_EQ(first.cached, 0u);
  auto turn = prompt;
  turn.insert(turn.end(), first.tokens.begin(), first.tokens.end());
  const auto more = tokens(9, 8);
  turn.insert(turn.end(), more.begin(), more.end());
  const Answer second = fixture.run(request(turn, 20));
  // 40 + 29 computed tokens are four full blocks: the answer's own tokens are found as well as the prompt's.
  CHECK_EQ(second.cached, 64u);
  CHECK_EQ(second.usage.cached_tokens, 64);
  Fixture cold;
  CHECK(second.tokens == cold.run(request(turn, 20)).tokens);
}

TEST(a_prefix_is_not_shared_under_another_salt) {
  Fixture fixture;
  auto mine = request(tokens(64, 3), 4);
  mine.salt = "tenant a";
  auto theirs = mine;
  theirs.salt = "tenant b";
  const auto expected = fixture.run(mine).tokens;
  const Answer other = fixture.run(theirs);
  CHECK_EQ(other.cached, 0u);
  CHECK(other.tokens == expected);
  CHECK_EQ(fixture.run(mine).cached, 48u);
  CHECK_EQ(fixture.run(theirs).cached, 48u);
}

TEST(a_resumed_answer_is_token_for_token_the_unbroken_one) {
  for (const bool greedy : {true, false}) {
    Request whole = greedy ? request(tokens(21, 5), 40) : sampled(tokens(21, 5), 40, 99);
    whole.sampling.banned_sequences = {{10, 11}, {12}};
    whole.logprobs = 2;
    Fixture fixture;
    const Answer unbroken = fixture.run(whole);
    CHECK_EQ(unbroken.tokens.size(), size_t{40});
    for (const int32_t broken_at : {1, 7, 23, 39}) {
      Request rest = whole;
      rest.generated.assign(unbroken.tokens.begin(), unbroken.tokens.begin() + broken_at);
      rest.max_new_tokens = 40 - broken_at;
      Fixture elsewhere;
      const Answer resumed = elsewhere.run(rest);
      auto joined = rest.generated;
      joined.insert(joined.end(), resumed.tokens.begin(), resumed.tokens.end());
      CHECK(joined == unbroken.tokens);
      CHECK_EQ(resumed.logprobs.back().logprob, unbroken.logprobs.back().logprob);
      CHECK(resumed.logprobs.back().top == unbroken.logprobs.back().top);
      CHECK_EQ(resumed.usage.prompt_tokens, 21);
      CHECK_EQ(resumed.usage.completion_tokens, 40 - broken_at);
    }
  }
}

TEST(an_answer_does_not_depend_on_how_its_prompt_was_cut_into_chunks) {
  const auto prompt = tokens(300, 4);
  Fixture reference;
  const auto expected = reference.run(request(prompt, 10)).tokens;
  for (const int32_t chunk : {16, 17, 33}) {
    EngineOptions options;
    options.max_step_tokens = chunk;
    options.step_target_ms = 1e9;
    Fixture fixture(options);
    const Answer answer = fixture.run(request(prompt, 10));
    CHECK(answer.tokens == expected);
    CHECK_EQ(answer.progress.back(), 300u);
    CHECK_EQ(answer.progress.size(), size_t((300 + chunk - 1) / chunk));
  }
}

TEST(higher_priority_goes_first_and_equals_in_order_of_arrival) {
  Gate gate;
  EngineOptions options;
  options.max_rows = 1;
  Fixture fixture(options, {.before_step = [&](const StepPlan&) { gate.pass(); }});
  const auto running = submit(*fixture.engine, request(tokens(4, 1), 1));
  gate.wait_arrived(1);
  const auto with_priority = [&](int32_t priority) {
    auto what = request(tokens(4, 2), 1);
    what.priority = priority;
    return submit(*fixture.engine, what);
  };
  const auto low = with_priority(-1), first = with_priority(0), second = with_priority(0), high = with_priority(5);
  gate.open();
  fixture.engine->drain(std::chrono::seconds(10));
  CHECK(fixture.sink.end_order() == (std::vector{running, high, first, second, low}));
}

TEST(the_queue_is_bounded) {
  Gate gate;
  EngineOptions options;
  options.max_rows = 2;
  options.max_queued = 3;
  Fixture fixture(options, {.before_step = [&](const StepPlan&) { gate.pass(); }});
  for (int i = 0; i < 5; ++i) submit(*fixture.engine, request(tokens(4, 1), 1));
  CHECK(fixture.engine->submit(request(tokens(4, 1), 1)).refusal == Refusal::queue_full);
  gate.open();
  fixture.engine->drain(std::chrono::seconds(10));
  CHECK_EQ(fixture.sink.end_order().size(), size_t{5});
}

TEST(deadlines_end_running_and_waiting_generations_with_an_error) {
  Gate gate;
  EngineOptions options;
  options.max_rows = 1;
  Fixture fixture(options, {.before_step = [&](const StepPlan&) { gate.pass(); }});
  auto what = request(tokens(4, 1), 1000);
  what.deadline_ms = 1;
  const auto running = submit(*fixture.engine, what);
  const auto waiting = submit(*fixture.engine, what);
  gate.open();
  CHECK_EQ(fixture.sink.wait(running).error, std::string("deadline_exceeded"));
  CHECK_EQ(fixture.sink.wait(waiting).error, std::string("deadline_exceeded"));
  CHECK_EQ(fixture.engine->stats().blocks.leased, 0);
  CHECK(fixture.engine->integrity().ok);
}

TEST(what_can_never_run_is_refused_at_once) {
  EngineOptions options;
  options.kv_tokens = 64;
  Fixture fixture(options);
  const auto refusal = [&](Request what) { return fixture.engine->submit(std::move(what)).refusal; };
  CHECK(refusal(request(tokens(10, 1), 2040)) == Refusal::prompt_too_long);
  CHECK(refusal(request(tokens(40, 1), 26)) == Refusal::kv_too_small);
  CHECK(refusal(request({}, 1)) == Refusal::invalid_request);
  CHECK(refusal(request({5, kVocab}, 1)) == Refusal::invalid_request);
  CHECK(refusal(request({5, -1}, 1)) == Refusal::invalid_request);
  CHECK(refusal(request({5}, 0)) == Refusal::invalid_request);
  auto grammar = request({5}, 1);
  grammar.grammar = "unknown";
  CHECK(refusal(grammar) == Refusal::grammar_missing);
  // 40 + 25 tokens, the last of which is never stored, fill the cache exactly.
  CHECK_EQ(fixture.run(request(tokens(40, 1), 25)).tokens.size(), size_t{25});
}

TEST(a_large_request_waits_for_room_instead_of_being_overtaken) {
  Gate gate;
  EngineOptions options;
  options.kv_tokens = 128;
  Fixture fixture(options, {.before_step = [&](const StepPlan&) { gate.pass(); }});
  const auto running = submit(*fixture.engine, request(tokens(40, 1), 30));
  gate.wait_arrived(1);
  const auto large = submit(*fixture.engine, request(tokens(100, 2), 10));
  const auto small = submit(*fixture.engine, request(tokens(4, 3), 4));
  gate.open();
  fixture.engine->drain(std::chrono::seconds(10));
  CHECK(fixture.sink.end_order().front() == running);
  CHECK_EQ(fixture.sink.now(large).tokens.size(), size_t{10});
  CHECK_EQ(fixture.sink.now(small).tokens.size(), size_t{4});
}

TEST(a_stop_token_ends_the_answer_and_is_counted_but_not_sent) {
  Fixture fixture;
  auto what = request(tokens(8, 1), 50);
  const auto free_run = fixture.run(what).tokens;
  const Token third = free_run[2];
  what.stop_ids = {third};
  const size_t at = static_cast<size_t>(std::ranges::find(free_run, third) - free_run.begin());
  const Answer answer = fixture.run(what);
  CHECK(answer.reason == FinishReason::stop);
  CHECK_EQ(answer.tokens.size(), at);
  CHECK_EQ(answer.usage.completion_tokens, static_cast<int32_t>(at) + 1);
  CHECK(fixture.run(request(tokens(8, 1), 5)).reason == FinishReason::length);
}

TEST(broken_logits_end_one_row_with_an_error_and_spare_the_others) {
  Fixture fixture;
  auto poisoned = tokens(40, 1);
  poisoned[20] = kPoison;
  const auto bad = submit(*fixture.engine, request(poisoned, 8));
  const auto good = submit(*fixture.engine, request(tokens(40, 2), 8));
  CHECK_EQ(fixture.sink.wait(bad).error, std::string("invalid_logits"));
  CHECK_EQ(fixture.sink.wait(good).tokens.size(), size_t{8});
  CHECK(fixture.engine->stats().healthy);
  CHECK_EQ(fixture.engine->stats().blocks.leased, 0);
}

TEST(a_failed_step_fails_what_runs_and_refuses_more) {
  std::atomic<int> steps = 0;
  Fixture fixture({}, {.before_step = [&](const StepPlan&) {
                    if (++steps == 3) throw std::runtime_error("no memory");
                  }});
  const auto id = submit(*fixture.engine, request(tokens(4, 1), 50));
  const Answer answer = fixture.sink.wait(id);
  CHECK_EQ(answer.error, std::string("engine_failed"));
  CHECK(answer.retryable);
  CHECK(fixture.engine->submit(request(tokens(4, 1), 5)).refusal == Refusal::engine_failed);
  CHECK(!fixture.engine->stats().healthy);
  CHECK(fixture.engine->integrity().ok);
}

TEST(closing_ends_what_runs_with_an_error_that_another_backend_may_cure) {
  Sink sink;
  Gate gate;
  auto engine = Engine::create({}, std::make_unique<FakeModel>(FakeModel::Hooks{[&](const StepPlan&) { gate.pass(); }}),
                               grammars(), sink.sink());
  const auto id = submit(*engine, request(tokens(4, 1), 500));
  gate.wait_arrived(1);
  // The running step ends only when closing has begun, so that the answer cannot be done before.
  std::thread closer([&] { engine->close(); });
  while (engine->submit(request(tokens(4, 1), 5)).refusal != Refusal::draining) std::this_thread::yield();
  gate.open();
  closer.join();
  CHECK_EQ(sink.now(id).error, std::string("engine_closed"));
  CHECK(engine->integrity().ok);
}

TEST(draining_lets_running_work_finish_and_cancels_the_rest_at_the_timeout) {
  Fixture fixture;
  const auto short_one = submit(*fixture.engine, request(tokens(4, 1), 20));
  fixture.engine->drain(std::chrono::seconds(20));
  CHECK_EQ(fixture.sink.now(short_one).tokens.size(), size_t{20});
  CHECK(fixture.engine->submit(request(tokens(4, 1), 5)).refusal == Refusal::draining);

  Gate gate;
  Fixture slow({}, {.before_step = [&](const StepPlan&) { gate.pass(); }});
  const auto long_one = submit(*slow.engine, request(tokens(4, 1), 1500));
  gate.wait_arrived(1);
  // Waits for no step: the timeout may strike after any of them, and then no further one comes.
  std::thread opener([&] { gate.open(); });
  slow.engine->drain(std::chrono::milliseconds(1));
  opener.join();
  const Answer answer = slow.sink.now(long_one);
  CHECK(answer.ended);
  CHECK(answer.error == "engine_closed" || answer.tokens.size() == 1500);
}

TEST(every_kind_of_kv_group_gives_the_same_answer) {
  std::vector<Token> first;
  for (const KvGroupKind kind : {KvGroupKind::full, KvGroupKind::sliding, KvGroupKind::mla_latent}) {
    Sink sink;
    auto engine = Engine::create({}, std::make_unique<FakeModel>(FakeModel::Hooks{}, kind), grammars(), sink.sink());
    const Answer answer = sink.wait(submit(*engine, request(tokens(40, 3), 20)));
    CHECK_EQ(answer.tokens.size(), size_t{20});
    if (first.empty()) first = answer.tokens;
    CHECK(answer.tokens == first);
  }
}
