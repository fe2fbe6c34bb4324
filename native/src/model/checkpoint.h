// A model's files, opened: configuration, tensors by name, and which names they go by.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/mapped_file.h"
#include "io/tensor.h"
#include "model/config.h"
#include "model/families.h"

namespace sluice {

class Checkpoint {
 public:
  virtual ~Checkpoint() = default;
  const ModelConfig& config() const { return config_; }
  const Family& family() const { return *family_; }
  const NameMap& names() const { return *names_; }
  bool interleaved_rope() const { return interleaved_rope_; }

  // The tensor, checked against the shape {rows} or {rows, cols}; null when absent. Asking marks it as used.
  const Tensor* find(const std::string& name, std::initializer_list<int64_t> shape);
  // The same; throws std::runtime_error when absent.
  const Tensor& get(const std::string& name, std::initializer_list<int64_t> shape);
  // Throws when the files hold a tensor that nobody asked for: a model computed without it would be silently wrong.
  void require_all_used() const;
  // Tells the system that the mapped bytes of everything but `keep` are not needed any more.
  void forget_all_but(const Tensor* keep) const;
  int64_t total_bytes() const;
  int64_t parameters() const;

 protected:
  void add(const Tensor& tensor, const MappedFile& file);
  ModelConfig config_;
  const Family* family_ = nullptr;
  const NameMap* names_ = nullptr;
  bool interleaved_rope_ = false;

 private:
  struct Entry {
    Tensor tensor;
    const MappedFile* file;
    bool used = false;
  };
  std::unordered_map<std::string, Entry> tensors_;
};

// A .gguf file, or a folder with config.json and *.safetensors. Throws std::runtime_error.
std::unique_ptr<Checkpoint> open_checkpoint(const std::string& path);

}  // namespace sluice
