#include "model/weights.h"

#include <algorithm>
#include <deque>
#include <stdexcept>

namespace sluice {

namespace {

WeightSource source_of(const Tensor& tensor) {
  WeightSource source;
  source.name = tensor.name;
  source.format = tensor.format;
  source.rows = static_cast<int32_t>(tensor.shape[0]);
  source.cols = static_cast<int32_t>(tensor.shape[1]);
  source.data = tensor.data;
  return source;
}

std::vector<float> values_of(const Tensor& tensor) {
  std::vector<float> out(static_cast<size_t>(tensor.shape[0]));
  dequantize(tensor.format, tensor.data, tensor.shape[0], out.data());
  return out;
}

// GGUF's Llama files store each head of q and k so that rotary pairs lie side by side: (x0, x1), (x2, x3), ... where HF
// has (x0, x[d/2]), (x1, x[d/2 + 1]), .... This gives back HF's order: output i of a head is the file's row 2 i, output
// d/2 + i its row 2 i + 1.
std::vector<int32_t> half_split_order(int32_t n_heads, int32_t head_dim) {
  std::vector<int32_t> order;
  for (int32_t head = 0; head < n_heads; ++head) {
    for (int32_t i = 0; i < head_dim; ++i) {
      const int32_t half = head_dim / 2;
      order.push_back(head * head_dim + (i < half ? 2 * i : 2 * (i - half) + 1));
    }
  }
  return order;
}

}  // namespace

WeightReader::WeightReader(Checkpoint& checkpoint, Ops& ops, std::function<void(double)> progress)
    : checkpoint_(checkpoint), ops_(ops), progress_(std::move(progress)), total_bytes_(checkpoint.total_bytes()) {}

std::string WeightReader::layer_name(int32_t layer, std::string_view part, const char* kind) const {
  return std::string(names().layer_prefix) + std::to_string(layer) + "." + std::string(part) + kind;
}

void WeightReader::advance(const Tensor& tensor) {
  done_bytes_ += tensor.bytes;
  if (progress_) progress_(std::min(1.0, static_cast<double>(done_bytes_) / static_cast<double>(total_bytes_)));
}

std::unique_ptr<Linear> WeightReader::layer_linear(int32_t layer, std::initializer_list<Part> parts, int32_t cols) {
  std::vector<WeightSource> sources;
  std::deque<std::vector<int32_t>> orders;  // a deque: the sources keep views of its elements
  std::vector<float> bias;
  size_t n_biased = 0;
  for (const Part& part : parts) {
    const Tensor& tensor = checkpoint_.get(layer_name(layer, part.name, ".weight"), {part.rows, cols});
    WeightSource source = source_of(tensor);
    const bool reorder = part.rotated_heads > 0 && checkpoint_.interleaved_rope();
    if (reorder) {
      orders.push_back(half_split_order(part.rotated_heads, part.rows / part.rotated_heads));
      source.row_order = orders.back();
    }
    sources.push_back(source);
    if (const Tensor* values = checkpoint_.find(layer_name(layer, part.name, ".bias"), {part.rows})) {
      const std::vector<float> in_file = values_of(*values);
      for (size_t i = 0; i < in_file.size(); ++i) {
        bias.push_back(reorder ? in_file[static_cast<size_t>(source.row_order[i])] : in_file[i]);
      }
      ++n_biased;
    }
    advance(tensor);
  }
  if (n_biased != 0 && n_biased != parts.size()) {
    throw std::runtime_error("tensor " + layer_name(layer, parts.begin()->name, ".bias") + " or one beside it is missing");
  }
  return ops_.prepare_linear(sources, bias);
}

std::unique_ptr<Linear> WeightReader::qkv(int32_t layer) {
  const ModelConfig& c = checkpoint_.config();
  const int32_t kv_rows = c.n_kv_heads * c.head_dim;
  if (checkpoint_.family().qkv_bias) checkpoint_.get(layer_name(layer, names().q, ".bias"), {c.n_heads * c.head_dim});
  return layer_linear(layer,
                      {{names().q, c.n_heads * c.head_dim, c.n_heads}, {names().k, kv_rows, c.n_kv_heads}, {names().v, kv_rows, 0}},
                      c.hidden);
}

std::unique_ptr<Linear> WeightReader::embedding() {
  const ModelConfig& c = checkpoint_.config();
  embedding_ = &checkpoint_.get(std::string(names().embedding), {c.vocab_size, c.hidden});
  advance(*embedding_);
  return ops_.prepare_embedding(source_of(*embedding_));
}

std::unique_ptr<Linear> WeightReader::head() {
  const ModelConfig& c = checkpoint_.config();
  const Tensor* own = checkpoint_.find(std::string(names().head), {c.vocab_size, c.hidden});
  if (own == nullptr && c.head == ModelConfig::Head::own) throw std::runtime_error("tensor " + std::string(names().head) + " is missing");
  if (c.head == ModelConfig::Head::tied) own = nullptr;  // as HF does, should the file hold a copy
  if (own != nullptr) advance(*own);
  const WeightSource source = source_of(own != nullptr ? *own : *embedding_);
  return ops_.prepare_linear({&source, 1}, {});
}

const float* WeightReader::layer_vector(int32_t layer, std::string_view part, int32_t n) {
  return vector(layer_name(layer, part, ".weight"), n);
}

const float* WeightReader::vector(const std::string& name, int32_t n) {
  const Tensor& tensor = checkpoint_.get(name, {n});
  advance(tensor);
  return ops_.upload(values_of(tensor));
}

void WeightReader::finish() {
  checkpoint_.require_all_used();
  checkpoint_.forget_all_but(embedding_);
  if (progress_) progress_(1.0);
}

}  // namespace sluice
