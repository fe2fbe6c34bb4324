#include "model/families.h"

#include <algorithm>
#include <array>

namespace sluice {

namespace {

// Mistral is a Llama with an optional sliding window; its GGUF files say so themselves.
constexpr std::array<std::string_view, 2> kLlamaNames = {"LlamaForCausalLM", "MistralForCausalLM"};
constexpr std::array<std::string_view, 1> kQwen2Names = {"Qwen2ForCausalLM"};
constexpr std::array<std::string_view, 1> kQwen3Names = {"Qwen3ForCausalLM"};
constexpr std::array<std::string_view, 1> kMixtralNames = {"MixtralForCausalLM"};
constexpr std::array<std::string_view, 1> kQwen2MoeNames = {"Qwen2MoeForCausalLM"};
constexpr std::array<std::string_view, 1> kQwen3MoeNames = {"Qwen3MoeForCausalLM"};
constexpr std::array<std::string_view, 1> kOlmoeNames = {"OlmoeForCausalLM"};
constexpr std::array<std::string_view, 1> kGptOssNames = {"GptOssForCausalLM"};
constexpr std::array<std::string_view, 1> kDeepseekV2Names = {"DeepseekV2ForCausalLM"};
constexpr std::array<std::string_view, 1> kDeepseekV3Names = {"DeepseekV3ForCausalLM"};

constexpr MoeNames kMixtralMoe = {
    .router = "block_sparse_moe.gate", .selection_bias = {}, .experts = "block_sparse_moe.experts",
    .gate = "w1", .up = "w3", .down = "w2", .shared = {}, .shared_gate = {}};
constexpr MoeNames kQwen3Moe = {
    .router = "mlp.gate", .selection_bias = {}, .experts = "mlp.experts",
    .gate = "gate_proj", .up = "up_proj", .down = "down_proj", .shared = {}, .shared_gate = {}};
constexpr MoeNames kQwen2Moe = {
    .router = "mlp.gate", .selection_bias = {}, .experts = "mlp.experts",
    .gate = "gate_proj", .up = "up_proj", .down = "down_proj",
    .shared = "mlp.shared_expert", .shared_gate = "mlp.shared_expert_gate"};
constexpr MoeNames kDeepseekV2Moe = {
    .router = "mlp.gate", .selection_bias = {}, .experts = "mlp.experts",
    .gate = "gate_proj", .up = "up_proj", .down = "down_proj", .shared = "mlp.shared_experts", .shared_gate = {}};
constexpr MoeNames kDeepseekV3Moe = {
    .router = "mlp.gate", .selection_bias = "mlp.gate.e_score_correction_bias", .experts = "mlp.experts",
    .gate = "gate_proj", .up = "up_proj", .down = "down_proj", .shared = "mlp.shared_experts", .shared_gate = {}};
constexpr MoeNames kGptOssMoe = {
    .router = "mlp.router", .router_bias = true, .selection_bias = {}, .experts = "mlp.experts", .gate = {}, .up = {}, .down = {},
    .shared = {}, .shared_gate = {}, .fused = true};

constexpr std::array<Family, 10> kFamilies = {{
    {.gguf = "llama", .hf = kLlamaNames, .gguf_interleaved_rope = true},
    {.gguf = "qwen2", .hf = kQwen2Names, .qkv_bias = true},
    {.gguf = "qwen3", .hf = kQwen3Names, .qk_norm = QkNorm::head},
    {.gguf = "mixtral", .hf = kMixtralNames, .moe = &kMixtralMoe, .renormalise = true},
    {.gguf = "qwen2moe", .hf = kQwen2MoeNames, .qkv_bias = true, .moe = &kQwen2Moe},
    {.gguf = "qwen3moe", .hf = kQwen3MoeNames, .qk_norm = QkNorm::head, .moe = &kQwen3Moe},
    {.gguf = "olmoe", .hf = kOlmoeNames, .qk_norm = QkNorm::whole, .moe = &kQwen3Moe},
    {.gguf = "gpt-oss", .hf = kGptOssNames, .qkv_bias = true, .sinks = true, .moe = &kGptOssMoe,
     .route = RouteKind::topk_softmax, .activation = ActivationKind::swiglu_clamped},
    {.gguf = "deepseek2", .hf = kDeepseekV2Names, .mla = true, .moe = &kDeepseekV2Moe},
    // GGUF files call both DeepSeek-V2 and V3 deepseek2.
    {.gguf = "deepseek3", .hf = kDeepseekV3Names, .mla = true, .moe = &kDeepseekV3Moe,
     .route = RouteKind::sigmoid_bias_grouped, .renormalise = true},
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
    .sinks = {},
    .q_a = {},
    .q_a_norm = {},
    .q_b = {},
    .kv_a = {},
    .kv_a_norm = {},
    .kv_b = {},
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
    .sinks = "self_attn.sinks",
    .q_a = "self_attn.q_a_proj",
    .q_a_norm = "self_attn.q_a_layernorm",
    .q_b = "self_attn.q_b_proj",
    .kv_a = "self_attn.kv_a_proj_with_mqa",
    .kv_a_norm = "self_attn.kv_a_layernorm",
    .kv_b = "self_attn.kv_b_proj",
};

}  // namespace sluice
