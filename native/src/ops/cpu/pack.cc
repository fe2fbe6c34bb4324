#include "ops/cpu/pack.h"

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "base/half.h"
#include "io/tensor.h"

namespace sluice::cpu {

namespace {

bool is_q4(WeightFormat format) { return format == WeightFormat::q4_0 || format == WeightFormat::q4_1; }

int64_t row_bytes(const WeightSource& source) {
  const FormatLayout layout = format_layout(source.format);
  return int64_t{source.cols} / layout.elements * layout.bytes;
}

uint16_t load_u16(const std::byte* at) {
  uint16_t value;
  std::memcpy(&value, at, 2);
  return value;
}

void put_f32(std::byte* panel, int lane, const WeightSource& source, int32_t row, std::vector<float>& scratch) {
  read_row(source, row, scratch.data());
  auto* out = reinterpret_cast<float*>(panel);
  for (int64_t k = 0; k < source.cols; ++k) out[k * kLanes + lane] = scratch[static_cast<size_t>(k)];
}

// Q4_0 is Q4_1 with minimum -8 d: exact in half, since 8 is a power of two, unless it overflows.
void put_q4(std::byte* panel, int lane, const WeightSource& source, int32_t row) {
  const bool q4_1 = source.format == WeightFormat::q4_1;
  const std::byte* in = row_start(source, row);
  for (int32_t b = 0; b < source.cols / kQuantBlock; ++b) {
    std::byte* block = panel + int64_t{b} * kQ4BlockBytes;
    const uint16_t d = load_u16(in);
    const uint16_t m = q4_1 ? load_u16(in + 2) : float_to_half(-8.0f * half_to_float(d));
    auto* scales = reinterpret_cast<uint16_t*>(block);
    scales[lane] = d;
    scales[kLanes + lane] = m;
    const auto* q = reinterpret_cast<const uint8_t*>(in + (q4_1 ? 4 : 2));
    auto* out = reinterpret_cast<uint8_t*>(block) + 4 * kLanes;
    const auto value = [q](int k) { return k < 16 ? q[k] & 15 : q[k - 16] >> 4; };
    for (int j = 0; j < 4; ++j) {
      for (int c = 0; c < 4; ++c) {
        out[64 * j + 4 * lane + c] = static_cast<uint8_t>(value(8 * j + c) | value(8 * j + 4 + c) << 4);
      }
    }
    in += q4_1 ? 20 : 18;
  }
}

void put_q8_block(std::byte* panel, int32_t n_blocks, int32_t b, int lane, uint16_t d, const int8_t* q) {
  reinterpret_cast<uint16_t*>(panel)[b * kLanes + lane] = d;
  auto* out = reinterpret_cast<uint8_t*>(panel + q8_scale_bytes(n_blocks) + int64_t{b} * kQ8BlockBytes);
  for (int k = 0; k < kQuantBlock; ++k) {
    out[64 * (k / 4) + 4 * lane + k % 4] = static_cast<uint8_t>(q[k] + 128);
  }
}

void put_q8(std::byte* panel, int32_t n_blocks, int lane, const WeightSource& source, int32_t row,
            std::vector<float>& scratch) {
  if (source.format == WeightFormat::q8_0) {
    const std::byte* in = row_start(source, row);
    for (int32_t b = 0; b < source.cols / kQuantBlock; ++b, in += 34) {
      put_q8_block(panel, n_blocks, b, lane, load_u16(in), reinterpret_cast<const int8_t*>(in + 2));
    }
    return;
  }
  std::fill(scratch.begin(), scratch.end(), 0.0f);
  read_row(source, row, scratch.data());
  for (int32_t b = 0; b < n_blocks; ++b) {
    const float* x = scratch.data() + int64_t{b} * kQuantBlock;
    float largest = 0;
    for (int k = 0; k < kQuantBlock; ++k) largest = std::fmax(largest, std::fabs(x[k]));
    // The scale is rounded to half first, so that the integers are the best ones for the scale that is stored.
    uint16_t d = float_to_half(largest / 127.0f);
    if (source.format == WeightFormat::mxfp4) {
      // Multiples of a power of two up to 12: nothing is rounded, if a half can hold the power.
      const float step = mxfp4_step(source, row, b);
      if (half_to_float(float_to_half(step)) == step) d = float_to_half(step);
    }
    const float scale = half_to_float(d);
    int8_t q[kQuantBlock];
    for (int k = 0; k < kQuantBlock; ++k) {
      const float value = scale > 0 ? std::nearbyint(x[k] / scale) : 0.0f;
      q[k] = static_cast<int8_t>(std::fmin(127.0f, std::fmax(-127.0f, value)));
    }
    put_q8_block(panel, n_blocks, b, lane, d, q);
  }
}

}  // namespace

std::unique_ptr<PackedLinear> pack_linear(std::span<const WeightSource> parts, std::span<const float> bias,
                                          bool quantised, Arena& arena) {
  auto out = std::make_unique<PackedLinear>();
  bool all_q4 = true;
  for (const WeightSource& part : parts) {
    if (part.cols != parts.front().cols) throw std::runtime_error("tensor " + std::string(part.name) + " has another width");
    out->rows += part.rows;
    all_q4 = all_q4 && is_q4(part.format);
  }
  out->cols = parts.front().cols;
  out->kind = !quantised ? PanelKind::f32 : all_q4 ? PanelKind::q4 : PanelKind::q8;
  out->n_blocks = (out->cols + kQuantBlock - 1) / kQuantBlock;
  out->n_panels = (out->rows + kLanes - 1) / kLanes;
  const int64_t bytes = panel_bytes(out->kind, out->n_blocks);
  out->bytes = bytes * out->n_panels;
  out->panels = arena.take(static_cast<size_t>(out->bytes));
  if (!bias.empty()) {
    out->bias = reinterpret_cast<float*>(arena.take(static_cast<size_t>(out->n_panels) * kLanes * sizeof(float)));
    std::memcpy(out->bias, bias.data(), bias.size_bytes());
  }

  std::vector<float> scratch(static_cast<size_t>(out->n_blocks) * kQuantBlock);
  int32_t at = 0;
  for (const WeightSource& part : parts) {
    try {
      for (int32_t row = 0; row < part.rows; ++row, ++at) {
        std::byte* panel = out->panels + at / kLanes * bytes;
        const int lane = at % kLanes;
        switch (out->kind) {
          case PanelKind::f32: put_f32(panel, lane, part, row, scratch); break;
          case PanelKind::q4: put_q4(panel, lane, part, row); break;
          case PanelKind::q8: put_q8(panel, out->n_blocks, lane, part, row, scratch); break;
        }
      }
    } catch (const std::runtime_error& e) {
      throw std::runtime_error("tensor " + std::string(part.name) + ": " + e.what());
    }
  }
  return out;
}

std::unique_ptr<EmbeddingTable> pack_embedding(const WeightSource& table) {
  auto out = std::make_unique<EmbeddingTable>();
  out->rows = table.rows;
  out->cols = table.cols;
  out->format = table.format;
  out->data = table.data;
  out->row_bytes = row_bytes(table);
  out->bytes = out->row_bytes * table.rows;
  // A format that cannot be decoded must fail at load, not in the first step.
  std::vector<float> row(static_cast<size_t>(table.cols));
  try {
    dequantize(table.format, table.data, table.cols, row.data());
  } catch (const std::runtime_error& e) {
    throw std::runtime_error("tensor " + std::string(table.name) + ": " + e.what());
  }
  return out;
}

}  // namespace sluice::cpu
