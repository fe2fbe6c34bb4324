// The automaton engine: what artifacts allow, masks, rollback, forks, threads, and bytes that are no artifact.
#include <atomic>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "check.h"
#include "grammar/automaton/automaton.h"

namespace {

using namespace sluice::grammar;

constexpr int32_t kStop = 256;

// Every byte is a token of the same id, 256 ends, then tokens that cross the borders of values.
Vocabulary vocabulary() {
  Vocabulary made;
  for (int i = 0; i < 256; ++i) made.tokens.emplace_back(1, static_cast<char>(i));
  made.tokens.emplace_back();
  for (const char* text : {"{\"", "\":", "\": ", "\",\"", "name", "na", "ame\": \"", "abc", "abcdefgh", "\xc3\xa9", "\xc3\xa9\xc3", "\"}",
                           "}]", ", ", "12", "\\u00", "[\"x\",", "true", "--", "cdab", "name"})
    made.tokens.emplace_back(text);
  made.stop_ids = {kStop};
  return made;
}

std::vector<std::byte> artifact_bytes(const std::string& name) {
  std::ifstream file(std::string(SLUICE_TEST_AUTOMATON) + "/" + name + ".bin", std::ios::binary);
  if (!file) throw std::runtime_error("no artifact " + name);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const auto* data = reinterpret_cast<const std::byte*>(text.data());
  return {data, data + text.size()};
}

const char* const kArtifacts[] = {"person", "person-any-order", "anything", "tree", "overlap", "word-255", "plain-regex"};

std::shared_ptr<const Artifact> load(const std::string& name) {
  return make_automaton_engine(vocabulary())->load(artifact_bytes(name));
}

std::vector<uint32_t> mask_of(Matcher& matcher) {
  std::vector<uint32_t> mask((vocabulary().tokens.size() + 31) / 32);
  matcher.fill_mask(mask);
  return mask;
}

bool bit(const std::vector<uint32_t>& mask, int32_t token) {
  return (mask[static_cast<size_t>(token) / 32] >> (token % 32) & 1u) != 0;
}

// Byte by byte, the mask asked before each.
bool matches(const Artifact& artifact, std::string_view text) {
  const auto matcher = artifact.matcher();
  for (const unsigned char c : text) {
    const bool allowed = bit(mask_of(*matcher), c);
    if (matcher->accept(c) != allowed) throw std::logic_error("mask and matcher disagree");
    if (!allowed) return false;
  }
  return bit(mask_of(*matcher), kStop) && matcher->completed();
}

TEST(a_schema_allows_what_it_says) {
  const auto person = load("person");
  CHECK(matches(*person, R"({"name": "Ada"})"));
  CHECK(matches(*person, R"({"name":"Ada","age":36})"));
  CHECK(matches(*person, R"({"name":"Ada","tags":[12, "xy",1]})"));
  CHECK(!matches(*person, R"({"age":36,"name":"Ada"})"));
  CHECK(!matches(*person, R"({"name":"Ada","age":121})"));
  CHECK(!matches(*person, R"({"name":"Ada","age":1,"tags":["x"]})"));
  CHECK(!matches(*person, R"({"name":"Ada","tags":["x","x"]})"));
  CHECK(!matches(*person, R"({"name":"abcdefg"})"));
  CHECK(!matches(*person, R"({"name":""})"));
  CHECK(matches(*load("person-any-order"), R"({"age":36,"name":"Ada"})"));
  CHECK(matches(*load("tree"), R"({"v":1,"kids":[{"v":2,"kids":[]},{"v":3}]})"));
  CHECK(!matches(*load("tree"), R"({"v":1,"kids":[{"kids":[]}]})"));
  CHECK(matches(*load("overlap"), R"({"a":1})"));
  CHECK(matches(*load("overlap"), R"({"a":1,"b":""})"));
  CHECK(!matches(*load("overlap"), R"({"a":2})"));
  CHECK(matches(*load("word-255"), "\"" + std::string(255, 'x') + "\""));
  CHECK(!matches(*load("word-255"), "\"" + std::string(256, 'x') + "\""));
  CHECK(matches(*load("plain-regex"), "abcdab\xc3\xa9"));
  CHECK(!matches(*load("plain-regex"), "ab"));
}

// Each token's bit is what accepting its bytes one by one says, along random ways through each artifact.
TEST(masks_say_of_each_token_what_its_bytes_do) {
  const Vocabulary all = vocabulary();
  std::mt19937 random(7);
  for (const char* name : kArtifacts) {
    const auto artifact = load(name);
    for (int way = 0; way < 20; ++way) {
      const auto matcher = artifact->matcher();
      for (int step = 0; step < 40 && !matcher->terminated(); ++step) {
        const std::vector<uint32_t> mask = mask_of(*matcher);
        std::vector<int32_t> allowed;
        for (size_t id = 0; id < all.tokens.size(); ++id) {
          const auto token = static_cast<int32_t>(id);
          if (bit(mask, token)) allowed.push_back(token);
          if (token == kStop) continue;
          const auto copy = matcher->fork();
          bool goes = true;
          for (const unsigned char c : all.tokens[id]) goes = goes && copy->accept(c);
          CHECK_EQ(bit(mask, token), goes && !all.tokens[id].empty());
        }
        CHECK_EQ(bit(mask, kStop), matcher->completed());
        CHECK(!allowed.empty());
        CHECK(matcher->accept(allowed[random() % allowed.size()]));
      }
    }
  }
}

TEST(a_rollback_restores_and_a_fork_goes_its_own_way) {
  const auto artifact = load("person");
  const auto matcher = artifact->matcher();
  std::vector<std::vector<uint32_t>> masks;
  const std::string text = R"({"name": "ab", "age": 7})";
  for (const unsigned char c : text) {
    masks.push_back(mask_of(*matcher));
    CHECK(matcher->accept(c));
  }
  CHECK(matcher->accept(kStop));
  CHECK(matcher->terminated());
  CHECK(!matcher->accept('x'));
  matcher->rollback(1);
  CHECK(!matcher->terminated());
  const auto fork = matcher->fork();
  CHECK(fork->accept(kStop));
  CHECK(!matcher->terminated());
  for (size_t i = text.size(); i-- > 0;) {
    matcher->rollback(1);
    CHECK(mask_of(*matcher) == masks[i]);
  }
  CHECK_THROWS(matcher->rollback(1), "too far");
}

TEST(a_small_pool_of_masks_gives_the_same_masks) {
  const auto large = make_automaton_engine(vocabulary())->load(artifact_bytes("person"));
  const auto small = make_automaton_engine(vocabulary(), 600)->load(artifact_bytes("person"));
  for (int round = 0; round < 2; ++round) {
    const auto a = large->matcher();
    const auto b = small->matcher();
    for (const unsigned char c : std::string_view(R"({"name":"abc","tags":["x",1]})")) {
      CHECK(mask_of(*a) == mask_of(*b));
      CHECK(a->accept(c) && b->accept(c));
    }
  }
}

TEST(matchers_of_one_artifact_run_on_many_threads) {
  const auto artifact = load("person");
  std::atomic<int> matched{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&] {
      for (int round = 0; round < 20; ++round) matched += matches(*artifact, R"({"name":"abc","age":36})") ? 1 : 0;
    });
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(matched.load(), 80);
}

