// Blocks, prefixes and their log, without an engine.
#include <algorithm>
#include <numeric>
#include <random>

#include "check.h"
#include "kv/kv_cache.h"

using namespace sluice;

namespace {

std::vector<Token> run_of(Token first, size_t n) {
  std::vector<Token> out(n);
  std::iota(out.begin(), out.end(), first);
  return out;
}

struct Fixture {
  explicit Fixture(int32_t n_blocks) : log(100, 1000), cache(n_blocks, 42, log) {}
  // A generation that computed all of `context` and left.
  void pass(const std::vector<Token>& context, const std::string& salt = "") {
    auto lease = cache.reserve(context, salt, static_cast<int32_t>(context.size()));
    cache.publish(*lease, context, static_cast<int32_t>(context.size()));
  }
  int32_t hit(const std::vector<Token>& context, const std::string& salt = "") {
    return cache.reserve(context, salt, static_cast<int32_t>(context.size()))->cached_tokens();
  }
  KvLog log;
  KvCache cache;
};

std::string fault(const KvCache& cache, std::vector<const KvLease*> leases = {}) {
  const auto report = cache.integrity(leases);
  return report.ok ? "" : report.detail;
}

}  // namespace

TEST(a_prefix_is_found_up_to_the_last_token_that_must_be_computed) {
  Fixture f(8);
  f.pass(run_of(0, 48));
  CHECK_EQ(f.hit(run_of(0, 48)), 32);
  CHECK_EQ(f.hit(run_of(0, 49)), 48);
  CHECK_EQ(f.hit(run_of(0, 100)), 48);
  CHECK_EQ(f.hit(run_of(1, 48)), 0);
  CHECK_EQ(fault(f.cache), std::string());
}

TEST(a_block_is_found_only_behind_its_own_prefix_and_salt) {
  Fixture f(16);
  auto context = run_of(0, 33);
  f.pass(context, "a");
  CHECK_EQ(f.hit(context, "b"), 0);
  CHECK_EQ(f.hit(context, ""), 0);
  auto other = context;
  other[3] = 77;
  CHECK_EQ(f.hit(other, "a"), 0);
  other = context;
  other[20] = 77;
  CHECK_EQ(f.hit(other, "a"), 16);
  CHECK_EQ(f.hit(context, "a"), 32);
}

TEST(two_leases_share_blocks_and_each_gives_back_its_own) {
  Fixture f(8);
  const auto context = run_of(0, 40);
  auto first = f.cache.reserve(context, "", 64);
  f.cache.publish(*first, context, 40);
  {
    auto second = f.cache.reserve(context, "", 64);
    CHECK_EQ(second->cached_tokens(), 32);
    CHECK_EQ(second->blocks()[0], first->blocks()[0]);
    CHECK(second->blocks()[2] != first->blocks()[2]);
    CHECK_EQ(f.cache.counts().leased, 6);
    CHECK_EQ(fault(f.cache, {&*first, &*second}), std::string());
  }
  CHECK_EQ(f.cache.counts().leased, 4);
  first.reset();
  CHECK_EQ(f.cache.counts().leased, 0);
  CHECK_EQ(f.cache.counts().cached, 2);
  CHECK_EQ(f.cache.counts().free, 6);
  CHECK_EQ(fault(f.cache), std::string());
}

TEST(equal_prefixes_computed_side_by_side_become_one) {
  Fixture f(8);
  const auto context = run_of(0, 40);
  auto a = f.cache.reserve(context, "", 40);
  auto b = f.cache.reserve(context, "", 40);
  CHECK_EQ(f.cache.counts().leased, 6);
  CHECK_EQ(f.cache.publish(*a, context, 40), -1);
  CHECK_EQ(f.cache.publish(*b, context, 40), 0);
  CHECK_EQ(b->blocks()[1], a->blocks()[1]);
  CHECK_EQ(f.cache.counts().leased, 4);
  CHECK_EQ(fault(f.cache, {&*a, &*b}), std::string());
}

TEST(reserve_admission_counts_revived_blocks_once) {
  Fixture f(4);
  f.pass(run_of(0, 64));
  CHECK_EQ(f.cache.counts().cached, 4);
  // Three hits and one block more: the fourth cached block has to make room.
  auto lease = f.cache.reserve(run_of(0, 60), "", 64);
  CHECK(lease.has_value());
  CHECK_EQ(lease->cached_tokens(), 48);
  CHECK_EQ(f.cache.counts().leased, 4);
  CHECK(!f.cache.reserve(run_of(500, 1), "", 1).has_value());
  CHECK_EQ(fault(f.cache, {&*lease}), std::string());
}

