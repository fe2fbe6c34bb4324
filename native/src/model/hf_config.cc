#include <algorithm>
#include <filesystem>
#include <stdexcept>

#include "base/json.h"
#include "base/mapped_file.h"
#include "model/hf_values.h"

namespace sluice {

namespace {

constexpr size_t kMaxConfigBytes = 4u << 20;

json::Value read_json(const std::string& path) {
  const MappedFile file(path);
  if (file.bytes().size() > kMaxConfigBytes) throw std::runtime_error(path + " is too large");
  try {
    return json::parse({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()});
  } catch (const std::runtime_error& e) {
    throw std::runtime_error(path + ": " + e.what());
  }
}

void add_stop_ids(const json::Value& root, ModelConfig& c) {
  const json::Value* ids = root.find("eos_token_id");
  if (ids == nullptr) return;
  const auto add = [&](const json::Value& value) {
    const int64_t* id = value.integer();
    if (id == nullptr || *id < 0 || *id >= c.vocab_size) throw std::runtime_error("eos_token_id is outside the vocabulary");
    const auto token = static_cast<Token>(*id);
    if (std::ranges::find(c.stop_ids, token) == c.stop_ids.end()) c.stop_ids.push_back(token);
  };
  if (const json::Array* list = ids->array()) {
    for (const json::Value& id : *list) add(id);
  } else {
    add(*ids);
  }
}

}  // namespace

ModelConfig read_hf_config(const std::string& folder) {
  const json::Value root = read_json(folder + "/config.json");
  const HfValues config(root);
  ModelConfig c;
  c.name = std::filesystem::path(folder).filename().string();
  const json::Value* architectures = root.find("architectures");
  if (architectures == nullptr || architectures->array() == nullptr || architectures->array()->size() != 1 ||
      architectures->array()->front().string() == nullptr) {
    throw std::runtime_error("config.json names no architecture");
  }
  const std::string& architecture = *architectures->array()->front().string();
  const Family* family = find_family_hf(architecture);
  if (family == nullptr) throw std::runtime_error("unknown model architecture \"" + architecture + "\"");
  c.architecture = family->gguf;

  c.vocab_size = config.integer("vocab_size");
  c.context_length = config.integer("max_position_embeddings");
  c.hidden = config.integer("hidden_size");
  c.inter = config.integer("intermediate_size");
  c.n_layers = config.integer("num_hidden_layers");
  c.n_heads = config.integer("num_attention_heads");
  c.n_kv_heads = config.integer("num_key_value_heads", c.n_heads);
  if (c.n_heads == 0) throw std::runtime_error("config.json: num_attention_heads is zero");
  if (family->mla) {
    c.mla.latent = config.integer("kv_lora_rank");
    c.mla.q_latent = config.integer("q_lora_rank", 0);
    c.mla.nope = config.integer("qk_nope_head_dim");
    c.mla.rope = config.integer("qk_rope_head_dim");
    c.mla.value = config.integer("v_head_dim");
    c.head_dim = c.mla.nope + c.mla.rope;
    c.n_kv_heads = 1;
  } else {
    c.head_dim = config.integer("head_dim", c.hidden / c.n_heads);
  }
  c.norm_eps = static_cast<float>(config.number("rms_norm_eps", 1e-6));
  if (config.text("hidden_act", "silu") != "silu") throw std::runtime_error("config.json: only hidden_act \"silu\" is built");
  if (const json::Value* quantised = root.find("quantization_config")) {
    const json::Value* method = quantised->find("quant_method");
    const bool mxfp4 = method != nullptr && method->string() != nullptr && *method->string() == "mxfp4";
    if (!mxfp4 || family->moe == nullptr || !family->moe->fused) {
      throw std::runtime_error("config.json: quantised checkpoints are not built, but for MXFP4 experts; use a GGUF file");
    }
  }
  if (config.has("tie_word_embeddings")) {
    c.head = config.flag("tie_word_embeddings") ? ModelConfig::Head::tied : ModelConfig::Head::own;
  }
  read_hf_rope(config, c);
  read_hf_layers(config, *family, c);
  add_stop_ids(root, c);
  const std::string generation = folder + "/generation_config.json";
  if (std::filesystem::exists(generation)) add_stop_ids(read_json(generation), c);
  validate(c);
  return c;
}

}  // namespace sluice