TEST(bytes_that_are_no_artifact_are_refused) {
  const auto engine = make_automaton_engine(vocabulary());
  std::vector<std::byte> bytes = artifact_bytes("person");
  CHECK_THROWS(engine->load({}), "ends too early");
  CHECK_THROWS(engine->load(std::span(bytes).first(bytes.size() - 1)), "grammar artifact");
  std::vector<std::byte> longer = bytes;
  longer.push_back(std::byte{0});
  CHECK_THROWS(engine->load(longer), "after the last state");
  bytes[8] = std::byte{99};
  CHECK_THROWS(engine->load(bytes), "version");
  bytes[0] = std::byte{'X'};
  CHECK_THROWS(engine->load(bytes), "not an automaton");
  CHECK_THROWS(make_engine_by_artifact(make_automaton_engine(vocabulary()), nullptr)->load(bytes), "not one of an engine");
}

// Damaged artifacts either are refused or make matchers that do anything but crash or run on for ever. The sanitizers' build
// is where this says most.
TEST(damaged_artifacts_never_crash) {
  const auto engine = make_automaton_engine(vocabulary());
  std::mt19937 random(11);
  int refused = 0, ran = 0;
  for (const char* name : kArtifacts) {
    const std::vector<std::byte> whole = artifact_bytes(name);
    for (int round = 0; round < 300; ++round) {
      std::vector<std::byte> bytes = whole;
      for (unsigned i = random() % 4 + 1; i > 0; --i) {
        // Past the magic and the version, which are looked at first.
        const size_t at = 9 + random() % (bytes.size() - 9);
        switch (random() % 4) {
          case 0: bytes[at] = static_cast<std::byte>(random() % 256); break;
          case 1: bytes[at] ^= static_cast<std::byte>(1u << random() % 8); break;
          case 2: bytes.erase(bytes.begin() + static_cast<std::ptrdiff_t>(at)); break;
          default: bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(at), static_cast<std::byte>(random() % 256)); break;
        }
      }
      std::shared_ptr<const Artifact> artifact;
      try {
        artifact = engine->load(bytes);
      } catch (const std::runtime_error&) {
        ++refused;
        continue;
      }
      ++ran;
      const auto matcher = artifact->matcher();
      for (int step = 0; step < 12; ++step) {
        const std::vector<uint32_t> mask = mask_of(*matcher);
        std::vector<int32_t> allowed;
        for (size_t id = 0; id < vocabulary().tokens.size(); ++id)
          if (bit(mask, static_cast<int32_t>(id))) allowed.push_back(static_cast<int32_t>(id));
        if (allowed.empty()) break;
        matcher->accept(allowed[random() % allowed.size()]);
        if (step == 6) matcher->rollback(1);
      }
    }
  }
  CHECK(refused > 0);
  CHECK(ran > 0);
}

}  // namespace
