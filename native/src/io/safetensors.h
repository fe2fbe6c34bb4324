// safetensors (github.com/huggingface/safetensors): 8-byte header length, JSON header, raw row-major data.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "io/tensor.h"

namespace sluice {

class SafetensorsFile {
 public:
  // Throws std::runtime_error on anything the header says that the file does not hold; data types that are no weights
  // (wider integers, booleans) are errors that name the tensor.
  explicit SafetensorsFile(const std::string& path);
  const std::vector<Tensor>& tensors() const { return tensors_; }
  const MappedFile& file() const { return *file_; }

 private:
  std::unique_ptr<MappedFile> file_;
  std::vector<Tensor> tensors_;
};

}  // namespace sluice
