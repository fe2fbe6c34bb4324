// Random submits, cancels and deadlines from several threads: nothing may leak, hang or disturb the survivors.
#include <random>
#include <thread>

#include "engine_support.h"

using namespace support;

namespace {

struct Survivor {
  GenerationId id;
  Request request;
};

Request random_request(std::mt19937& random) {
  // Few distinct prompts, so that prefixes are shared, revived and evicted all the time.
  Request out = request(tokens(1 + random() % 150, random() % 5), static_cast<int32_t>(1 + random() % 40));
  out.salt = random() % 2 == 0 ? "a" : "b";
  out.priority = static_cast<int32_t>(random() % 3);
  if (random() % 2 == 0) {
    out.sampling.temperature = 1;
    out.sampling.seed = random();
    out.sampling.frequency_penalty = 0.1f;
  }
  if (random() % 4 == 0) out.grammar = "g";
  return out;
}

void storm(Engine& engine, uint32_t seed, int rounds, std::vector<Survivor>& survivors) {
  std::mt19937 random(seed);
  std::vector<GenerationId> mine;
  for (int round = 0; round < rounds; ++round) {
    Request what = random_request(random);
    const uint32_t fate = random() % 4;
    if (fate == 0) what.deadline_ms = 1 + static_cast<int64_t>(random() % 3);
    Request copy = what;
    const SubmitResult result = engine.submit(std::move(what));
    if (result.refusal == Refusal::queue_full) {
      std::this_thread::yield();
      continue;
    }
    if (result.refusal != Refusal::none) throw std::runtime_error(result.message);
    if (fate == 1) engine.cancel(result.id);
    else if (fate == 2) mine.push_back(result.id);
    else if (fate == 3) survivors.push_back({.id = result.id, .request = std::move(copy)});
    if (!mine.empty() && random() % 2 == 0) {
      engine.cancel(mine.back());
      mine.pop_back();
    }
    if (round % 20 == 0 && !engine.integrity().ok) throw std::runtime_error(engine.integrity().detail);
  }
  for (const GenerationId id : mine) engine.cancel(id);
}

}  // namespace

TEST(a_storm_leaves_the_accounting_exact_and_the_survivors_unchanged) {
  Sink sink;
  EngineOptions options;
  options.kv_tokens = 1024;
  options.max_rows = 8;
  options.max_queued = 24;
  options.max_step_tokens = 64;
  options.mask_threads = 2;
  auto engine = Engine::create(options, std::make_unique<FakeModel>(), grammars(), sink.sink());
  load_grammar(*engine, "g", "* * 5|6|7 * * 8 *");

  constexpr int n_threads = 3;
  std::vector<std::vector<Survivor>> survivors(n_threads);
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < n_threads; ++i)
    threads.emplace_back([&, i] { storm(*engine, i, 400, survivors[i]); });
  for (std::thread& thread : threads) thread.join();
  engine->drain(std::chrono::seconds(60));

  const auto report = engine->integrity();
  CHECK_EQ(report.ok ? "ok" : report.detail, std::string("ok"));
  const EngineStats stats = engine->stats();
  CHECK_EQ(stats.running + stats.queued, 0);
  CHECK_EQ(stats.blocks.leased, 0);
  CHECK_EQ(stats.blocks.free + stats.blocks.cached, stats.blocks.total);

  Sink quiet_sink;
  EngineOptions quiet_options;
  auto quiet = Engine::create(quiet_options, std::make_unique<FakeModel>(), grammars(), quiet_sink.sink());
  load_grammar(*quiet, "g", "* * 5|6|7 * * 8 *");
  size_t compared = 0;
  for (const auto& list : survivors) {
    for (size_t i = 0; i < list.size(); i += 7) {
      auto alone = list[i].request;
      alone.salt = std::to_string(compared++);  // no help from the cache
      CHECK(sink.now(list[i].id).tokens == quiet_sink.wait(submit(*quiet, alone)).tokens);
    }
  }
  CHECK(compared > 5);
}

TEST(the_kv_log_replayed_from_any_point_equals_the_snapshot) {
  Sink sink;
  EngineOptions options;
  options.kv_tokens = 512;
  auto engine = Engine::create(options, std::make_unique<FakeModel>(), grammars(), sink.sink());
  const int64_t start = engine->kv_snapshot().seq;
  std::map<uint64_t, uint64_t> mirror;  // key -> parent
  std::mt19937 random(3);
  int64_t seq = start;
  for (int round = 0; round < 60; ++round) {
    sink.wait(submit(*engine, request(tokens(20 + random() % 100, random() % 4), 10)));
    const auto deltas = engine->kv_events(seq);
    CHECK(deltas.has_value());
    for (const KvDelta& delta : *deltas) {
      CHECK_EQ(delta.seq, seq + 1);
      seq = delta.seq;
      for (const uint64_t key : delta.removed) CHECK_EQ(mirror.erase(key), size_t{1});
      for (const KvBlockRecord& record : delta.stored) {
        CHECK(record.parent == 0 || mirror.contains(record.parent));
        mirror.emplace(record.key, record.parent);
      }
    }
  }
  engine->drain(std::chrono::seconds(5));
  const KvDelta snapshot = engine->kv_snapshot();
  CHECK_EQ(snapshot.seq, seq);
  CHECK_EQ(snapshot.stored.size(), mirror.size());
  for (const KvBlockRecord& record : snapshot.stored) CHECK(mirror.contains(record.key));
  CHECK(!engine->kv_events(start - 1).has_value());
}
