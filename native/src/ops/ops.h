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
  mxfp4,  // OCP MX: 32 e2m1 values and one e8m0 exponent a block
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
  int32_t group = 0;                  // columns a scale covers, for per_group
  std::span<const int32_t> row_order; // empty, or a permutation: output r is the file's row row_order[r]
};

// A matrix in the layout of its backend's kernels, made once at load by prepare_*.
class Linear {
 public:
  virtual ~Linear() = default;
  int32_t rows = 0;
  int32_t cols = 0;
  int64_t bytes = 0;  // what one whole read of it moves
};

// One expert as its file holds it. Biases are host vectors, or empty: gpt-oss has all three, most models none.
struct ExpertSource {
  WeightSource gate;
  WeightSource up;
  WeightSource down;
  std::span<const float> gate_bias;  // [inter]
  std::span<const float> up_bias;    // [inter]
  std::span<const float> down_bias;  // [hidden]
};

// The experts of one layer, likewise.
class Experts {
 public:
  virtual ~Experts() = default;
  int32_t n_experts = 0;
  int32_t hidden = 0;
  int32_t inter = 0;
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

// Rotary embedding in the half-split form: pair i is (x[i], x[i + dim/2]). Sources with interleaved pairs are reordered
// at load (WeightSource::row_order). cos/sin are made once a step by rope_tables.
struct RopeSpec {
  int32_t dim = 0;                   // rotated dimensions a head, <= head_dim
  std::vector<float> inv_frequency;  // host, [dim / 2], scaling already applied
  float magnitude = 1.0f;            // multiplies cos and sin (YaRN)
};

struct RopeKvWrite {
  const float* qkv;        // [n_tokens][(n_heads + 2 n_kv_heads) head_dim]
  int32_t n_heads;
  int32_t n_kv_heads;
  int32_t head_dim;
  const float* q_norm;     // [head_dim] RMSNorm weights applied a head before the rotation, or null
  const float* k_norm;
  float norm_eps;
  const float* cos_sin;    // rope_tables' output
  int32_t rope_dim;
  int32_t layer;           // inside its KV group
  int32_t group;           // index into StepView::tables
  float* q_out;            // [n_tokens][n_heads head_dim]
};

struct Attention {
  const float* q;          // [n_tokens][n_heads head_dim]; mla_latent: [n_tokens][n_heads (latent_dim + head_dim)]
  int32_t n_heads;
  int32_t layer;
  int32_t group;
  float scale;
  int32_t window;          // 0, or the tokens a query sees, itself included
  const float* sinks;      // [n_heads] logits that join the softmax's denominator, or null
  float* out;              // [n_tokens][n_heads head_dim]; mla_latent: [n_tokens][n_heads latent_dim]
};

enum class ActivationKind : uint8_t {
  swiglu,          // silu(gate) * up
  geglu_tanh,      // gelu_tanh(gate) * up
  swiglu_clamped,  // gpt-oss: gate, up clamped to `limit`; gate sigmoid(alpha gate) (up + 1)
};

struct Activation {
  ActivationKind kind = ActivationKind::swiglu;
  float alpha = 1.702f;
  float limit = 7.0f;
};

enum class RouteKind : uint8_t {
  softmax_topk,          // softmax over all experts, then top-k (renormalise: Qwen3, Mixtral; without: OLMoE)
  topk_softmax,          // top-k of the logits, softmax over those (gpt-oss, Granite)
  sigmoid_bias_grouped,  // DeepSeek-V3: sigmoid; selection by score + bias inside the best groups; weights by score
};

struct MoeRoute {
  RouteKind kind;
  const float* logits;          // [n_tokens][n_experts]
  const float* selection_bias;  // [n_experts] or null
  int32_t n_experts;
  int32_t top_k;
  int32_t n_groups;             // 1 = ungrouped
  int32_t top_groups;
  bool renormalise;
  float scale;
  int32_t n_shared;             // experts n_experts .. n_experts + n_shared - 1 join each token with weight 1
  const int32_t* replicas;      // [n_experts][max_replicas] physical experts of a logical one, -1 = none; null = identity
  int32_t max_replicas;
  int32_t* expert_ids;          // out [n_tokens][top_k + n_shared], by falling score, ties to the smaller id
  float* expert_weights;        // out [n_tokens][top_k + n_shared]
  int64_t* expert_tokens;       // in and out [physical experts], tokens routed so far (for balancing), or null
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
  int32_t n_kv_heads;
  int32_t head_dim;
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
  // Shared experts come behind the routed ones and take part in every token (MoeRoute::n_shared).
  virtual std::unique_ptr<Experts> prepare_experts(std::span<const ExpertSource> experts);
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
  virtual void rmsnorm(const StepView& step, float* residual, const float* delta, const float* weight, int32_t width,
                       float eps, bool gather, float* out);
  // y[m][rows] = x[m][cols] W^T + bias. over_logits: m = n_logits instead of n_tokens.
  virtual void linear(const StepView& step, const Linear& weight, const float* x, float* y, bool over_logits);
  virtual void rope_tables(const StepView& step, const RopeSpec& rope, float* cos_sin);  // [n_tokens][dim]: cos, then sin
  virtual void rope_kv_write(const StepView& step, const RopeKvWrite& args, KvPool& pool);
  virtual void attention(const StepView& step, const Attention& args, const KvPool& pool);
  virtual void activation(const StepView& step, const Activation& kind, const float* gate_up, int32_t inter, float* out);
  virtual void moe_route(const StepView& step, const MoeRoute& args);
  // out[token][k][hidden] of the token's k-th expert; moe_combine sums them in the order of k, so the result has one value.
  virtual void moe_experts(const StepView& step, const Experts& experts, const Activation& kind, const float* x,
                           const int32_t* expert_ids, int32_t top_k, float* out);
  virtual void moe_combine(const StepView& step, const float* expert_out, const float* expert_weights, int32_t top_k,
                           int32_t hidden, float* out);
  virtual void sample(const StepView& step, const Sample& args);
  // Copies whole blocks inside a pool (fork of a row): pairs (from, to), host.
  virtual void copy_blocks(KvPool& pool, std::span<const std::pair<int32_t, int32_t>> pairs);

  virtual std::vector<StageTime> stage_times() const { return {}; }
};

}  // namespace sluice
