// Rotary frequencies from config.json.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "model/hf_values.h"

namespace sluice {

namespace {

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

// YaRN (arXiv:2309.00071; HF rope type "yarn"): dimensions that turn less than beta_slow times in the original context are
// divided by the factor, those that turn more than beta_fast times kept, a linear ramp between. In fp32 where HF is.
void scale_yarn(const HfValues& values, const json::Value& scaling, int32_t dim, ModelConfig& c) {
  const double original = values.number(scaling, "original_max_position_embeddings", c.context_length);
  const double factor = values.number(scaling, "factor", c.context_length / original);
  const json::Value* truncate = scaling.find("truncate");
  const bool whole = truncate == nullptr || truncate->boolean() == nullptr || *truncate->boolean();
  const auto dimension_of = [&](double turns) {
    return dim * std::log(original / (turns * 2 * std::numbers::pi)) / (2 * std::log(c.rope_theta));
  };
  double low = dimension_of(values.number(scaling, "beta_fast", 32));
  double high = dimension_of(values.number(scaling, "beta_slow", 1));
  if (whole) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1.0);
  if (low == high) high += 0.001;
  for (size_t i = 0; i < c.inv_frequency.size(); ++i) {
    const float position = std::pow(static_cast<float>(c.rope_theta), static_cast<float>(2 * i) / static_cast<float>(dim));
    const float ramp = (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low);
    const float kept = 1.0f - std::clamp(ramp, 0.0f, 1.0f);
    c.inv_frequency[i] = 1.0f / (static_cast<float>(factor) * position) * (1.0f - kept) + 1.0f / position * kept;
  }
  const auto magnitude = [&](double weight) { return factor <= 1 ? 1.0 : 0.1 * weight * std::log(factor) + 1.0; };
  const double mscale = values.number(scaling, "mscale", 0), mscale_all_dim = values.number(scaling, "mscale_all_dim", 0);
  const double derived = mscale != 0 && mscale_all_dim != 0 ? magnitude(mscale) / magnitude(mscale_all_dim) : magnitude(1);
  c.rope_magnitude = static_cast<float>(values.number(scaling, "attention_factor", derived));
  // DeepSeek puts the rest of the magnitude into the softmax's scale.
  if (c.mla.latent > 0 && mscale_all_dim != 0) c.attention_factor = static_cast<float>(magnitude(mscale_all_dim) * magnitude(mscale_all_dim));
}

}  // namespace

void read_hf_rope(const HfValues& config, ModelConfig& c) {
  const json::Value& root = config.root();
  const int32_t dim = c.mla.latent > 0 ? c.mla.rope : c.head_dim;
  // transformers 5 writes rope_parameters, older versions rope_theta and rope_scaling.
  const json::Value* rope = root.find("rope_parameters");
  const json::Value* scaling = rope != nullptr ? rope : root.find("rope_scaling");
  c.rope_theta = config.number(root, "rope_theta", 10000.0);
  if (rope != nullptr) c.rope_theta = config.number(*rope, "rope_theta", c.rope_theta);
  if (config.number(root, "partial_rotary_factor", 1.0) != 1.0 ||
      (rope != nullptr && config.number(*rope, "partial_rotary_factor", 1.0) != 1.0)) {
    throw std::runtime_error("config.json: partial rotary embeddings are not built");
  }
  c.inv_frequency = rope_inv_frequency(c.rope_theta, dim);
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
  } else if (kind == "yarn") {
    scale_yarn(config, *scaling, dim, c);
  } else if (kind != "default") {
    throw std::runtime_error("config.json: rope type \"" + kind + "\" is not built");
  }
}

}  // namespace sluice
