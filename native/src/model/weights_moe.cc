// The experts of a layer, in every way that checkpoints store them.
#include <deque>
#include <stdexcept>

#include "model/weight_source.h"
#include "model/weights.h"

namespace sluice {

// Deques: the sources keep views of their elements.
struct WeightReader::ExpertList {
  std::vector<ExpertSource> experts;
  std::deque<std::vector<float>> biases;
  std::deque<std::vector<int32_t>> orders;
};

namespace {

int64_t element_bytes(const Tensor& tensor) {
  const FormatLayout layout = format_layout(tensor.format);
  if (layout.elements != 1) throw std::runtime_error("tensor " + tensor.name + ": block formats are not built here");
  return layout.bytes;
}

}  // namespace

std::unique_ptr<MoeWeights> WeightReader::moe(int32_t layer) {
  const ModelConfig& c = checkpoint_.config();
  const MoeNames& part = *checkpoint_.family().moe;
  MoeSource source;
  source.spec = c.moe;
  source.router = source_of(read(layer_name(layer, part.router, ".weight"), {c.moe.n_experts, c.hidden}));
  std::vector<float> router_bias, selection_bias;
  if (part.router_bias) router_bias = values_of(read(layer_name(layer, part.router, ".bias"), {c.moe.n_experts}));
  if (!part.selection_bias.empty()) selection_bias = values_of(read(layer_name(layer, part.selection_bias, ""), {c.moe.n_experts}));
  source.router_bias = router_bias;
  source.selection_bias = selection_bias;
  ExpertList list;
  if (part.fused) {
    add_fused_experts(layer, list);
  } else {
    add_experts(layer, list);
  }
  if (c.moe.n_shared > 0) add_shared_experts(layer, list);
  if (!part.shared_gate.empty()) source.shared_gate = source_of(read(layer_name(layer, part.shared_gate, ".weight"), {1, c.hidden}));
  source.experts = list.experts;
  return ops_.prepare_moe(source);
}

void WeightReader::add_experts(int32_t layer, ExpertList& out) {
  const ModelConfig& c = checkpoint_.config();
  const MoeNames& part = *checkpoint_.family().moe;
  for (int32_t e = 0; e < c.moe.n_experts; ++e) {
    const std::string prefix = layer_name(layer, part.experts, ".") + std::to_string(e) + ".";
    const auto matrix = [&](std::string_view name, int32_t rows, int32_t cols) {
      return source_of(read(prefix + std::string(name) + ".weight", {rows, cols}));
    };
    ExpertSource expert;
    expert.gate = matrix(part.gate, c.expert_inter, c.hidden);
    expert.up = matrix(part.up, c.expert_inter, c.hidden);
    expert.down = matrix(part.down, c.hidden, c.expert_inter);
    out.experts.push_back(expert);
  }
}

// gpt-oss. gate and up alternate: gate i is output 2 i, up i output 2 i + 1.
void WeightReader::add_fused_experts(int32_t layer, ExpertList& out) {
  const ModelConfig& c = checkpoint_.config();
  const std::string prefix = layer_name(layer, checkpoint_.family().moe->experts, "");
  const int32_t n = c.moe.n_experts, hidden = c.hidden, inter = c.expert_inter;
  const std::vector<float> gate_up_bias = values_of(read(prefix + ".gate_up_proj_bias", {n, 2 * inter}));
  const std::vector<float> down_bias = values_of(read(prefix + ".down_proj_bias", {n, hidden}));
  const bool mxfp4 = checkpoint_.find(prefix + ".gate_up_proj_blocks", {n, 2 * inter, hidden / 32, 16}) != nullptr;
  const Tensor& gate_up = mxfp4 ? read(prefix + ".gate_up_proj_blocks", {n, 2 * inter, hidden / 32, 16})
                                : read(prefix + ".gate_up_proj", {n, hidden, 2 * inter});
  const Tensor& down = mxfp4 ? read(prefix + ".down_proj_blocks", {n, hidden, inter / 32, 16})
                             : read(prefix + ".down_proj", {n, inter, hidden});
  const Tensor* gate_up_scales = mxfp4 ? &read(prefix + ".gate_up_proj_scales", {n, 2 * inter, hidden / 32}) : nullptr;
  const Tensor* down_scales = mxfp4 ? &read(prefix + ".down_proj_scales", {n, hidden, inter / 32}) : nullptr;
  std::vector<int32_t>& even = out.orders.emplace_back();
  std::vector<int32_t>& odd = out.orders.emplace_back();
  for (int32_t i = 0; i < inter; ++i) {
    even.push_back(2 * i);
    odd.push_back(2 * i + 1);
  }
  // Expert e's matrix of `rows` outputs inside a tensor that holds n x outputs x inputs values.
  const auto matrix = [&](const Tensor& tensor, const Tensor* scales, int32_t e, int32_t rows, int32_t outputs, int32_t inputs) {
    WeightSource source;
    source.name = tensor.name;
    source.rows = rows;
    source.cols = inputs;
    const int64_t first = int64_t{e} * outputs * inputs;
    if (scales != nullptr) {
      source.format = WeightFormat::mxfp4;
      source.data = tensor.data + first / 2;
      source.exponents = reinterpret_cast<const uint8_t*>(scales->data) + first / 32;
    } else {
      source.format = tensor.format;
      source.row_stride = element_bytes(tensor);
      source.col_stride = source.row_stride * outputs;
      source.data = tensor.data + first * source.row_stride;
    }
    return source;
  };
  for (int32_t e = 0; e < n; ++e) {
    ExpertSource expert;
    expert.gate = matrix(gate_up, gate_up_scales, e, inter, 2 * inter, hidden);
    expert.up = expert.gate;
    expert.gate.row_order = even;
    expert.up.row_order = odd;
    expert.down = matrix(down, down_scales, e, hidden, hidden, inter);
    std::vector<float>& gate_bias = out.biases.emplace_back();
    std::vector<float>& up_bias = out.biases.emplace_back();
    for (int32_t i = 0; i < inter; ++i) {
      gate_bias.push_back(gate_up_bias[static_cast<size_t>(e * 2 * inter + 2 * i)]);
      up_bias.push_back(gate_up_bias[static_cast<size_t>(e * 2 * inter + 2 * i + 1)]);
    }
    std::vector<float>& bias = out.biases.emplace_back(down_bias.begin() + e * hidden, down_bias.begin() + (e + 1) * hidden);
    expert.gate_bias = gate_bias;
    expert.up_bias = up_bias;
    expert.down_bias = bias;
    out.experts.push_back(expert);
  }
}

// One MLP as wide as several experts: cut into as many, rows of gate and up, columns of down.
void WeightReader::add_shared_experts(int32_t layer, ExpertList& out) {
  const ModelConfig& c = checkpoint_.config();
  const MoeNames& part = *checkpoint_.family().moe;
  const std::string prefix = layer_name(layer, part.shared, ".");
  const auto tensor = [&](std::string_view name, int32_t rows, int32_t cols) -> const Tensor& {
    return read(prefix + std::string(name) + ".weight", {rows, cols});
  };
  const Tensor& gate = tensor(part.gate, c.shared_inter, c.hidden);
  const Tensor& up = tensor(part.up, c.shared_inter, c.hidden);
  const Tensor& down = tensor(part.down, c.hidden, c.shared_inter);
  for (int32_t first = 0; first < c.shared_inter; first += c.expert_inter) {
    ExpertSource expert;
    const auto rows_of = [&](const Tensor& whole) {
      WeightSource source = source_of(whole);
      source.data += int64_t{first} * c.hidden * element_bytes(whole);
      source.rows = c.expert_inter;
      return source;
    };
    expert.gate = rows_of(gate);
    expert.up = rows_of(up);
    expert.down = source_of(down);
    expert.down.data += first * element_bytes(down);
    expert.down.cols = c.expert_inter;
    expert.down.row_stride = c.shared_inter * element_bytes(down);
    out.experts.push_back(expert);
  }
}

}  // namespace sluice
