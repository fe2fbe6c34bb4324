// Values of a Hugging Face config.json, checked as they are read.
#pragma once

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include "base/json.h"
#include "model/config.h"
#include "model/families.h"

namespace sluice {

class HfValues {
 public:
  explicit HfValues(const json::Value& root) : root_(root) {}
  const json::Value& root() const { return root_; }
  bool has(const char* key) const { return root_.find(key) != nullptr; }

  // Throws std::runtime_error naming the key when it is absent, or holds something else.
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
  double number(const char* key, double fallback) const { return number(root_, key, fallback); }
  bool flag(const char* key, bool fallback = false) const {
    const json::Value* value = root_.find(key);
    return value == nullptr || value->boolean() == nullptr ? fallback : *value->boolean();
  }
  std::string text(const char* key, const char* fallback) const {
    const json::Value* value = root_.find(key);
    return value == nullptr || value->string() == nullptr ? fallback : *value->string();
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

// Frequencies and the factors that long-context schemes bring; the head dimensions must be set.
void read_hf_rope(const HfValues& values, ModelConfig& config);
// Which layers slide, which have experts, and what those are; everything plain must be set.
void read_hf_layers(const HfValues& values, const Family& family, ModelConfig& config);

}  // namespace sluice
