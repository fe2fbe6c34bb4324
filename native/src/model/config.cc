#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace sluice {

void validate(const ModelConfig& c) {
  const auto require = [&](bool ok, const std::string& what) {
    if (!ok) throw std::runtime_error("model " + c.name + " (" + c.architecture + "): " + what);
  };
  const auto in_range = [&](const char* what, int64_t value, int64_t low, int64_t high) {
    require(value >= low && value <= high,
            std::string(what) + " is " + std::to_string(value) + ", expected " + std::to_string(low) + " to " + std::to_string(high));
  };
  in_range("vocab_size", c.vocab_size, 1, 1 << 24);
  in_range("context_length", c.context_length, 1, 1 << 24);
  in_range("hidden size", c.hidden, 1, 1 << 17);
  in_range("intermediate size", c.inter, 1, 1 << 19);
  in_range("layers", c.n_layers, 1, 1024);
  in_range("heads", c.n_heads, 1, 1024);
  in_range("kv heads", c.n_kv_heads, 1, c.n_heads);
  in_range("head dimension", c.head_dim, 2, 512);
  require(c.n_heads % c.n_kv_heads == 0, "heads are no multiple of kv heads");
  if (c.mla.latent == 0) in_range("query heads a kv head", c.n_heads / c.n_kv_heads, 1, 64);
  require(c.head_dim % 2 == 0, "the head dimension is odd");
  require(c.norm_eps >= 0 && std::isfinite(c.norm_eps), "bad norm epsilon");
  require(std::ranges::all_of(c.stop_ids, [&](Token id) { return id >= 0 && id < c.vocab_size; }), "a stop id is outside the vocabulary");
  const int32_t rotated = c.mla.latent > 0 ? c.mla.rope : c.head_dim;
  require(static_cast<int32_t>(c.inv_frequency.size()) * 2 == rotated, "rotary embeddings over part of a head are not built");
  require(std::ranges::all_of(c.inv_frequency, [](float f) { return std::isfinite(f) && f >= 0; }), "bad rotary frequencies");
  require(std::isfinite(c.rope_magnitude) && std::isfinite(c.attention_factor), "bad rotary scaling");
  require(c.windows.empty() || static_cast<int32_t>(c.windows.size()) == c.n_layers, "not one window a layer");
  int32_t window = 0;
  for (const int32_t w : c.windows) {
    in_range("sliding window", w, 0, 1 << 24);
    require(w == 0 || window == 0 || w == window, "layers with different sliding windows are not built");
    window = std::max(window, w);
  }
  if (c.mla.latent > 0) {
    in_range("latent size", c.mla.latent, 1, 4096);
    in_range("query latent size", c.mla.q_latent, 0, 1 << 17);
    in_range("unrotated head dimension", c.mla.nope, 1, 512);
    in_range("rotated head dimension", c.mla.rope, 2, 512);
    in_range("value dimension", c.mla.value, 1, 512);
    require(window == 0, "latent attention with a sliding window is not built");
  }
  if (c.moe.n_experts == 0) return;
  require(c.moe_layers.empty() || static_cast<int32_t>(c.moe_layers.size()) == c.n_layers, "not one kind of MLP a layer");
  in_range("experts", c.moe.n_experts, 1, 1024);
  in_range("experts a token", c.moe.top_k, 1, c.moe.n_experts);
  in_range("expert size", c.expert_inter, 1, 1 << 17);
  in_range("size of the shared experts", c.shared_inter, 0, 1 << 17);
  require(c.shared_inter % c.expert_inter == 0, "the shared experts are no multiple of a routed one");
}

std::vector<float> rope_inv_frequency(double theta, int32_t dim) {
  std::vector<float> out;
  for (int32_t i = 0; i < dim; i += 2) {
    out.push_back(1.0f / std::pow(static_cast<float>(theta), static_cast<float>(i) / static_cast<float>(dim)));
  }
  return out;
}

}  // namespace sluice
