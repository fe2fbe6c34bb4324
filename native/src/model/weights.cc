#include "model/weights.h"

#include <algorithm>
#include <stdexcept>

#include "model/weight_source.h"

namespace sluice {

namespace {

// Some files store a head's rotary pairs side by side, (x0, x1), (x2, x3), ..., where the engine has (x0, x[d/2]),
// (x1, x[d/2 + 1]), ...: GGUF's Llamas, and DeepSeek everywhere. So output i of a head's last `rope` rows is the file's
// row 2 i of them, output rope/2 + i its row 2 i + 1; `plain` rows before them stay.
std::vector<int32_t> half_split_order(int32_t n_heads, int32_t plain, int32_t rope) {
  std::vector<int32_t> order;
  const int32_t width = plain + rope, half = rope / 2;
  for (int32_t head = 0; head < n_heads; ++head) {
    for (int32_t i = 0; i < plain; ++i) order.push_back(head * width + i);
    for (int32_t i = 0; i < rope; ++i) order.push_back(head * width + plain + (i < half ? 2 * i : 2 * (i - half) + 1));
  }
  return order;
}

}  // namespace

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
  int64_t n = 1;
  for (const int64_t extent : tensor.shape) n *= extent;
  std::vector<float> out(static_cast<size_t>(n));
  dequantize(tensor.format, tensor.data, n, out.data());
  return out;
}

WeightReader::WeightReader(Checkpoint& checkpoint, Ops& ops, std::function<void(double)> progress)
    : checkpoint_(checkpoint), ops_(ops), progress_(std::move(progress)), total_bytes_(checkpoint.total_bytes()) {}

std::string WeightReader::layer_name(int32_t layer, std::string_view part, std::string_view kind) const {
  return std::string(names().layer_prefix) + std::to_string(layer) + "." + std::string(part) + std::string(kind);
}

void WeightReader::advance(const Tensor& tensor) {
  done_bytes_ += tensor.bytes;
  if (progress_) progress_(std::min(1.0, static_cast<double>(done_bytes_) / static_cast<double>(total_bytes_)));
}

std::unique_ptr<Linear> WeightReader::layer_linear(int32_t layer, std::initializer_list<Part> parts, int32_t cols) {
  std::vector<WeightSource> sources;
  std::vector<float> bias;
  size_t n_biased = 0;
  for (const Part& part : parts) {
    const Tensor& tensor = checkpoint_.get(layer_name(layer, part.name, ".weight"), {part.rows, cols});
    WeightSource source = source_of(tensor);
    source.row_order = part.order;
    sources.push_back(source);
    if (const Tensor* values = checkpoint_.find(layer_name(layer, part.name, ".bias"), {part.rows})) {
      const std::vector<float> in_file = values_of(*values);
      for (size_t i = 0; i < in_file.size(); ++i) {
        bias.push_back(part.order.empty() ? in_file[i] : in_file[static_cast<size_t>(part.order[i])]);
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
  const auto order = [&](int32_t n_heads) {
    return checkpoint_.interleaved_rope() ? half_split_order(n_heads, 0, c.head_dim) : std::vector<int32_t>{};
  };
  return layer_linear(layer,
                      {{names().q, c.n_heads * c.head_dim, order(c.n_heads)},
                       {names().k, kv_rows, order(c.n_kv_heads)},
                       {names().v, kv_rows}},
                      c.hidden);
}

std::unique_ptr<Linear> WeightReader::mla_q(int32_t layer, std::string_view name, int32_t cols) {
  const ModelConfig& c = checkpoint_.config();
  return layer_linear(layer, {{name, c.n_heads * c.head_dim, half_split_order(c.n_heads, c.mla.nope, c.mla.rope)}}, cols);
}

std::unique_ptr<Linear> WeightReader::mla_kv(int32_t layer) {
  const ModelConfig& c = checkpoint_.config();
  return layer_linear(layer, {{names().kv_a, c.mla.latent + c.mla.rope, half_split_order(1, c.mla.latent, c.mla.rope)}}, c.hidden);
}

WeightReader::UpProjections WeightReader::mla_up(int32_t layer) {
  const ModelConfig& c = checkpoint_.config();
  const int32_t head_rows = c.mla.nope + c.mla.value;
  const Tensor& tensor = read(layer_name(layer, names().kv_b, ".weight"), {c.n_heads * head_rows, c.mla.latent});
  const FormatLayout layout = format_layout(tensor.format);
  if (layout.elements != 1) throw std::runtime_error("tensor " + tensor.name + ": block formats are not built here");
  const int64_t row_bytes = int64_t{c.mla.latent} * layout.bytes;
  std::vector<WeightSource> keys, values;
  for (int32_t head = 0; head < c.n_heads; ++head) {
    WeightSource key = source_of(tensor), value = key;
    key.data += head * head_rows * row_bytes;
    key.rows = c.mla.latent;
    key.cols = c.mla.nope;
    key.row_stride = layout.bytes;
    key.col_stride = row_bytes;
    keys.push_back(key);
    value.data += (head * head_rows + c.mla.nope) * row_bytes;
    value.rows = c.mla.value;
    values.push_back(value);
  }
  return {ops_.prepare_head_linear(keys), ops_.prepare_head_linear(values)};
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

const float* WeightReader::vector(const std::string& name, int32_t n) { return ops_.upload(values_of(read(name, {n}))); }

const float* WeightReader::sinks(int32_t layer) {
  return vector(layer_name(layer, names().sinks, ""), checkpoint_.config().n_heads);
}

const Tensor& WeightReader::read(const std::string& name, std::initializer_list<int64_t> shape) {
  const Tensor& tensor = checkpoint_.get(name, shape);
  advance(tensor);
  return tensor;
}

void WeightReader::finish() {
  checkpoint_.require_all_used();
  checkpoint_.forget_all_but(embedding_);
  if (progress_) progress_(1.0);
}

}  // namespace sluice
