#include <algorithm>
#include <limits>
#include <stdexcept>

#include "io/gguf.h"
#include "model/config.h"
#include "model/families.h"

namespace sluice {

ModelConfig read_gguf_config(const GgufFile& file) {
  ModelConfig c;
  const std::string* architecture = file.string("general.architecture");
  if (architecture == nullptr) throw std::runtime_error("GGUF file names no general.architecture");
  c.architecture = *architecture;
  if (find_family_gguf(c.architecture) == nullptr) throw std::runtime_error("unknown model architecture \"" + c.architecture + "\"");
  const std::string* name = file.string("general.name");
  c.name = name != nullptr ? *name : c.architecture;

  const auto key = [&](const char* suffix) { return c.architecture + "." + suffix; };
  const auto optional = [&](const std::string& k, int64_t fallback) {
    const int64_t value = file.integer(k).value_or(fallback);
    if (value < 0 || value > std::numeric_limits<int32_t>::max()) throw std::runtime_error("GGUF key " + k + " is out of range");
    return static_cast<int32_t>(value);
  };
  const auto required = [&](const char* suffix) {
    if (!file.integer(key(suffix))) throw std::runtime_error("GGUF key " + key(suffix) + " is missing");
    return optional(key(suffix), 0);
  };
  c.hidden = required("embedding_length");
  c.n_layers = required("block_count");
  c.inter = required("feed_forward_length");
  c.n_heads = required("attention.head_count");
  c.context_length = required("context_length");
  c.n_kv_heads = optional(key("attention.head_count_kv"), c.n_heads);
  if (c.n_heads == 0) throw std::runtime_error("GGUF key " + key("attention.head_count") + " is zero");
  c.head_dim = optional(key("attention.key_length"), c.hidden / c.n_heads);
  if (optional(key("attention.value_length"), c.head_dim) != c.head_dim) {
    throw std::runtime_error("keys and values of different width are not built");
  }
  if (optional(key("attention.sliding_window"), 0) != 0) throw std::runtime_error("sliding-window attention is not built");
  if (optional(key("expert_count"), 0) != 0) throw std::runtime_error("mixture-of-experts models are read from safetensors folders only, not from GGUF files");
  const auto eps = file.number(key("attention.layer_norm_rms_epsilon"));
  if (!eps) throw std::runtime_error("GGUF key " + key("attention.layer_norm_rms_epsilon") + " is missing");
  c.norm_eps = static_cast<float>(*eps);

  const auto tokens = file.array_count("tokenizer.ggml.tokens");
  c.vocab_size = optional(key("vocab_size"), tokens ? static_cast<int64_t>(std::min<uint64_t>(*tokens, 1u << 30)) : 0);

  const int32_t rope_dim = optional(key("rope.dimension_count"), c.head_dim);
  c.rope_theta = file.number(key("rope.freq_base")).value_or(10000.0);
  c.inv_frequency = rope_inv_frequency(c.rope_theta, rope_dim);
  const std::string* scaling = file.string(key("rope.scaling.type"));
  if (scaling != nullptr && *scaling == "linear") {
    const double factor = file.number(key("rope.scaling.factor")).value_or(1.0);
    for (float& f : c.inv_frequency) f = static_cast<float>(f / factor);
  } else if (scaling != nullptr && *scaling != "none") {
    throw std::runtime_error("rope scaling \"" + *scaling + "\" is not built");
  }

  for (const char* stop : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}) {
    const auto id = file.integer(stop);
    if (!id) continue;
    if (*id < 0 || *id >= c.vocab_size) throw std::runtime_error(std::string("GGUF key ") + stop + " is outside the vocabulary");
    const auto token = static_cast<Token>(*id);
    if (std::ranges::find(c.stop_ids, token) == c.stop_ids.end()) c.stop_ids.push_back(token);
  }
  validate(c);
  return c;
}

}  // namespace sluice
