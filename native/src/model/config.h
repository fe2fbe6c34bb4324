// What a dense Llama-like transformer is, as data. Read from GGUF metadata or from a Hugging Face config.json.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ops/step.h"

namespace sluice {

struct ModelConfig {
  std::string name;
  std::string architecture;  // "llama", "qwen2", "qwen3": a key of families.h
  int32_t vocab_size = 0;
  int32_t context_length = 0;
  int32_t hidden = 0;
  int32_t inter = 0;
  int32_t n_layers = 0;
  int32_t n_heads = 0;
  int32_t n_kv_heads = 0;
  int32_t head_dim = 0;
  float norm_eps = 0;
  double rope_theta = 10000.0;
  std::vector<float> inv_frequency;  // [head_dim / 2], long-context scaling applied
  std::vector<Token> stop_ids;
  // GGUF files say "tied" by having no output.weight; config.json says it outright, and then it is binding.
  enum class Head : uint8_t { own_if_present, own, tied } head = Head::own_if_present;
};

// Checks ranges and divisibility; throws std::runtime_error naming the value. Every reader calls it last.
void validate(const ModelConfig& config);

// 1 / theta^(2i / dim) in fp32, as HF computes it.
std::vector<float> rope_inv_frequency(double theta, int32_t dim);

class GgufFile;
ModelConfig read_gguf_config(const GgufFile& file);
// folder holds config.json and, optionally, generation_config.json (more stop ids).
ModelConfig read_hf_config(const std::string& folder);

}  // namespace sluice
