// The operations table: the contract between the model (which strings operations together), the scheduler (which plans
// steps) and a backend (which computes them). docs/engine-operations.md explains it: shapes, memory, determinism, graphs.
//
// A backend derives from Ops and overrides what it builds. What it does not build keeps the default here, which throws
// std::runtime_error "operation X is not supported by backend Y: why". Nothing is skipped silently.
//
// Every pointer in this file is a pointer into the backend's own memory unless its comment says "host".
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ops/step.h"

namespace sluice {

[[noreturn]] void unsupported(std::string_view backend, std::string_view operation, std::string_view why);

// ---------------------------------------------------------------------------------------------------------------------
// Weights

enum class WeightFormat : uint8_t {
  f32,
  f16,
  bf16,
  fp8_e4m3,
  int8,   // symmetric, scales beside
  int4,   // two a byte, low nibble first, groups along the input; scales and optional zero points beside
  mxfp4,  // OCP MX: e2m1 values, two a byte, low nibble first; an e8m0 exponent for each 32 of a row, beside
  u8,     // no weights: bytes that are part of another tensor (exponents)
  // GGUF block formats: scales live inside the blocks.
  q4_0,
  q4_1,
  q5_0,
  q5_1,
  q8_0,
  q4_k,
  q5_k,
  q6_k,
};

enum class ScaleLayout : uint8_t { none, per_tensor, per_row, per_group, block_128x128 };

// A weight matrix as its file holds it, in host memory: rows = outputs, columns = inputs, row-major.
struct WeightSource {
  std::string_view name;  // for messages
  WeightFormat format = WeightFormat::f32;
  int32_t rows = 0;
  int32_t cols = 0;
  const std::byte* data = nullptr;
  ScaleLayout scale_layout = ScaleLayout::none;
  const float* scales = nullptr;      // per_tensor 1, per_row [rows], per_group [rows][cols / group],
                                      // block_128x128 [ceil(rows / 128)][ceil(cols / 128)]
  const uint8_t* zeros = nullptr;     // int4: zero point per group, or null = symmetric around 8
  const uint8_t* exponents = nullptr; // mxfp4: [rows][cols / 32], value 2^(e - 127)
  int32_t group = 0;                  // columns a scale covers, for per_group
  std::span<const int32_t> row_order; // empty, or output r is the file's row row_order[r]: a permutation or a choice
  // Bytes from a row to the next and from a value to the next of its row; 0 = packed. A slice of columns has a row stride,
  // a file that stores inputs first has both. col_stride: f32, f16 and bf16 only.
  int64_t row_stride = 0;
  int64_t col_stride = 0;
};

// A matrix in the layout of its backend's kernels, made once at load by prepare_*.
class Linear {
 public:
  virtual ~Linear() = default;
  int32_t rows = 0;
  int32_t cols = 0;
  int64_t bytes = 0;  // what one whole read of it moves
};

enum class ActivationKind : uint8_t {
  swiglu,          // silu(gate) * up
  geglu_tanh,      // gelu_tanh(gate) * up
  swiglu_clamped,  // gpt-oss: g = min(gate, limit), u = clamp(up, -limit, limit): g sigmoid(alpha g) (u + 1)
};

struct Activation {
  ActivationKind kind = ActivationKind::swiglu;
  float alpha = 1.702f;
  float limit = 7.0f;
};

// ---------------------------------------------------------------------------------------------------------------------
// Mixture of experts. For a token x:
//   s = router x (+ bias);  ids, w = the top_k experts that `route` chooses from s, by falling rank, ties to the smaller id
//   out = sum over k of w[k] expert(ids[k])(x)  +  sum over the shared experts of g shared(i)(x)
//   expert(x) = down act(gate x + b, up x + b) + b;   g = 1, or sigmoid(shared_gate x)
// The sums run in that order, so out has one value whatever the batch.

enum class RouteKind : uint8_t {
  softmax_topk,          // w = softmax over all experts, chosen by it (Mixtral, Qwen3, OLMoE, DeepSeek-V2)
  topk_softmax,          // chosen by s, w = softmax over the chosen (gpt-oss, Granite)
  sigmoid_bias_grouped,  // w = sigmoid(s), chosen by w + selection bias (DeepSeek-V3)
};

struct MoeSpec {
  RouteKind route = RouteKind::softmax_topk;
  int32_t n_experts = 0;      // routed, logical
  int32_t top_k = 0;
  // With n_groups > 1 only experts of the top_groups best groups can be chosen. Groups are equal runs of experts; one is as
  // good as its best expert (softmax_topk: DeepSeek-V2's group_limited_greedy) or its best two together (sigmoid).
  int32_t n_groups = 1;
  int32_t top_groups = 1;
  bool renormalise = false;   // w /= sum of w over the chosen
  float scale = 1.0f;         // then w *= scale
  int32_t n_shared = 0;       // experts that every token visits
  Activation activation;
};

// One expert as its file holds it. Biases are host vectors, or empty: gpt-oss has all three, most models none.
struct ExpertSource {
  WeightSource gate;  // [inter][hidden]
  WeightSource up;
  WeightSource down;  // [hidden][inter]
  std::span<const float> gate_bias;  // [inter]
  std::span<const float> up_bias;    // [inter]
  std::span<const float> down_bias;  // [hidden]
};

struct MoeSource {
  MoeSpec spec;
  WeightSource router;                    // [n_experts][hidden]
  std::span<const float> router_bias;     // [n_experts], or empty
  std::span<const float> selection_bias;  // [n_experts], or empty
  // The physical routed experts (n_experts, or more with replicas), then the shared ones, all of one width: a wider shared
  // MLP is cut into several (its activations are elementwise, so the parts add up to the whole).
  std::span<const ExpertSource> experts;
  WeightSource shared_gate;               // [1][hidden]; no data = weight 1 (Qwen2-MoE has it)
};

// The MoE weights of one layer in the layout of its backend's kernels.
class MoeWeights {
 public:
  virtual ~MoeWeights() = default;
  MoeSpec spec;
  int32_t n_physical = 0;  // routed experts with their replicas
  int32_t hidden = 0;
  int32_t inter = 0;
  int64_t expert_bytes = 0;
};

// ---------------------------------------------------------------------------------------------------------------------
// The step on the device

// What begin_step made of a StepPlan. The arrays lie in fixed buffers, written anew each step, so that a captured graph
// stays valid; `counts` too. max_* are what a launch is sized by (a graph bucket, or the exact counts on the CPU);
// elements past the counts must be neither read nor written by an operation.
struct StepCounts {
  int32_t n_tokens;
  int32_t n_rows;
  int32_t n_logits;
};

struct StepView {
  const StepCounts* counts;
  int32_t max_tokens;
  int32_t max_rows;
  int32_t max_logits;
  const Token* tokens;             // [n_tokens]
  const int32_t* positions;        // [n_tokens]
  const int32_t* token_rows;       // [n_tokens] index into `rows` (not the row id)
  const int32_t* logit_tokens;     // [n_logits] index of the token whose logits are wanted, in the order of the plan
  const RowWork* rows;             // [n_rows]; n_new - 1 of a row's tokens are drafts when n_logits == n_new > 1
  std::span<const BlockTables::Group> tables;  // [groups] [max_rows][blocks_per_row], indexed by row id
};

// Names a captured graph: token and logit buckets. Steps of one key run the same launches.
struct GraphKey {
  int32_t tokens;
  int32_t logits;
  bool operator==(const GraphKey&) const = default;
};

// ---------------------------------------------------------------------------------------------------------------------
// KV memory

enum class KvType : uint8_t { f32, f16, bf16, fp8_e4m3, int8 };

// One KV group's pool. A block holds kBlockTokens tokens of all the group's layers in one piece:
//   full, sliding: [layer][K: head][..][V: head][..]; the order inside a head is the backend's own
//   mla_latent:    [layer][token][latent + rope]
// so that (block, layer range) is one contiguous copy.
struct KvPool {
  std::byte* data = nullptr;
  int64_t block_bytes = 0;
  int64_t layer_bytes = 0;
  int32_t n_blocks = 0;
  int32_t n_layers = 0;
  KvGroupKind kind = KvGroupKind::full;
  KvType type = KvType::f32;
  int32_t n_kv_heads = 0;
  int32_t head_dim = 0;
  int32_t latent_dim = 0;  // mla_latent: width of the compressed part; head_dim is then the rope part
};

struct KvShape {
  KvGroupKind kind = KvGroupKind::full;
  int32_t n_layers = 0;
  int32_t n_kv_heads = 0;
  int32_t head_dim = 0;
  int32_t latent_dim = 0;
};

// ---------------------------------------------------------------------------------------------------------------------
// Parameters of single operations
//
// Activations are row-major and packed, [tokens][width], in the element type of the backend (Capabilities::activations);
// here they are `void*`. What is float* is fp32 on every backend: the residual stream, rotary tables, norm weights, logits.

enum class ElementType : uint8_t { f32, bf16 };

// Rotary embedding in the half-split form: pair i is (x[i], x[i + dim/2]). Sources with interleaved pairs are reordered
// at load (WeightSource::row_order). cos/sin are made once a step by rope_tables.
struct RopeSpec {
  int32_t dim = 0;                   // rotated dimensions a head, <= head_dim
  std::vector<float> inv_frequency;  // host, [dim / 2], scaling already applied
  float magnitude = 1.0f;            // multiplies cos and sin (YaRN)
};

// Groups full and sliding.
struct RopeKvWrite {
  void* qkv;               // [n_tokens][(n_heads + 2 n_kv_heads) head_dim]; its q and k are garbage afterwards
  int32_t n_heads;
  int32_t n_kv_heads;
  int32_t head_dim;
  // RMSNorm weights applied before the rotation, or null. norm_whole false: [head_dim], each head by itself (Qwen3);
  // true: [n_heads head_dim] and [n_kv_heads head_dim], over all heads together (OLMoE).
  const float* q_norm;
  const float* k_norm;
  bool norm_whole;
  float norm_eps;
  const float* cos_sin;    // rope_tables' output
  int32_t rope_dim;
  int32_t layer;           // inside its KV group
  int32_t group;           // index into StepView::tables
  void* q_out;             // [n_tokens][n_heads head_dim]
};

// Group mla_latent: multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, 2.1) with the key's up-projection absorbed
// into the query. A token's KV is one vector of latent_dim + rope_dim, shared by all heads:
//   [ RMSNorm(kv[0 .. latent_dim)) latent_norm , rotated kv[latent_dim ..) ]
// and a query is [ W_UK(head)^T q_nope , rotated q_rope ]: head_linear writes the first part of q_out before, this
// operation the second.
struct MlaKvWrite {
  const void* q;             // [n_tokens][n_heads][nope_dim + rope_dim]
  const void* kv;            // [n_tokens][latent_dim + rope_dim]
  int32_t n_heads;
  int32_t nope_dim;
  int32_t rope_dim;
  int32_t latent_dim;
  const float* latent_norm;  // [latent_dim]
  float norm_eps;
  const float* cos_sin;      // rope_tables' output
  int32_t layer;
  int32_t group;
  void* q_out;               // [n_tokens][n_heads][latent_dim + rope_dim]; written from latent_dim on
};

// A matrix a head, as MLA's up-projections are: y[t][h][0 .. rows) = W(h) x[t][h][0 .. cols).
struct HeadLinear {
  const Linear* weight;  // prepare_head_linear: n_heads matrices of [rows][cols]
  int32_t n_heads;
  const void* x;         // [n_tokens][n_heads][x_stride]
  int32_t x_stride;      // elements from a head to the next, >= cols
  void* y;               // [n_tokens][n_heads][y_stride]
  int32_t y_stride;      // >= rows; elements past rows are left alone
};

// Causal attention over paged KV. Query i of head h sees the keys j of its own row with
//   max(0, position(i) - window + 1) <= j <= position(i)   (window 0: all up to itself)
//   p(j) = exp(scale q k(j)) / (sum over the seen keys of exp(scale q k) + exp(sinks[h]), without the latter where null)
//   out = sum of p(j) v(j)
// full, sliding: head h reads kv head h / (n_heads / n_kv_heads) of width head_dim.
// mla_latent: all heads read the same keys k(j) = the whole vector of latent_dim + head_dim, and v(j) = its first
// latent_dim elements. (KvPool::head_dim is the rotary part there.)
// Blocks of keys that no query of a row can see any more may be gone: they must not be read.
struct Attention {
  const void* q;           // [n_tokens][n_heads head_dim]; mla_latent: [n_tokens][n_heads (latent_dim + head_dim)]
  int32_t n_heads;
  int32_t layer;           // inside its KV group
  int32_t group;           // index into StepView::tables
  float scale;
  int32_t window;          // 0, or the tokens a query sees, itself included
  const float* sinks;      // [n_heads] logits that join the softmax's denominator, or null
  void* out;               // [n_tokens][n_heads head_dim]; mla_latent: [n_tokens][n_heads latent_dim]
};

struct MoeLayer {
  const MoeWeights* weights;
  const void* x;                      // [n_tokens][hidden]
  void* out;                          // [n_tokens][hidden]; not x
  // Physical experts of a logical one, [n_experts][max_replicas], -1 = none; null = the logical id is the physical one.
  // Replicas hold equal weights, so which of them a token visits changes no number.
  const int32_t* replicas = nullptr;
  int32_t max_replicas = 0;
  int64_t* expert_tokens = nullptr;   // in and out, or null: [n_physical] tokens sent to each so far, for balancing
  int32_t* expert_ids = nullptr;      // out, or null: [n_tokens][top_k] logical ids
  float* expert_weights = nullptr;    // out, or null: [n_tokens][top_k]
};

// Per-row sampling state in fixed tables, written when a generation is admitted (DESIGN: order of the steps, RNG keyed by
// seed, choice and position). Rows are indexed by row id.
struct SamplingRow {
  float temperature;  // 0 = greedy
  float top_p;
  float min_p;
  int32_t top_k;      // 0 = all
  float repetition_penalty;
  float presence_penalty;
  float frequency_penalty;
  uint64_t seed;
  uint32_t choice;
  int32_t n_logprobs;  // -1 = none; 0 = the chosen token only
};

struct Sample {
  const float* logits;               // [n_logits][vocab]
  int32_t vocab;
  const SamplingRow* rows;           // [max_rows]
  const uint32_t* masks;             // grammar mask pool [mask id][ceil(vocab / 32)], bit = allowed
  const int32_t* mask_ids;           // [n_logits], -1 = unconstrained; one per draft position
  const int32_t* token_counts;       // [max_rows][vocab] occurrences in prompt (high 16) and output (low 16), or null
  const Token* bias_tokens;          // logit bias as CSR over rows: offsets [max_rows + 1]
  const float* bias_values;
  const int32_t* bias_offsets;
  const Token* drafts;               // [n_tokens] StepView::tokens when drafts are verified
  Token* out_tokens;                 // [n_logits]
  int32_t* out_accepted;             // [n_rows] drafts accepted
  float* out_logprobs;               // [n_logits][1 + max n_logprobs]
  Token* out_logprob_tokens;
};

// What a step may need at most: begin_step refuses more.
struct StepLimits {
  int32_t max_tokens;
  int32_t max_rows;
  int32_t max_logits;
  int32_t max_positions;  // longest row
  int32_t max_cols;       // widest input of any Linear
  int32_t n_heads;
  int32_t n_kv_heads;  // 1 for mla_latent
  int32_t head_dim;    // widest key: latent_dim + rope for mla_latent
  // Of the widest MoE layer; zeros where there is none.
  int32_t n_experts = 0;        // logical
  int32_t experts_a_token = 0;  // top_k + shared
  int32_t expert_inter = 0;
  int32_t expert_hidden = 0;
};

// Where a step's time went, one entry an operation; collected only when the environment variable SLUICE_PROF is 1.
struct StageTime {
  std::string stage;
  int64_t calls;
  double seconds;
  int64_t bytes;  // weights and KV read
};

// What a backend is asked before a model is built on it.
struct Capabilities {
  bool moe = false;
  bool mla = false;
  bool sampling = false;
  bool host_memory = false;    // backend memory is host memory: results may be written straight to the caller's arrays
  bool device_counts = false;  // kernels read StepView::counts on the device, so steps can be captured
  ElementType activations = ElementType::f32;
};

// ---------------------------------------------------------------------------------------------------------------------

class Ops {
 public:
  virtual ~Ops() = default;
  virtual std::string_view name() const = 0;  // "cpu-fast-avx512", "cuda", ...
  virtual Capabilities capabilities() const = 0;

