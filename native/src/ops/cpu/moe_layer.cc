// A mixture-of-experts layer on the CPU: route, sort the visits by expert, two products an expert, combine.
//
// A visit is one (token, expert) pair. Visits lie sorted by expert, so that an expert's weights are walked once a step and
// its visits share the unpacking of a panel; a visit's numbers do not depend on its neighbours, and a token's visits are
// added up in the order of its choice, so the sort changes no bit.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "ops/cpu/cpu_ops_impl.h"
#include "ops/cpu/moe_route.h"

namespace sluice::cpu {

namespace {

struct PackedMoe final : MoeWeights {
  std::unique_ptr<PackedLinear> router;       // fp32: a rounded router would choose other experts
  std::unique_ptr<PackedLinear> shared_gate;  // fp32, or null
  std::vector<float> selection_bias;
  std::vector<std::unique_ptr<PackedLinear>> gate_up, down;  // routed, then shared
};

}  // namespace

std::unique_ptr<MoeWeights> CpuOps::prepare_moe(const MoeSource& source) {
  check_moe_spec(source.spec);
  if (source.spec.activation.kind == ActivationKind::geglu_tanh) unsupported(name_, "prepare_moe", "GeGLU is not built on the CPU");
  auto out = std::make_unique<PackedMoe>();
  out->spec = source.spec;
  out->n_physical = static_cast<int32_t>(source.experts.size()) - source.spec.n_shared;
  if (out->n_physical < source.spec.n_experts) throw std::runtime_error("a mixture-of-experts layer lacks experts");
  out->hidden = source.router.cols;
  out->inter = source.experts.front().gate.rows;
  out->router = pack_linear({&source.router, 1}, source.router_bias, false, weights_);
  if (source.shared_gate.data != nullptr) out->shared_gate = pack_linear({&source.shared_gate, 1}, {}, false, weights_);
  out->selection_bias.assign(source.selection_bias.begin(), source.selection_bias.end());
  std::vector<float> bias;
  for (const ExpertSource& expert : source.experts) {
    if (expert.gate.rows != out->inter || expert.up.rows != out->inter || expert.down.cols != out->inter ||
        expert.gate.cols != out->hidden || expert.up.cols != out->hidden || expert.down.rows != out->hidden) {
      throw std::runtime_error("tensor " + std::string(expert.gate.name) + ": experts differ in shape");
    }
    const WeightSource parts[] = {expert.gate, expert.up};
    bias.assign(expert.gate_bias.begin(), expert.gate_bias.end());
    bias.insert(bias.end(), expert.up_bias.begin(), expert.up_bias.end());
    out->gate_up.push_back(pack_linear(parts, bias, !exact_, weights_));
    out->down.push_back(pack_linear({&expert.down, 1}, expert.down_bias, !exact_, weights_));
  }
  out->expert_bytes = out->gate_up.front()->bytes + out->down.front()->bytes;
  return out;
}

void CpuOps::reserve_moe() {
  const int64_t tokens = limits_.max_tokens, visits = tokens * limits_.experts_a_token;
  moe_.logits = workspace(tokens * limits_.n_experts);
  moe_.shared_gate = workspace(tokens);
  moe_.x = exact_ ? workspace(visits * limits_.expert_hidden) : nullptr;
  moe_.gate_up = workspace(visits * 2 * limits_.expert_inter);
  moe_.activated = workspace(visits * limits_.expert_inter);
  moe_.out = workspace(visits * limits_.expert_hidden);
  const auto n = static_cast<size_t>(visits);
  moe_.ids.resize(n);
  moe_.weights.resize(n);
  moe_.experts.resize(n);
  moe_.visit_of.resize(n);
  moe_.token_of.resize(n);
  // Without replicas these are enough; with them the first steps may grow them once.
  const auto experts = static_cast<size_t>(limits_.n_experts + limits_.experts_a_token);
  moe_.first_visit.reserve(experts + 1);
  moe_.next_visit.reserve(experts);
  moe_.active.reserve(experts);
}

void CpuOps::choose(const StepView& step, const MoeWeights& weights, const float* selection_bias, const float* shared_gate) {
  const MoeSpec& spec = weights.spec;
  const int width = spec.top_k + spec.n_shared;
  for_tokens(step.counts->n_tokens, 16, [&](int token, int) {
    int32_t* ids = moe_.ids.data() + int64_t{token} * width;
    float* w = moe_.weights.data() + int64_t{token} * width;
    choose_experts(spec, moe_.logits + int64_t{token} * spec.n_experts, selection_bias, ids, w);
    const double g = shared_gate == nullptr ? 1.0 : 1.0 / (1.0 + std::exp(-static_cast<double>(shared_gate[token])));
    for (int s = 0; s < spec.n_shared; ++s) {
      ids[spec.top_k + s] = spec.n_experts + s;
      w[spec.top_k + s] = static_cast<float>(g);
    }
  });
}

void CpuOps::sort_visits(const MoeWeights& weights, const MoeLayer& args, int n_tokens) {
  const MoeSpec& spec = weights.spec;
  const int width = spec.top_k + spec.n_shared;
  const int n_experts = weights.n_physical + spec.n_shared;
  moe_.first_visit.assign(static_cast<size_t>(n_experts) + 1, 0);
  for (int i = 0; i < n_tokens * width; ++i) {
    const auto at = static_cast<size_t>(i);
    int32_t expert = moe_.ids[at];
    if (expert >= spec.n_experts) {
      expert += weights.n_physical - spec.n_experts;
    } else if (args.replicas != nullptr) {
      const int32_t* replicas = args.replicas + int64_t{expert} * args.max_replicas;
      const auto n = static_cast<int>(std::find(replicas, replicas + args.max_replicas, -1) - replicas);
      if (n == 0) throw std::runtime_error("expert " + std::to_string(expert) + " has no replica");
      expert = replicas[i / width % n];
      if (expert < 0 || expert >= weights.n_physical) throw std::runtime_error("a replica that does not exist");
    }
    moe_.experts[at] = expert;
    ++moe_.first_visit[static_cast<size_t>(expert) + 1];
    if (args.expert_tokens != nullptr && expert < weights.n_physical) ++args.expert_tokens[expert];
  }
  moe_.active.clear();
  for (int32_t e = 0; e < n_experts; ++e) {
    const auto at = static_cast<size_t>(e);
    if (moe_.first_visit[at + 1] > 0) moe_.active.push_back(e);
    moe_.first_visit[at + 1] += moe_.first_visit[at];
  }
  moe_.next_visit.assign(moe_.first_visit.begin(), moe_.first_visit.end() - 1);
  for (int i = 0; i < n_tokens * width; ++i) {
    const auto at = static_cast<size_t>(i);
    const int32_t visit = moe_.next_visit[static_cast<size_t>(moe_.experts[at])]++;
    moe_.visit_of[at] = visit;
    moe_.token_of[static_cast<size_t>(visit)] = i / width;
  }
}

void CpuOps::multiply_visits(std::span<const std::unique_ptr<PackedLinear>> experts, const float* x,
                             const QuantActivations& quant, float* y) {
  const PackedLinear& first = *experts.front();
  const auto n_active = static_cast<int>(moe_.active.size());
  // Enough pieces for the threads even where few experts are visited.
  const int pieces = std::clamp((4 * pool_.n_threads() + n_active - 1) / n_active, 1, first.n_panels);
  pool_.for_each(n_active * pieces, [&](int task, int) {
    const int32_t expert = moe_.active[static_cast<size_t>(task / pieces)];
    const PackedLinear& w = *experts[static_cast<size_t>(expert)];
    const int32_t begin = moe_.first_visit[static_cast<size_t>(expert)], end = moe_.first_visit[static_cast<size_t>(expert) + 1];
    const int64_t piece = task % pieces;
    for (int64_t p = piece * w.n_panels / pieces; p < (piece + 1) * w.n_panels / pieces; ++p) {
      multiply_panel(w, p, x == nullptr ? nullptr : x + int64_t{begin} * w.cols, w.cols, quant, begin, end - begin,
                     y + int64_t{begin} * w.rows, w.rows);
    }
  });
}

void CpuOps::moe_layer(const StepView& step, const MoeLayer& args) {
  const auto& moe = static_cast<const PackedMoe&>(*args.weights);
  const int n = step.counts->n_tokens, width = moe.spec.top_k + moe.spec.n_shared, visits = n * width;
  const int hidden = moe.hidden, inter = moe.inter;
  const auto* x = static_cast<const float*>(args.x);
  auto* out = static_cast<float*>(args.out);
  const Timer timer(*this, kMoe, 0);

  multiply(*moe.router, x, n, moe_.logits);
  if (moe.shared_gate != nullptr) multiply(*moe.shared_gate, x, n, moe_.shared_gate);
  choose(step, moe, moe.selection_bias.empty() ? nullptr : moe.selection_bias.data(),
         moe.shared_gate == nullptr ? nullptr : moe_.shared_gate);
  sort_visits(moe, args, n);
  if (profiling_) stages_[kMoe].bytes += moe.expert_bytes * static_cast<int64_t>(moe_.active.size());

  // Visits' activations, gathered.
  QuantActivations quant = quant_;
  if (exact_) {
    for_tokens(visits, 16, [&](int visit, int) {
      std::memcpy(moe_.x + int64_t{visit} * hidden, x + int64_t{moe_.token_of[static_cast<size_t>(visit)]} * hidden,
                  static_cast<size_t>(hidden) * sizeof(float));
    });
  } else {
    quant.n_blocks = (hidden + kQuantBlock - 1) / kQuantBlock;
    for_tokens(visits, 8, [&](int visit, int) {
      kernels_.quantize(x + int64_t{moe_.token_of[static_cast<size_t>(visit)]} * hidden, hidden, visit, quant);
    });
  }
  multiply_visits(moe.gate_up, moe_.x, quant, moe_.gate_up);
  for_tokens(visits, 8, [&](int visit, int) {
    const float* in = moe_.gate_up + int64_t{visit} * 2 * inter;
    gate(moe.spec.activation, in, in + inter, inter, moe_.activated + int64_t{visit} * inter);
  });
  if (!exact_) quantize_rows(moe_.activated, inter, inter, visits, quant);
  multiply_visits(moe.down, moe_.activated, quant, moe_.out);

  for_tokens(n, 4, [&](int token, int) {
    const int64_t first = int64_t{token} * width;
    for (int i = 0; i < hidden; ++i) {
      double sum = 0;
      for (int k = 0; k < width; ++k) {
        const auto at = static_cast<size_t>(first + k);
        sum += static_cast<double>(moe_.weights[at]) * static_cast<double>(moe_.out[int64_t{moe_.visit_of[at]} * hidden + i]);
      }
      out[int64_t{token} * hidden + i] = static_cast<float>(sum);
    }
    const int64_t choice = int64_t{token} * moe.spec.top_k;
    if (args.expert_ids != nullptr) std::copy_n(moe_.ids.data() + first, moe.spec.top_k, args.expert_ids + choice);
    if (args.expert_weights != nullptr) std::copy_n(moe_.weights.data() + first, moe.spec.top_k, args.expert_weights + choice);
  });
}

}  // namespace sluice::cpu
