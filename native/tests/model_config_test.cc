// What a config.json may say about experts, windows and latents, and what is refused because it would be computed wrongly.
#include <filesystem>
#include <fstream>
#include <unistd.h>

#include "check.h"
#include "model/config.h"
#include "model_support.h"

using namespace sluice;
using namespace sluice::test;

namespace {

// A copy of a golden's folder with its configuration changed.
class Changed {
 public:
  Changed(const std::string& golden, const std::vector<std::pair<std::string, std::string>>& changes)
      : folder_((std::filesystem::temp_directory_path() / ("sluice-config-" + std::to_string(::getpid()))).string()) {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directory(folder_);
    std::string config = read_file(goldens(golden + "/config.json"));
    for (const auto& [from, to] : changes) {
      const size_t at = config.find(from);
      if (at == std::string::npos) throw std::runtime_error("the golden's config.json lacks " + from);
      config.replace(at, from.size(), to);
    }
    std::ofstream(folder_ + "/config.json") << config;
    std::filesystem::create_symlink(goldens(golden + "/model.safetensors"), folder_ + "/model.safetensors");
  }
  ~Changed() { std::filesystem::remove_all(folder_); }
  Changed(const Changed&) = delete;
  Changed& operator=(const Changed&) = delete;

  ModelConfig config() const { return read_hf_config(folder_); }
  std::unique_ptr<Model> load() const { return load_model({.path = folder_, .precision = Precision::exact, .threads = 1, .progress = {}}); }

 private:
  std::string folder_;
};

}  // namespace

TEST(groups_of_layers_are_told_with_their_windows_and_sizes) {
  const auto groups = Changed("gpt-oss", {}).load()->info().kv_groups;
  CHECK_EQ(groups.size(), size_t{2});
  CHECK(groups[0].kind == KvGroupKind::sliding && groups[1].kind == KvGroupKind::full);
  CHECK_EQ(groups[0].window, 12);
  CHECK_EQ(groups[1].window, 0);
  for (const KvGroupSpec& group : groups) {
    CHECK_EQ(group.n_layers, 2);
    CHECK_EQ(group.bytes_per_block, int64_t{2 * 2 * 8 * 16 * 4} * 2);  // K and V, 2 heads of 8, 16 tokens, fp32, 2 layers
  }
  const auto latent = Changed("deepseek-v2", {}).load()->info().kv_groups;
  CHECK_EQ(latent.size(), size_t{1});
  CHECK(latent[0].kind == KvGroupKind::mla_latent);
  CHECK_EQ(latent[0].bytes_per_block, int64_t{(16 + 8) * 16 * 4} * 3);
  CHECK(Changed("mistral-window", {}).load()->info().kv_groups[0].kind == KvGroupKind::sliding);
}

TEST(a_window_as_long_as_the_context_is_none) {
  CHECK(Changed("mistral-window", {{"\"sliding_window\": 12", "\"sliding_window\": 256"}}).config().windows.empty());
}

TEST(older_names_mean_the_same) {
  // As published for DeepSeek-V2 and Qwen3-MoE, before transformers 5.
  const ModelConfig deepseek = Changed("deepseek-v2", {{"\"rope_parameters\"", "\"rope_theta\": 10000.0, \"rope_scaling\""},
                                                       {"\"rope_type\": \"yarn\"", "\"type\": \"yarn\""}}).config();
  const ModelConfig as_written = Changed("deepseek-v2", {}).config();
  CHECK(deepseek.inv_frequency == as_written.inv_frequency);
  CHECK_EQ(deepseek.attention_factor, as_written.attention_factor);
  CHECK_EQ(deepseek.rope_magnitude, as_written.rope_magnitude);
  CHECK(deepseek.attention_factor > 1.1f);
  const ModelConfig qwen = Changed("qwen3-moe", {{"\"num_local_experts\"", "\"num_experts\""}}).config();
  CHECK_EQ(qwen.moe.n_experts, 8);
  CHECK(qwen.moe_layers == (std::vector<bool>{true, false, true}));
  CHECK(Changed("qwen3-moe", {{"\"decoder_sparse_step\": 1", "\"decoder_sparse_step\": 3"}}).config().moe_layers ==
        (std::vector<bool>{false, false, true}));
}

TEST(what_would_be_computed_wrongly_is_refused) {
  const auto refuse = [](const char* golden, const char* from, const char* to, const char* reason) {
    CHECK_THROWS(Changed(golden, {{from, to}}).load(), reason);
  };
  refuse("olmoe", "\"clip_qkv\": null", "\"clip_qkv\": 8.0", "clip_qkv is not built");
  refuse("gpt-oss", "\"full_attention\"", "\"chunked_attention\"", "layer type \"chunked_attention\" is not built");
  refuse("gpt-oss", "\"num_hidden_layers\": 4", "\"num_hidden_layers\": 3", "one type a layer");
  refuse("gpt-oss-mxfp4", "\"mxfp4\"", "\"fp8\"", "quantised checkpoints are not built");
  refuse("mixtral", "\"vocab_size\": 93", "\"vocab_size\": 93, \"quantization_config\": {\"quant_method\": \"mxfp4\"}", "quantised checkpoints");
  refuse("mixtral", "\"num_local_experts\": 8", "\"num_local_experts\": 9", "gate.weight has shape");
  refuse("mixtral", "\"num_experts_per_tok\": 2", "\"num_experts_per_tok\": 9", "experts a token is 9");
  refuse("qwen2-moe", "\"shared_expert_intermediate_size\": 40", "\"shared_expert_intermediate_size\": 30", "no multiple of a routed one");
  refuse("deepseek-v2", "\"norm_topk_prob\": false", "\"norm_topk_prob\": true", "norm_topk_prob is not built");
  refuse("deepseek-v2", "\"group_limited_greedy\"", "\"other\"", "topk_method \"other\" is not built");
  refuse("deepseek-v2", "\"topk_group\": 2", "\"topk_group\": 9", "more groups are to be kept");
  refuse("deepseek-v2", "\"q_lora_rank\": 24", "\"q_lora_rank\": null", "q_proj.weight is missing");
}