  // --- at load -------------------------------------------------------------------------------------------------------
  // Parts are concatenated along their outputs (q, k, v become one matrix; gate, up another). bias: host [rows] or empty.
  // Throws std::runtime_error with the part's name when its format has no kernel here.
  virtual std::unique_ptr<Linear> prepare_linear(std::span<const WeightSource> parts, std::span<const float> bias);
  // A table read one row a token. Keeps the source's memory (host, mapped) where the backend can read it.
  virtual std::unique_ptr<Linear> prepare_embedding(const WeightSource& table);
  // One matrix a head, all of one shape (HeadLinear).
  virtual std::unique_ptr<Linear> prepare_head_linear(std::span<const WeightSource> heads);
  virtual std::unique_ptr<MoeWeights> prepare_moe(const MoeSource& source);
  // Copies a small vector (norm weights, sinks) into backend memory; lives as long as the Ops.
  virtual const float* upload(std::span<const float> values);
  virtual KvPool make_kv_pool(const KvShape& shape, int32_t n_blocks);  // freed with the Ops; blocks start as zeros
  virtual int64_t kv_block_bytes(const KvShape& shape) const;
  virtual float* workspace(int64_t n_floats);  // zeroed, freed with the Ops
  virtual void reserve(const StepLimits& limits);  // everything else a step needs; nothing is allocated afterwards

