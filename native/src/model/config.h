// What a Llama-like transformer is, as data: dense or mixture-of-experts, grouped-query or latent attention. Read from GGUF metadata or from a Hugging Face config.json.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ops/ops.h"

namespace sluice {

// Multi-head latent attention (DeepSeek-V2); latent = 0: the model has heads of their own instead.
struct MlaConfig {
  int32_t latent = 0;    // kv_lora_rank
  int32_t q_latent = 0;  // q_lora_rank; 0 = queries come straight from the hidden state
  int32_t nope = 0;      // head dimensions without rotation
  int32_t rope = 0;      // and with it
  int32_t value = 0;     // width of a value head
};

struct ModelConfig {
  std::string name;
  std::string architecture;  // "llama", "qwen2", "qwen3": a key of families.h
  int32_t vocab_size = 0;
  int32_t context_length = 0;
  int32_t hidden = 0;
  int32_t inter = 0;         // of dense layers
  int32_t n_layers = 0;
  int32_t n_heads = 0;
  int32_t n_kv_heads = 0;
  int32_t head_dim = 0;      // of queries and keys; with latent attention nope + rope
  float norm_eps = 0;
  double rope_theta = 10000.0;
  std::vector<float> inv_frequency;  // [head_dim / 2], or [mla.rope / 2]; long-context scaling applied
  float rope_magnitude = 1.0f;       // multiplies cos and sin (YaRN)
  float attention_factor = 1.0f;     // multiplies 1 / sqrt(head_dim)
  std::vector<int32_t> windows;      // [n_layers], tokens a layer's attention sees, 0 = all; empty = all layers see all
  MlaConfig mla;
  MoeSpec moe;                       // n_experts = 0: dense
  int32_t expert_inter = 0;
  int32_t shared_inter = 0;          // width of the shared experts together; a multiple of expert_inter
  std::vector<bool> moe_layers;      // [n_layers]; empty = all, if there are experts
  std::vector<Token> stop_ids;
  // GGUF files say "tied" by having no output.weight; config.json says it outright, and then it is binding.
  enum class Head : uint8_t { own_if_present, own, tied } head = Head::own_if_present;
};

inline int32_t window_of(const ModelConfig& config, int32_t layer) {
  return config.windows.empty() ? 0 : config.windows[static_cast<size_t>(layer)];
}
inline bool is_moe_layer(const ModelConfig& config, int32_t layer) {
  return config.moe.n_experts > 0 && (config.moe_layers.empty() || config.moe_layers[static_cast<size_t>(layer)]);
}

// Checks ranges and divisibility; throws std::runtime_error naming the value. Every reader calls it last.
void validate(const ModelConfig& config);

// 1 / theta^(2i / dim) in fp32, as HF computes it.
std::vector<float> rope_inv_frequency(double theta, int32_t dim);

class GgufFile;
ModelConfig read_gguf_config(const GgufFile& file);
// folder holds config.json and, optionally, generation_config.json (more stop ids).
ModelConfig read_hf_config(const std::string& folder);

}  // namespace sluice
