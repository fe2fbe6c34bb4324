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
  in_range("query heads a kv head", c.n_heads / c.n_kv_heads, 1, 64);
  require(c.head_dim % 2 == 0, "the head dimension is odd");
  require(c.norm_eps >= 0 && std::isfinite(c.norm_eps), "bad norm epsilon");
  require(static_cast<int32_t>(c.inv_frequency.size()) * 2 == c.head_dim, "rotary embeddings over part of a head are not built");
  require(std::ranges::all_of(c.stop_ids, [&](Token id) { return id >= 0 && id < c.vocab_size; }), "a stop id is outside the vocabulary");
}

std::vector<float> rope_inv_frequency(double theta, int32_t dim) {
  std::vector<float> out;
  for (int32_t i = 0; i < dim; i += 2) {
    out.push_back(1.0f / std::pow(static_cast<float>(theta), static_cast<float>(i) / static_cast<float>(dim)));
  }
  return out;
}

}  // namespace sluice
