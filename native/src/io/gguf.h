// GGUF v2 and v3 (github.com/ggml-org/ggml docs/gguf.md): metadata and tensors of a mapped file.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "base/mapped_file.h"
#include "io/tensor.h"

namespace sluice {

class GgufFile {
 public:
  // Every length, offset and product is checked against the file before it is used: a hostile or cut file throws
  // std::runtime_error that says what is wrong and at which byte or tensor, and never reads outside the mapping.
  explicit GgufFile(const std::string& path);

  struct ArrayView {  // elements are not decoded: only token lists are arrays, and the engine needs none of them
    uint32_t element_type;
    uint64_t count;
  };
  using Value = std::variant<int64_t, uint64_t, double, bool, std::string, ArrayView>;

  // Null / nullopt when absent; throws when present with another type.
  std::optional<int64_t> integer(std::string_view key) const;
  std::optional<double> number(std::string_view key) const;
  const std::string* string(std::string_view key) const;
  std::optional<uint64_t> array_count(std::string_view key) const;

  const std::vector<Tensor>& tensors() const { return tensors_; }
  const MappedFile& file() const { return *file_; }

 private:
  const Value* find(std::string_view key) const;

  std::unique_ptr<MappedFile> file_;
  std::unordered_map<std::string, Value> metadata_;
  std::vector<Tensor> tensors_;
};

}  // namespace sluice
