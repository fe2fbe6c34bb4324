#include "model/families.h"

#include <algorithm>
#include <array>

namespace sluice {

namespace {

// Mistral without a sliding window is a Llama; its GGUF files say so themselves.
constexpr std::array<std::string_view, 2> kLlamaNames = {"LlamaForCausalLM", "MistralForCausalLM"};
constexpr std::array<std::string_view, 1> kQwen2Names = {"Qwen2ForCausalLM"};
constexpr std::array<std::string_view, 1> kQwen3Names = {"Qwen3ForCausalLM"};

constexpr std::array<Family, 3> kFamilies = {{
    {"llama", kLlamaNames, false, false, true},
    {"qwen2", kQwen2Names, true, false, false},
    {"qwen3", kQwen3Names, false, true, false},
}};

}  // namespace

const Family* find_family_gguf(std::string_view architecture) {
  for (const Family& family : kFamilies) {
    if (family.gguf == architecture) return &family;
  }
  return nullptr;
}

const Family* find_family_hf(std::string_view architecture) {
  for (const Family& family : kFamilies) {
    if (std::ranges::find(family.hf, architecture) != family.hf.end()) return &family;
  }
  return nullptr;
}

const NameMap kGgufNames = {
    .embedding = "token_embd.weight",
    .final_norm = "output_norm.weight",
    .head = "output.weight",
    .layer_prefix = "blk.",
    .attention_norm = "attn_norm",
    .q = "attn_q",
    .k = "attn_k",
    .v = "attn_v",
    .o = "attn_output",
    .q_norm = "attn_q_norm",
    .k_norm = "attn_k_norm",
    .mlp_norm = "ffn_norm",
    .gate = "ffn_gate",
    .up = "ffn_up",
    .down = "ffn_down",
};

const NameMap kHfNames = {
    .embedding = "model.embed_tokens.weight",
    .final_norm = "model.norm.weight",
    .head = "lm_head.weight",
    .layer_prefix = "model.layers.",
    .attention_norm = "input_layernorm",
    .q = "self_attn.q_proj",
    .k = "self_attn.k_proj",
    .v = "self_attn.v_proj",
    .o = "self_attn.o_proj",
    .q_norm = "self_attn.q_norm",
    .k_norm = "self_attn.k_norm",
    .mlp_norm = "post_attention_layernorm",
    .gate = "mlp.gate_proj",
    .up = "mlp.up_proj",
    .down = "mlp.down_proj",
};

}  // namespace sluice