TEST(a_refused_reservation_changes_nothing) {
  Fixture f(4);
  f.pass(run_of(0, 40));
  const auto held = f.cache.reserve(run_of(900, 30), "", 30);
  const auto before = f.cache.counts();
  CHECK(!f.cache.reserve(run_of(0, 70), "", 70).has_value());
  CHECK_EQ(f.cache.counts().cached, before.cached);
  CHECK_EQ(f.cache.counts().free, before.free);
  CHECK_EQ(fault(f.cache, {&*held}), std::string());
}

TEST(the_least_recently_used_end_of_a_chain_is_evicted_first) {
  Fixture f(4);
  f.pass(run_of(0, 32));    // two blocks
  f.pass(run_of(100, 32));  // two more, newer
  f.hit(run_of(0, 33));     // now the first chain is newer; its third block took one of the others
  CHECK_EQ(f.hit(run_of(0, 33)), 32);
  CHECK_EQ(f.hit(run_of(100, 33)), 16);
  CHECK_EQ(fault(f.cache), std::string());
}

TEST(the_log_tells_every_block_once_with_its_parent_and_its_end) {
  Fixture f(4);
  f.pass(run_of(0, 32), "s");
  CHECK(f.log.flush());
  CHECK(!f.log.flush());
  auto deltas = f.log.since(100);
  CHECK(deltas.has_value());
  CHECK_EQ(deltas->size(), size_t{1});
  const KvDelta& delta = deltas->front();
  CHECK_EQ(delta.seq, int64_t{101});
  CHECK_EQ(delta.stored.size(), size_t{2});
  CHECK_EQ(delta.stored[0].parent, uint64_t{0});
  CHECK_EQ(delta.stored[1].parent, delta.stored[0].key);
  CHECK_EQ(delta.stored[1].tokens[0], 16);
  CHECK_EQ(*delta.stored[1].salt, std::string("s"));
  const uint64_t leaf = delta.stored[1].key;

  f.pass(run_of(300, 48));  // needs three of four blocks: the leaf goes
  f.log.flush();
  deltas = f.log.since(101);
  CHECK_EQ(deltas->size(), size_t{1});
  CHECK(deltas->front().removed == std::vector<uint64_t>{leaf});
  CHECK_EQ(f.log.snapshot().stored.size(), size_t{4});
  CHECK_EQ(f.log.snapshot().seq, int64_t{102});
  CHECK(f.log.since(102)->empty());
}

TEST(a_reader_too_far_behind_or_of_another_process_is_told_so) {
  KvLog log(1000, 8);
  for (uint64_t i = 1; i <= 20; ++i) {
    log.stored({.key = i, .parent = i - 1, .salt = std::make_shared<const std::string>(), .tokens = {}});
    log.flush();
  }
  CHECK(!log.since(1000).has_value());
  CHECK(!log.since(1011).has_value());
  CHECK_EQ(log.since(1012)->size(), size_t{8});
  CHECK(!log.since(1021).has_value());
  CHECK(!log.since(17).has_value());
  CHECK_EQ(log.snapshot().stored.size(), size_t{20});
}

TEST(snapshots_and_deltas_describe_the_same_cache_after_any_history) {
  Fixture f(24);
  std::mt19937 random(7);
  std::vector<std::optional<KvLease>> held;
  for (int round = 0; round < 3000; ++round) {
    const auto context = run_of(static_cast<Token>(random() % 6) * 1000, 1 + random() % 90);
    auto lease = f.cache.reserve(context, random() % 2 == 0 ? "a" : "b", static_cast<int32_t>(context.size() + random() % 40));
    if (lease) {
      f.cache.publish(*lease, context, static_cast<int32_t>(random() % (context.size() + 1)));
      if (random() % 2 == 0) held.push_back(std::move(lease));
    }
    if (held.size() > 3) held.erase(held.begin() + static_cast<std::ptrdiff_t>(random() % held.size()));
    lease.reset();
    if (round % 50 != 0) continue;
    f.log.flush();
    std::vector<const KvLease*> leases;
    for (const auto& one : held) leases.push_back(&*one);
    CHECK_EQ(fault(f.cache, leases), std::string());
    const auto snapshot = f.log.snapshot();
    const auto counts = f.cache.counts();
    CHECK(static_cast<int32_t>(snapshot.stored.size()) >= counts.cached);
    CHECK(static_cast<int32_t>(snapshot.stored.size()) <= counts.cached + counts.leased);
    std::vector<uint64_t> seen{0};
    for (const auto& record : snapshot.stored) {
      CHECK(std::ranges::find(seen, record.parent) != seen.end());
      seen.push_back(record.key);
    }
  }
}
