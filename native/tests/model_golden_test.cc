// `exact` against Hugging Face transformers (goldens/make_goldens.py), `fast` against `exact`.
#include <algorithm>
#include <cmath>

#include "check.h"
#include "model_support.h"

using namespace sluice;
using namespace sluice::test;

namespace {

json::Value expected_of(const std::string& folder) { return json::parse(read_file(goldens(folder + "/expected.json"))); }

void check_tiny(const std::string& name) {
  const json::Value expected = expected_of(name);
  const std::vector<Token> prompt = tokens_of(*expected.find("prompt"));
  const std::vector<float> wanted = read_floats(goldens(name + "/logits.f32"));
  Session session(goldens(name), Precision::exact, 1, 1, 128);
  const std::vector<float> logits = session.step({{0, prompt, static_cast<int>(prompt.size())}});
  CHECK_EQ(logits.size(), wanted.size());
  double worst = 0;
  for (size_t i = 0; i < logits.size(); ++i) worst = std::max(worst, std::fabs(double{logits[i]} - double{wanted[i]}));
  CHECK_NEAR(worst, 0, 2e-5);
  std::fprintf(stderr, "  %s: max |d| of logits %.2g\n", name.c_str(), worst);
  session.lengths[0] = 0;
  CHECK(session.greedy(0, prompt, 64) == tokens_of(*expected.find("greedy")));
}

}  // namespace

TEST(a_llama_with_grouped_heads_and_a_tied_head_equals_transformers) { check_tiny("llama-gqa-tied"); }
TEST(a_llama_with_biases_and_llama3_rope_equals_transformers) { check_tiny("llama-untied-bias"); }
TEST(a_qwen2_equals_transformers) { check_tiny("qwen2"); }
TEST(a_qwen3_equals_transformers) { check_tiny("qwen3"); }

TEST(a_mistral_with_a_sliding_window_equals_transformers) { check_tiny("mistral-window"); }
TEST(a_mixtral_equals_transformers) { check_tiny("mixtral"); }
TEST(a_qwen2_moe_with_gated_shared_experts_equals_transformers) { check_tiny("qwen2-moe"); }
TEST(a_qwen3_moe_with_a_dense_layer_equals_transformers) { check_tiny("qwen3-moe"); }
TEST(a_olmoe_equals_transformers) { check_tiny("olmoe"); }
TEST(a_gpt_oss_equals_transformers) { check_tiny("gpt-oss"); }
TEST(a_gpt_oss_with_mxfp4_experts_equals_transformers) { check_tiny("gpt-oss-mxfp4"); }
TEST(a_deepseek_v2_with_grouped_experts_and_yarn_equals_transformers) { check_tiny("deepseek-v2"); }
TEST(a_deepseek_v2_without_a_query_latent_equals_transformers) { check_tiny("deepseek-v2-lite"); }
TEST(a_deepseek_v3_equals_transformers) { check_tiny("deepseek-v3"); }

TEST(a_tiny_family_in_fast_stays_close_to_exact) {
  for (const char* name : {"llama-gqa-tied", "mistral-window", "mixtral", "qwen2-moe", "qwen3-moe", "olmoe", "gpt-oss",
                           "gpt-oss-mxfp4", "deepseek-v2", "deepseek-v3"}) {
    const std::vector<Token> prompt = tokens_of(*expected_of(name).find("prompt"));
    Session session(goldens(name), Precision::fast, 1, 1, 128);
    const std::vector<float> logits = session.step({{0, prompt, static_cast<int>(prompt.size())}});
    const std::vector<float> wanted = read_floats(goldens(std::string(name) + "/logits.f32"));
    std::vector<double> errors;  // relative, a position
    const auto vocab = static_cast<size_t>(session.vocab());
    for (size_t at = 0; at < wanted.size(); at += vocab) {
      double d = 0, size = 0;
      for (size_t i = at; i < at + vocab; ++i) {
        d += std::pow(double{logits[i]} - double{wanted[i]}, 2);
        size += std::pow(double{wanted[i]}, 2);
      }
      errors.push_back(std::sqrt(d / size));
    }
    std::ranges::sort(errors);
    // The median: rounded weights make a token near a tie visit another expert, and then its logits are others.
    std::fprintf(stderr, "  %s: relative error of logits, median %.4f, largest %.4f\n", name, errors[errors.size() / 2], errors.back());
    CHECK(errors[errors.size() / 2] < 0.1);
  }
}

