// Weight matrices in the panel layout (layout.h), made from whatever the file holds.
#pragma once

#include <memory>
#include <span>

#include "base/aligned_buffer.h"
#include "ops/cpu/layout.h"
#include "ops/ops.h"

namespace sluice::cpu {

struct PackedLinear final : Linear {
  PanelKind kind = PanelKind::f32;
  int32_t n_blocks = 0;  // of 32 inputs; the last may be padded with zero weights
  int32_t n_panels = 0;  // of 16 outputs; the last may be padded with zero weights
  std::byte* panels = nullptr;
  float* bias = nullptr;  // [n_panels * 16], or null

  const std::byte* panel(int64_t p) const { return panels + p * panel_bytes(kind, n_blocks); }
  const float* panel_bias(int64_t p) const { return bias == nullptr ? nullptr : bias + p * kLanes; }
};

// A table read by rows, left where it lies.
struct EmbeddingTable final : Linear {
  WeightFormat format = WeightFormat::f32;
  const std::byte* data = nullptr;
  int64_t row_bytes = 0;
};

// quantised false: f32 panels. true: q4 where every part is Q4_0 or Q4_1 (bit for bit the file's values), else q8 (the
// file's own values for Q8_0 and MXFP4; others are rounded to 8 bits with a scale per 32 inputs). Throws std::runtime_error naming
// the part when the parts do not fit together or a format cannot be decoded.
// The panels live in `arena`.
std::unique_ptr<PackedLinear> pack_linear(std::span<const WeightSource> parts, std::span<const float> bias,
                                          bool quantised, Arena& arena);
std::unique_ptr<EmbeddingTable> pack_embedding(const WeightSource& table);

}  // namespace sluice::cpu
