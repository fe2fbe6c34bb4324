// Model families as data: how files name the parts, and which parts a family has.
#pragma once

#include <span>
#include <string_view>

namespace sluice {

struct Family {
  std::string_view gguf;               // general.architecture
  std::span<const std::string_view> hf;  // config.json "architectures"
  bool qkv_bias;                       // q, k, v have biases even where the config does not say so
  bool qk_norm;                        // RMSNorm over each head of q and k before the rotation
  bool gguf_interleaved_rope;          // GGUF files of this family store q and k with rotary pairs side by side
};

// Null when unknown.
const Family* find_family_gguf(std::string_view architecture);
const Family* find_family_hf(std::string_view architecture);

// Tensor names. A layer's are prefix + number + '.' + part + ".weight" or ".bias".
struct NameMap {
  std::string_view embedding, final_norm, head;  // whole names
  std::string_view layer_prefix;
  std::string_view attention_norm, q, k, v, o, q_norm, k_norm, mlp_norm, gate, up, down;
};
extern const NameMap kGgufNames;
extern const NameMap kHfNames;

}  // namespace sluice
