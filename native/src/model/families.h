// Model families as data: how files name the parts, and which parts a family has.
#pragma once

#include <span>
#include <string_view>

#include "ops/ops.h"

namespace sluice {

enum class QkNorm : uint8_t {
  none,
  head,   // RMSNorm over each head of q and k before the rotation
  whole,  // over all heads together
};

// Names of a mixture-of-experts layer's parts, after the layer's prefix. Empty = the family has no such part.
struct MoeNames {
  std::string_view router;
  bool router_bias = false;
  std::string_view selection_bias;  // no suffix
  std::string_view experts;         // + ".3." + gate, up, down; or, fused, + ".gate_up_proj" and ".down_proj"
  std::string_view gate, up, down;
  std::string_view shared;          // + "." + gate, up, down
  std::string_view shared_gate;
  // gpt-oss: all experts of a layer in one tensor, inputs first ([experts][hidden][2 inter], gate and up alternating), or
  // MXFP4 blocks and scales with outputs first; biases beside.
  bool fused = false;
};

struct Family {
  std::string_view gguf;                 // general.architecture, and the family's name in messages
  std::span<const std::string_view> hf;  // config.json "architectures"
  bool qkv_bias = false;                 // q, k, v have biases even where the config does not say so
  QkNorm qk_norm = QkNorm::none;
  bool gguf_interleaved_rope = false;    // GGUF files of this family store q and k with rotary pairs side by side
  bool sinks = false;                    // a logit a head in the softmax's denominator
  bool mla = false;
  const MoeNames* moe = nullptr;         // null = dense
  RouteKind route = RouteKind::softmax_topk;
  bool renormalise = false;              // of the chosen experts' weights, where the config does not say
  ActivationKind activation = ActivationKind::swiglu;
};

// Null when unknown.
const Family* find_family_gguf(std::string_view architecture);
const Family* find_family_hf(std::string_view architecture);

// Tensor names. A layer's are prefix + number + '.' + part + ".weight" or ".bias".
struct NameMap {
  std::string_view embedding, final_norm, head;  // whole names
  std::string_view layer_prefix;
  std::string_view attention_norm, q, k, v, o, q_norm, k_norm, mlp_norm, gate, up, down;
  std::string_view sinks;  // no suffix
  std::string_view q_a, q_a_norm, q_b, kv_a, kv_a_norm, kv_b;  // latent attention
};
extern const NameMap kGgufNames;
extern const NameMap kHfNames;

}  // namespace sluice
