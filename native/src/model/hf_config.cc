#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <numbers>
#include <stdexcept>

#include "base/json.h"
#include "base/mapped_file.h"
#include "model/config.h"
#include "model/families.h"

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

class Config {
 public:
  explicit Config(const json::Value& root) : root_(root) {}

  int32_t integer(const char* key) const {
    const json::Value* value = root_.find(key);
    if (value == nullptr) throw std::runtime_error(std::string("config.json lacks ") + key);
    return integer_of(*value, key);
  }
  int32_t integer(const char* key, int32_t fallback) const {
    const json::Value* value = root_.find(key);
    return value == nullptr ? fallback : integer_of(*value, key);
  }
  double number(const json::Value& in, const char* key, double fallback) const {
    const json::Value* value = in.find(key);
    double out = fallback;
    if (value != nullptr && !value->number(out)) throw std::runtime_error(std::string("config.json: ") + key + " is no number");
    return out;
  }
  bool flag(const char* key) const {
    const json::Value* value = root_.find(key);
    return value != nullptr && value->boolean() != nullptr && *value->boolean();
  }

 private:
  static int32_t integer_of(const json::Value& value, const char* key) {
    const int64_t* i = value.integer();
    if (i == nullptr || *i < 0 || *i > std::numeric_limits<int32_t>::max()) {
      throw std::runtime_error(std::string("config.json: ") + key + " is no sensible integer");
    }
    return static_cast<int32_t>(*i);
  }
  const json::Value& root_;
};

// Llama 3.1's stretching (Meta's llama-models; HF rope type "llama3"): wavelengths beyond the original context are
// divided by the factor, short ones kept, a band between interpolated.
void scale_llama3(std::vector<float>& inv_frequency, double factor, double low, double high, double original) {
  for (float& f : inv_frequency) {
    const double wavelength = 2.0 * std::numbers::pi / f;
    if (wavelength < original / high) continue;
    if (wavelength > original / low) {
      f = static_cast<float>(f / factor);
    } else {
      const double smooth = (original / wavelength - low) / (high - low);
      f = static_cast<float>((1 - smooth) * f / factor + smooth * f);
    }
  }
}

void read_rope(const Config& config, const json::Value& root, ModelConfig& c) {
  // transformers 5 writes rope_parameters, older versions rope_theta and rope_scaling.
  const json::Value* rope = root.find("rope_parameters");
  const json::Value* scaling = rope != nullptr ? rope : root.find("rope_scaling");
  c.rope_theta = config.number(root, "rope_theta", 10000.0);
  if (rope != nullptr) c.rope_theta = config.number(*rope, "rope_theta", c.rope_theta);
  if (config.number(root, "partial_rotary_factor", 1.0) != 1.0 ||
      (rope != nullptr && config.number(*rope, "partial_rotary_factor", 1.0) != 1.0)) {
    throw std::runtime_error("config.json: partial rotary embeddings are not built");
  }
  c.inv_frequency = rope_inv_frequency(c.rope_theta, c.head_dim);
  if (scaling == nullptr) return;
  const json::Value* type = scaling->find("rope_type");
  if (type == nullptr) type = scaling->find("type");
  const std::string kind = type != nullptr && type->string() != nullptr ? *type->string() : "default";
  const double factor = config.number(*scaling, "factor", 1.0);
  if (kind == "linear") {
    for (float& f : c.inv_frequency) f = static_cast<float>(f / factor);
  } else if (kind == "llama3") {
    scale_llama3(c.inv_frequency, factor, config.number(*scaling, "low_freq_factor", 1.0),
                 config.number(*scaling, "high_freq_factor", 4.0),
                 config.number(*scaling, "original_max_position_embeddings", 8192.0));
  } else if (kind != "default") {
    throw std::runtime_error("config.json: rope type \"" + kind + "\" is not built");
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
  const Config config(root);
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
  c.head_dim = config.integer("head_dim", c.hidden / c.n_heads);
  c.norm_eps = static_cast<float>(config.number(root, "rms_norm_eps", 1e-6));
  // A window that is switched off, or as long as the context, masks nothing.
  const int32_t window = config.integer("sliding_window", 0);
  const bool may_slide = root.find("use_sliding_window") == nullptr || config.flag("use_sliding_window");
  if (window > 0 && window < c.context_length && may_slide) throw std::runtime_error("config.json: sliding-window attention is not built");
  const json::Value* activation = root.find("hidden_act");
  if (activation != nullptr && (activation->string() == nullptr || *activation->string() != "silu")) {
    throw std::runtime_error("config.json: only hidden_act \"silu\" is built");
  }
  if (root.find("quantization_config") != nullptr) throw std::runtime_error("config.json: quantised checkpoints are not built; use a GGUF file");
  if (root.find("tie_word_embeddings") != nullptr) {
    c.head = config.flag("tie_word_embeddings") ? ModelConfig::Head::tied : ModelConfig::Head::own;
  }
  read_rope(config, root, c);
  add_stop_ids(root, c);
  const std::string generation = folder + "/generation_config.json";
  if (std::filesystem::exists(generation)) add_stop_ids(read_json(generation), c);
  validate(c);
  return c;
}

}  // namespace sluice
