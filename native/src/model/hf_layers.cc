// What config.json says about layers that are not plain: sliding windows and experts.
#include <algorithm>

#include "model/hf_values.h"

namespace sluice {

namespace {

void read_windows(const HfValues& values, const Family& family, ModelConfig& c) {
  const int32_t window = values.integer("sliding_window", 0);
  const bool may_slide = values.flag("use_sliding_window", true);
  // A window that is switched off, or as long as the context, masks nothing.
  if (window == 0 || window >= c.context_length || !may_slide) return;
  const json::Value* types = values.root().find("layer_types");
  if (types == nullptr) {
    // Mistral and Mixtral slide everywhere; in other families which layers do is the file's to say.
    if (family.gguf != "llama" && family.gguf != "mixtral") throw std::runtime_error("config.json has sliding_window but no layer_types");
    c.windows.assign(static_cast<size_t>(c.n_layers), window);
    return;
  }
  if (types->array() == nullptr || static_cast<int32_t>(types->array()->size()) != c.n_layers) {
    throw std::runtime_error("config.json: layer_types does not name one type a layer");
  }
  for (const json::Value& type : *types->array()) {
    const std::string name = type.string() == nullptr ? "" : *type.string();
    const bool slides = name == "sliding_attention";
    if (!slides && name != "full_attention") throw std::runtime_error("config.json: layer type \"" + name + "\" is not built");
    c.windows.push_back(slides ? window : 0);
  }
}

void read_moe_layers(const HfValues& values, ModelConfig& c) {
  const int32_t first = values.integer("first_k_dense_replace", 0);                  // DeepSeek
  const int32_t every = values.integer("decoder_sparse_step", values.integer("moe_layer_freq", 1));  // Qwen; DeepSeek
  if (every < 1) throw std::runtime_error("config.json: decoder_sparse_step is zero");
  // Qwen counts from 1, DeepSeek from 0; only 1 means the same to both.
  const bool from_one = values.has("decoder_sparse_step");
  for (int32_t i = 0; i < c.n_layers; ++i) c.moe_layers.push_back(i >= first && (i + (from_one ? 1 : 0)) % every == 0);
  const json::Value* dense = values.root().find("mlp_only_layers");
  if (dense == nullptr || dense->array() == nullptr) return;
  for (const json::Value& layer : *dense->array()) {
    const int64_t* i = layer.integer();
    if (i == nullptr || *i < 0 || *i >= c.n_layers) throw std::runtime_error("config.json: mlp_only_layers names no layer");
    c.moe_layers[static_cast<size_t>(*i)] = false;
  }
}

void read_moe(const HfValues& values, const Family& family, ModelConfig& c) {
  for (const char* key : {"num_local_experts", "num_experts", "n_routed_experts"}) {
    if (c.moe.n_experts == 0) c.moe.n_experts = values.integer(key, 0);
  }
  if (c.moe.n_experts == 0) throw std::runtime_error("config.json does not say how many experts there are");
  c.moe.top_k = values.integer("num_experts_per_tok");
  c.expert_inter = values.integer("moe_intermediate_size", c.inter);
  c.moe.route = family.route;
  c.moe.renormalise = values.flag("norm_topk_prob", family.renormalise);
  c.moe.scale = static_cast<float>(values.number("routed_scaling_factor", 1.0));
  c.moe.activation.kind = family.activation;
  c.moe.activation.limit = static_cast<float>(values.number("swiglu_limit", 7.0));
  c.shared_inter = values.integer("shared_expert_intermediate_size", 0);
  if (c.shared_inter == 0) c.shared_inter = values.integer("n_shared_experts", 0) * c.expert_inter;
  if (family.moe->shared.empty()) c.shared_inter = 0;

  // DeepSeek-V2 says by name whether groups count; V3 always uses them.
  const std::string method = values.text("topk_method", family.route == RouteKind::sigmoid_bias_grouped ? "noaux_tc" : "greedy");
  if (method == "group_limited_greedy" || method == "noaux_tc") {
    c.moe.n_groups = values.integer("n_group", 1);
    c.moe.top_groups = values.integer("topk_group", 1);
  } else if (method != "greedy") {
    throw std::runtime_error("config.json: topk_method \"" + method + "\" is not built");
  }
  // Its own code and transformers' disagree on what this means there; no published checkpoint has it.
  if (family.gguf == "deepseek2" && c.moe.renormalise) throw std::runtime_error("config.json: norm_topk_prob is not built for DeepSeek-V2");
  read_moe_layers(values, c);
  if (c.expert_inter > 0) c.moe.n_shared = c.shared_inter / c.expert_inter;
}

}  // namespace

void read_hf_layers(const HfValues& values, const Family& family, ModelConfig& c) {
  read_windows(values, family, c);
  if (values.has("clip_qkv")) throw std::runtime_error("config.json: clip_qkv is not built");
  if (family.moe != nullptr) read_moe(values, family, c);
}

}  // namespace sluice
