// A row's bits depend on nothing but its own tokens: compared bit for bit, in both precisions, on a real model and on tiny
// ones whose widths end inside vectors and blocks.
#include <functional>

#include "check.h"
#include "model_support.h"

using namespace sluice;
using namespace sluice::test;

namespace {

bool same_bits(const float* a, const float* b, size_t n) { return std::memcmp(a, b, n * sizeof(float)) == 0; }

std::vector<Token> some_tokens(int n, int vocab, uint32_t seed) {
  std::vector<Token> out;
  for (int i = 0; i < n; ++i) {
    seed = seed * 1664525u + 1013904223u;
    out.push_back(static_cast<Token>(3 + (seed >> 8) % static_cast<uint32_t>(vocab - 3)));
  }
  return out;
}

// `body(path, precision, context)` for each model and precision.
void each(const std::function<void(const std::string&, Precision, int)>& body) {
  for (const Precision precision : {Precision::exact, Precision::fast}) {
    body(goldens("llama-gqa-tied"), precision, 200);
    body(goldens("qwen3"), precision, 200);
    // Experts with a gated shared one; a window, sinks and MXFP4 experts; latent attention with grouped experts.
    for (const char* name : {"qwen2-moe", "gpt-oss-mxfp4", "deepseek-v2"}) body(goldens(name), precision, 200);
  }
  body(smollm2_path(), Precision::fast, 1100);
}

// Logits after prefilling `tokens` in pieces of `chunk`, then 4 greedy steps; all logits of the last 5 positions.
std::vector<float> run(Session& session, int row, const std::vector<Token>& tokens, size_t chunk) {
  session.lengths[static_cast<size_t>(row)] = 0;
  std::vector<float> out;
  std::vector<float> last;
  for (size_t at = 0; at < tokens.size(); at += chunk) {
    const size_t end = std::min(tokens.size(), at + chunk);
    last = session.step({{row, {tokens.begin() + static_cast<long>(at), tokens.begin() + static_cast<long>(end)}, end == tokens.size() ? 1 : 0}});
  }
  out = last;
  for (int i = 0; i < 4; ++i) {
    last = session.step({{row, {argmax(last.data(), session.vocab())}, 1}});
    out.insert(out.end(), last.begin(), last.end());
  }
  return out;
}

}  // namespace

TEST(a_prompt_in_chunks_gives_the_bits_of_the_whole) {
  each([](const std::string& path, Precision precision, int context) {
    Session session(path, precision, 1, 2, context);
    const std::vector<Token> tokens = some_tokens(context / 2, session.vocab(), 1);
    const std::vector<float> whole = run(session, 0, tokens, 512);
    for (const size_t chunk : {7u, 16u, 33u, 128u}) {
      const std::vector<float> parts = run(session, 1, tokens, chunk);
      CHECK_EQ(parts.size(), whole.size());
      CHECK(same_bits(parts.data(), whole.data(), whole.size()));
    }
  });
}

TEST(one_token_at_a_time_gives_the_bits_of_the_whole) {
  each([](const std::string& path, Precision precision, int context) {
    Session session(path, precision, 1, 2, context);
    const std::vector<Token> tokens = some_tokens(40, session.vocab(), 2);
    const std::vector<float> whole = session.step({{0, tokens, 40}});
    const auto vocab = static_cast<size_t>(session.vocab());
    int different = 0;
    for (size_t i = 0; i < tokens.size(); ++i) {
      const std::vector<float> one = session.step({{1, {tokens[i]}, 1}});
      different += !same_bits(one.data(), whole.data() + i * vocab, vocab);
    }
    CHECK_EQ(different, 0);
  });
}

TEST(a_row_in_a_mixed_batch_gives_the_bits_it_has_alone) {
  each([](const std::string& path, Precision precision, int context) {
    Session alone(path, precision, 1, 1, context);
    Session batch(path, precision, 1, 12, context, 512, 16);
    const auto vocab = static_cast<size_t>(alone.vocab());
    const int long_row = context / 2 > 512 ? 540 : context / 2;
    // Rows of different lengths: one long enough for a second attention split where the model allows it.
    std::vector<std::vector<Token>> prompts;
    for (int row = 0; row < 11; ++row) prompts.push_back(some_tokens(row == 3 ? long_row : 5 + 3 * row, alone.vocab(), 10 + static_cast<uint32_t>(row)));
    std::vector<std::vector<float>> wanted;
    for (const auto& prompt : prompts) wanted.push_back(run(alone, 0, prompt, 512));
    // In the batch: prompts enter one after another in chunks of 13 while the earlier rows decode.
    std::vector<std::vector<float>> got(prompts.size());
    std::vector<size_t> fed(prompts.size(), 0);
    for (int round = 0; round < 200; ++round) {
      std::vector<Session::Piece> pieces;
      for (size_t row = 0; row < prompts.size(); ++row) {
        if (got[row].size() == 5 * vocab) continue;
        const auto id = static_cast<int>(row);
        if (!got[row].empty()) {
          pieces.push_back({id, {argmax(got[row].data() + got[row].size() - vocab, alone.vocab())}, 1});
        } else if (round >= 2 * id) {
          const size_t end = std::min(prompts[row].size(), fed[row] + 13);
          pieces.push_back({id, {prompts[row].begin() + static_cast<long>(fed[row]), prompts[row].begin() + static_cast<long>(end)}, end == prompts[row].size() ? 1 : 0});
          fed[row] = end;
        }
      }
      if (pieces.empty()) break;
      const std::vector<float> logits = batch.step(pieces);
      size_t at = 0;
      for (const Session::Piece& piece : pieces) {
        if (piece.n_logits == 0) continue;
        auto& row = got[static_cast<size_t>(piece.row)];
        row.insert(row.end(), logits.begin() + static_cast<long>(at), logits.begin() + static_cast<long>(at + vocab));
        at += vocab;
      }
    }
    for (size_t row = 0; row < prompts.size(); ++row) {
      CHECK_EQ(got[row].size(), wanted[row].size());
      CHECK(got[row].size() == wanted[row].size() && same_bits(got[row].data(), wanted[row].data(), wanted[row].size()));
    }
  });
}

TEST(two_threads_give_the_bits_of_one) {
  each([](const std::string& path, Precision precision, int context) {
    Session one(path, precision, 1, 1, context);
    Session two(path, precision, 2, 1, context);
    const std::vector<Token> tokens = some_tokens(context - 10, one.vocab(), 3);
    const std::vector<float> a = run(one, 0, tokens, 256);
    const std::vector<float> b = run(two, 0, tokens, 256);
    CHECK_EQ(a.size(), b.size());
    CHECK(same_bits(a.data(), b.data(), a.size()));
  });
}

TEST(instruction_sets_give_the_same_bits) {
  for (const char* name : {"llama-gqa-tied", "gpt-oss-mxfp4", "deepseek-v2"}) {
    std::vector<float> reference;
    for (const char* isa : {"generic", "avx2", "avx512"}) {
      ::setenv("SLUICE_CPU_ISA", isa, 1);
      try {
        Session session(goldens(name), Precision::fast, 1, 1, 200);
        const std::vector<float> got = run(session, 0, some_tokens(60, session.vocab(), 4), 50);
        if (reference.empty()) reference = got;
        CHECK(same_bits(got.data(), reference.data(), got.size()));
      } catch (const std::runtime_error& e) {
        // Only a machine without the instruction set may leave it out.
        CHECK(std::string(e.what()).find("this CPU lacks it") != std::string::npos);
      }
    }
  }
  ::unsetenv("SLUICE_CPU_ISA");
}
