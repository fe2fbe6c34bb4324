// A small JSON reader for config.json and safetensors headers: strict RFC 8259, bounded depth, no writer.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace sluice::json {

class Value;
using Array = std::vector<Value>;
using Object = std::vector<std::pair<std::string, Value>>;  // in the order of the text; a repeated key is an error

class Value {
 public:
  using Storage = std::variant<std::nullptr_t, bool, int64_t, double, std::string, Array, Object>;
  Value() : storage_(nullptr) {}
  explicit Value(Storage storage) : storage_(std::move(storage)) {}

  bool is_null() const { return std::holds_alternative<std::nullptr_t>(storage_); }
  const Object* object() const { return std::get_if<Object>(&storage_); }
  const Array* array() const { return std::get_if<Array>(&storage_); }
  const std::string* string() const { return std::get_if<std::string>(&storage_); }
  const bool* boolean() const { return std::get_if<bool>(&storage_); }
  const int64_t* integer() const { return std::get_if<int64_t>(&storage_); }
  // Any number as double; false when the value is none.
  bool number(double& out) const;
  // The member, or null when it is absent (or this is no object). A member that is JSON null counts as absent.
  const Value* find(std::string_view key) const;

 private:
  Storage storage_;
};

// Throws std::runtime_error with the byte offset. Nesting beyond 64 is an error: the reader recurses.
Value parse(std::string_view text);

}  // namespace sluice::json
