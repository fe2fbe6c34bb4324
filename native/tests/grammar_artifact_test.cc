// XGrammar behind the matcher face: artifacts, masks, rollback, forks, and one matcher per thread.
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "check.h"
#include "grammar/envelope.h"
#include "grammar/matcher.h"
#include "grammar/xgrammar_compiler.h"

namespace {

using namespace sluice::grammar;

constexpr int32_t kStop = 256;

// Every byte is a token of the same id; 256 ends.
Vocabulary bytes_vocabulary() {
  Vocabulary vocabulary;
  for (int i = 0; i < 256; ++i) vocabulary.tokens.emplace_back(1, static_cast<char>(i));
  vocabulary.tokens.emplace_back();
  vocabulary.stop_ids = {kStop};
  return vocabulary;
}

std::string compile(SourceKind kind, const std::string& source) {
  XGrammarCompiler compiler(bytes_vocabulary(), size_t{16} << 20, 1);
  return compiler.compile(kind, source).bytes;
}

std::span<const std::byte> as_bytes(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

std::shared_ptr<const Artifact> load(const std::string& bytes) {
  return make_xgrammar_engine(bytes_vocabulary())->load(as_bytes(bytes));
}

bool allowed(Matcher& matcher, int32_t token) {
  std::vector<uint32_t> mask(9);
  if (!matcher.fill_mask(mask)) return true;
  return (mask[static_cast<size_t>(token) / 32] >> (token % 32) & 1u) != 0;
}

// True when each byte is allowed and accepted in turn and the text may end there.
bool matches(const Artifact& artifact, std::string_view text) {
  const auto matcher = artifact.matcher();
  for (unsigned char c : text) {
    const bool bit = allowed(*matcher, c);
    if (matcher->accept(c) != bit) throw std::logic_error("mask and matcher disagree");
    if (!bit) return false;
  }
  return allowed(*matcher, kStop) && matcher->completed();
}

template <typename F>
std::string thrown(F&& body) {
  try {
    body();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

TEST(a_loaded_artifact_follows_its_grammar) {
  const auto artifact = load(compile(SourceKind::kEbnf, "root ::= \"a\" [bc]* \"d\"\n"));
  CHECK(matches(*artifact, "abcbd"));
  CHECK(!matches(*artifact, "ab"));
  CHECK(!matches(*artifact, "xd"));
  CHECK(artifact->memory_bytes() > 0);
}

TEST(a_stop_token_ends_and_nothing_follows) {
  const auto artifact = load(compile(SourceKind::kEbnf, "root ::= \"a\"*\n"));
  const auto matcher = artifact->matcher();
  CHECK(matcher->accept('a'));
  CHECK(matcher->accept(kStop));
  CHECK(matcher->terminated());
  CHECK(!matcher->accept('a'));
  CHECK(!allowed(*matcher, 'a'));
  matcher->rollback(1);
  CHECK(!matcher->terminated());
  CHECK(allowed(*matcher, 'a'));
}

TEST(rollback_and_fork_keep_their_own_place) {
  const auto artifact = load(compile(SourceKind::kEbnf, "root ::= \"abc\" | \"abd\"\n"));
  const auto matcher = artifact->matcher();
  CHECK(matcher->accept('a'));
  CHECK(matcher->accept('b'));
  const auto fork = matcher->fork();
  CHECK(fork->accept('d'));
  CHECK(fork->completed());
  CHECK(!matcher->completed());
  matcher->rollback(2);
  CHECK(allowed(*matcher, 'a'));
  CHECK(!allowed(*matcher, 'b'));
}

TEST(a_mask_wider_than_the_vocabulary_allows_nothing_past_its_end) {
  const auto artifact = load(compile(SourceKind::kEbnf, "root ::= [^a]*\n"));
  std::vector<uint32_t> mask(16, ~0u);
  artifact->matcher()->fill_mask(mask);
  for (size_t word = 9; word < mask.size(); ++word) CHECK(mask[word] == 0);
  std::vector<uint32_t> narrow(2);
  CHECK(thrown([&] {
          try {
            artifact->matcher()->fill_mask(narrow);
          } catch (const std::invalid_argument& error) {
            throw std::runtime_error(error.what());
          }
        }) != "");
}

TEST(bytes_that_are_no_artifact_of_this_vocabulary_are_refused) {
  const std::string good = compile(SourceKind::kEbnf, "root ::= \"a\"\n");
  CHECK(thrown([&] { load("nonsense"); }).find("too short") != std::string::npos);
  CHECK(thrown([&] { load(std::string(100, 'x')); }).find("not an XGrammar artifact") != std::string::npos);
  CHECK(thrown([&] { load(good.substr(0, good.size() - 1)); }).find("truncated") != std::string::npos);
  std::string other_version = good;
  other_version[24] = '9';
  CHECK(thrown([&] { load(other_version); }).find("another XGrammar version") != std::string::npos);
  Vocabulary other = bytes_vocabulary();
  other.tokens[7] = "x";
  CHECK(thrown([&] { make_xgrammar_engine(other)->load(as_bytes(good)); }).find("another vocabulary") != std::string::npos);
  std::string broken = good;
  broken[good.size() / 2] = '\1';
  CHECK(thrown([&] { load(broken); }) != "");
}

TEST(what_the_core_would_drop_is_told_and_gives_no_artifact) {
  XGrammarCompiler compiler(bytes_vocabulary(), size_t{16} << 20, 1);
  for (int round = 0; round < 2; ++round) {
    const CompileResult result = compiler.compile(SourceKind::kEbnf, "root ::= Regex(\"a(?=b)c\")\n");
    CHECK(!result.warnings.empty());
    CHECK(result.bytes.empty());
  }
  CHECK(thrown([&] { compiler.compile(SourceKind::kEbnf, "root ::= nobody\n"); }).find("nobody") != std::string::npos);
}

// As released, XGrammar 0.2.8 accepts both texts; xgrammar.cmake says why.
TEST(the_cores_two_automaton_faults_are_mended) {
  const auto optional = load(compile(SourceKind::kEbnf, "root ::= Regex(\"(?:b+ac)?b\")\n"));
  CHECK(matches(*optional, "bacb"));
  CHECK(!matches(*optional, "bb"));
  const auto leaves = load(compile(SourceKind::kEbnf, "root ::= Regex(\"[bc]|(?:[bc](?:[bc](?:[bc]|)|)|)\")\n"));
  CHECK(matches(*leaves, "bcb"));
  CHECK(!matches(*leaves, "bbbb"));
}

TEST(threads_drive_their_own_matchers_of_one_artifact) {
  const auto artifact = load(compile(SourceKind::kEbnf, "root ::= item (\",\" item)*\nitem ::= [0-9]+ | \"[\" root \"]\"\n"));
  std::atomic<int> right{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      const std::string text = std::string(static_cast<size_t>(t) + 1, '[') + "12,3" + std::string(static_cast<size_t>(t) + 1, ']') + ",45";
      for (int i = 0; i < 50; ++i) right += matches(*artifact, text) ? 1 : 0;
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(right == 200);
}

}  // namespace