  // --- a step --------------------------------------------------------------------------------------------------------
  virtual const StepView& begin_step(const StepPlan& plan, const BlockTables& tables);
  // Runs `forward` (a sequence of the operations below). A backend with graphs captures it the first time it sees `key`
  // and replays it afterwards, so `forward` must do nothing else and must depend on nothing but the key.
  virtual void run(const GraphKey& key, const std::function<void()>& forward);
  // Waits, and copies `n` floats to the host.
  virtual void read(const float* source, std::span<float> host_out);

  virtual void embed(const Linear& table, const StepView& step, float scale, float* out);  // [n_tokens][hidden]
  // residual += delta (skipped when delta is null), then out = residual / sqrt(mean(residual^2) + eps) * weight.
  // With gather set, only tokens step.logit_tokens are normalised, packed to [n_logits][hidden].
  virtual void rmsnorm(const StepView& step, float* residual, const void* delta, const float* weight, int32_t width,
                       float eps, bool gather, void* out);
  // out = x / sqrt(mean(x^2) + eps) * weight over activations [n_tokens][width]; out may be x.
  virtual void norm(const StepView& step, const void* x, const float* weight, int32_t width, float eps, void* out);
  // y[m][rows] = x[m][cols] W^T + bias. over_logits: m = n_logits instead of n_tokens, and y is fp32.
  virtual void linear(const StepView& step, const Linear& weight, const void* x, void* y, bool over_logits);
  virtual void head_linear(const StepView& step, const HeadLinear& args);
  virtual void rope_tables(const StepView& step, const RopeSpec& rope, float* cos_sin);  // [n_tokens][dim]: cos, then sin
  virtual void rope_kv_write(const StepView& step, const RopeKvWrite& args, KvPool& pool);
  virtual void mla_kv_write(const StepView& step, const MlaKvWrite& args, KvPool& pool);
  virtual void attention(const StepView& step, const Attention& args, const KvPool& pool);
  virtual void activation(const StepView& step, const Activation& kind, const void* gate_up, int32_t inter, void* out);
  virtual void moe_layer(const StepView& step, const MoeLayer& args);
  virtual void sample(const StepView& step, const Sample& args);
  // Copies whole blocks inside a pool (fork of a row): pairs (from, to), host.
  virtual void copy_blocks(KvPool& pool, std::span<const std::pair<int32_t, int32_t>> pairs);

  virtual std::vector<StageTime> stage_times() const { return {}; }
};

}  // namespace sluice
