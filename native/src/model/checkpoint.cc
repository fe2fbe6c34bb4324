#include "model/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <stdexcept>

#include "io/gguf.h"
#include "io/safetensors.h"

namespace sluice {

namespace {

std::string show_shape(std::span<const int64_t> shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return out + "]";
}

class GgufCheckpoint final : public Checkpoint {
 public:
  explicit GgufCheckpoint(const std::string& path) : file_(path) {
    config_ = read_gguf_config(file_);
    family_ = find_family_gguf(config_.architecture);
    names_ = &kGgufNames;
    interleaved_rope_ = family_->gguf_interleaved_rope;
    for (const Tensor& tensor : file_.tensors()) add(tensor, file_.file());
    // Llama 3.1 files carry the stretched frequencies as divisors.
    if (const Tensor* factors = find("rope_freqs.weight", {config_.head_dim / 2})) {
      std::vector<float> values(config_.inv_frequency.size());
      dequantize(factors->format, factors->data, static_cast<int64_t>(values.size()), values.data());
      for (size_t i = 0; i < values.size(); ++i) config_.inv_frequency[i] /= values[i];
    }
  }

 private:
  GgufFile file_;
};

class HfCheckpoint final : public Checkpoint {
 public:
  explicit HfCheckpoint(const std::string& folder) {
    config_ = read_hf_config(folder);
    family_ = find_family_gguf(config_.architecture);
    names_ = &kHfNames;
    std::vector<std::string> paths;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      if (entry.path().extension() == ".safetensors") paths.push_back(entry.path().string());
    }
    if (paths.empty()) throw std::runtime_error("no .safetensors file in " + folder);
    std::ranges::sort(paths);
    for (const std::string& path : paths) {
      files_.push_back(std::make_unique<SafetensorsFile>(path));
      for (const Tensor& tensor : files_.back()->tensors()) add(tensor, files_.back()->file());
    }
  }

 private:
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
};

}  // namespace

void Checkpoint::add(const Tensor& tensor, const MappedFile& file) {
  if (!tensors_.emplace(tensor.name, Entry{tensor, &file}).second) {
    throw std::runtime_error("tensor " + tensor.name + " stands in two files");
  }
}

const Tensor* Checkpoint::find(const std::string& name, std::initializer_list<int64_t> shape) {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) return nullptr;
  Entry& entry = found->second;
  if (!std::ranges::equal(entry.tensor.shape, shape)) {
    throw std::runtime_error("tensor " + name + " has shape " + show_shape(entry.tensor.shape) + ", expected " +
                             show_shape({shape.begin(), shape.size()}));
  }
  entry.used = true;
  return &entry.tensor;
}

const Tensor& Checkpoint::get(const std::string& name, std::initializer_list<int64_t> shape) {
  const Tensor* tensor = find(name, shape);
  if (tensor == nullptr) throw std::runtime_error("tensor " + name + " is missing");
  return *tensor;
}

void Checkpoint::require_all_used() const {
  for (const auto& [name, entry] : tensors_) {
    // Old exporters wrote the rotary frequencies as buffers; they follow from the configuration.
    if (!entry.used && !name.ends_with("rotary_emb.inv_freq")) {
      throw std::runtime_error("tensor " + name + " has no place in architecture \"" + config_.architecture + "\"");
    }
  }
}

void Checkpoint::forget_all_but(const Tensor* keep) const {
  for (const auto& [name, entry] : tensors_) {
    if (keep != nullptr && entry.tensor.data == keep->data) continue;
    entry.file->forget(static_cast<size_t>(entry.tensor.data - entry.file->bytes().data()), static_cast<size_t>(entry.tensor.bytes));
  }
}

int64_t Checkpoint::total_bytes() const {
  int64_t total = 0;
  for (const auto& [name, entry] : tensors_) total += entry.tensor.bytes;
  return total;
}

int64_t Checkpoint::parameters() const {
  int64_t total = 0;
  for (const auto& [name, entry] : tensors_) {
    int64_t n = 1;
    for (const int64_t extent : entry.tensor.shape) n *= extent;
    total += n;
  }
  return total;
}

std::unique_ptr<Checkpoint> open_checkpoint(const std::string& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (error || !std::filesystem::exists(status)) throw std::runtime_error("no model at " + path);
  if (std::filesystem::is_directory(status)) return std::make_unique<HfCheckpoint>(path);
  return std::make_unique<GgufCheckpoint>(path);
}

}  // namespace sluice