TEST(smollm2_exact_equals_transformers) {
  const json::Value expected = expected_of("smollm2");
  const std::vector<float> wanted = read_floats(goldens("smollm2/logits.f32"));
  const std::string wide_bytes = read_file(goldens("smollm2/logits.f64"));
  std::vector<double> wide(wide_bytes.size() / 8);
  std::memcpy(wide.data(), wide_bytes.data(), wide_bytes.size());
  CHECK_EQ(wide.size(), wanted.size());
  const std::vector<Token> probe = tokens_of(*expected.find("probe"));
  Session session(smollm2_path(), Precision::exact, 2, 1, 512, 256, 256);
  size_t at = 0;
  // Largest distances: ours to transformers in fp32 and in fp64, and between those two.
  double to_fp32 = 0, to_fp64 = 0, between = 0;
  for (const auto& [name, prompt] : *expected.find("prompts")->object()) {
    const std::vector<Token> ids = tokens_of(*prompt.find("ids"));
    session.lengths[0] = 0;
    const std::vector<float> logits = session.step({{0, ids, static_cast<int>(ids.size())}});
    for (const json::Value& entry : *expected.find("cases")->array()) {
      if (*entry.find("prompt")->string() != name) continue;
      const float* row = logits.data() + *entry.find("position")->integer() * session.vocab();
      std::vector<Token> columns = probe;
      for (const Token id : tokens_of(*entry.find("top"))) columns.push_back(id);
      for (const Token id : columns) {
        const double in_fp32 = wanted.at(at), in_fp64 = wide.at(at);
        to_fp32 = std::max(to_fp32, std::fabs(double{row[id]} - in_fp32));
        to_fp64 = std::max(to_fp64, std::fabs(double{row[id]} - in_fp64));
        between = std::max(between, std::fabs(in_fp32 - in_fp64));
        ++at;
      }
    }
    session.lengths[0] = 0;
    CHECK(session.greedy(0, ids, 64) == tokens_of(*prompt.find("greedy")));
  }
  CHECK_EQ(at, wanted.size());
  std::fprintf(stderr, "  smollm2: max |d| of logits %.2g to fp32, %.2g to fp64; fp32 to fp64 %.2g\n", to_fp32, to_fp64, between);
  // The logits reach 42, and transformers' own rounding moves them by several 1e-5: an absolute 2e-5 between two fp32 runs
  // would be luck. So: 2e-6 of the largest logit, and nearer to the fp64 run than transformers' fp32 run is.
  CHECK_NEAR(to_fp32, 0, 1e-4);
  CHECK_NEAR(to_fp64, 0, 5e-5);
  CHECK(to_fp64 < between);
}

TEST(smollm2_fast_stays_close_to_exact) {
  const json::Value expected = expected_of("smollm2");
  Session exact(smollm2_path(), Precision::exact, 2, 1, 512, 512, 512);
  Session fast(smollm2_path(), Precision::fast, 2, 1, 512, 512, 512);
  const int vocab = exact.vocab();
  double nll[2] = {0, 0};
  double hf_nll = 0;
  int same = 0, total = 0;
  const json::Array& texts = *expected.find("texts")->array();
  for (size_t t = 0; t < texts.size(); ++t) {
    const std::vector<Token> ids = tokens_of(texts[t]);
    double value = 0;
    (*expected.find("texts_nll")->array())[t].number(value);
    hf_nll += value;
    exact.lengths[0] = fast.lengths[0] = 0;
    const std::vector<float> logits[2] = {exact.step({{0, ids, static_cast<int>(ids.size())}}),
                                          fast.step({{0, ids, static_cast<int>(ids.size())}})};
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      Token best[2];
      for (int p = 0; p < 2; ++p) {
        const float* row = logits[p].data() + i * static_cast<size_t>(vocab);
        best[p] = argmax(row, vocab);
        double sum = 0;
        for (int v = 0; v < vocab; ++v) sum += std::exp(double{row[v]} - double{row[best[p]]});
        nll[p] += std::log(sum) + double{row[best[p]]} - double{row[ids[i + 1]]};
      }
      same += best[0] == best[1];
      ++total;
    }
  }
  const double agreement = static_cast<double>(same) / total;
  const double ratio = std::exp((nll[1] - nll[0]) / total);
  std::fprintf(stderr, "  %d tokens: top-1 agreement %.4f, perplexity %.4f exact, x %.5f fast\n", total, agreement,
               std::exp(nll[0] / total), ratio);
  CHECK_NEAR(nll[0] / total, hf_nll / total, 1e-5);
  CHECK(agreement >= 0.98);
  CHECK(ratio <= 1.01);
}
