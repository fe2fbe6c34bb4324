#include "engine/runner.h"

#include <algorithm>
#include <array>
#include <random>
#include <stdexcept>
#include <string>

namespace sluice {
namespace {

int32_t count_blocks(const EngineOptions& options, const ModelInfo& info) {
  if (options.max_rows < 1) throw std::runtime_error("max_rows must be at least 1");
  if (options.max_step_tokens < options.max_rows)
    throw std::runtime_error("max_step_tokens must be at least max_rows: every row may decode in a step");
  if (options.kv_tokens < kBlockTokens)
    throw std::runtime_error("kv_tokens must be at least " + std::to_string(kBlockTokens));
  if (info.kv_groups.empty()) throw std::runtime_error("the model has no KV group");
  return options.kv_tokens / kBlockTokens;
}

// Seeds the block hashes of this process, so that nobody can prepare colliding prompts.
uint64_t random_seed() {
  std::random_device device;
  return static_cast<uint64_t>(device()) << 32 | device();
}

int32_t table_width(const EngineOptions& options, const ModelInfo& info) {
  const int32_t tokens = std::min(options.kv_tokens, info.context_length);
  return (tokens + kBlockTokens - 1) / kBlockTokens;
}

bool contains(std::span<const Token> tokens, Token token) { return std::ranges::find(tokens, token) != tokens.end(); }

}  // namespace

Runner::Runner(const EngineOptions& options, Model& model, std::vector<Token> grammar_stop_ids, KvLog& log)
    : options_(options),
      model_(model),
      grammar_stop_ids_(std::move(grammar_stop_ids)),
      blocks_per_row_(table_width(options, model.info())),
      block_table_(static_cast<size_t>(options.max_rows) * static_cast<size_t>(blocks_per_row_), 0),
      groups_(model.info().kv_groups.size(), {.blocks = block_table_.data(), .blocks_per_row = blocks_per_row_}),
      log_(log),
      cache_(count_blocks(options, model.info()), random_seed(), log),
      by_row_(static_cast<size_t>(options.max_rows), nullptr),
      mask_workers_(std::max(1, options.mask_threads)),
      budget_(options.step_target_ms, options.max_step_tokens),
      sampler_(model.info().vocab_size),
      logits_(static_cast<size_t>(options.max_rows) * static_cast<size_t>(model.info().vocab_size)) {
  model.reserve(count_blocks(options, model.info()), options.max_rows, options.max_step_tokens, options.max_rows);
  for (int32_t row = options.max_rows - 1; row >= 0; --row) free_rows_.push_back(row);
}

void Runner::cancel(GenerationId id) {
  const auto has_id = [id](const Generation& generation) { return generation.id == id; };
  if (queue_.remove_if(has_id)) {
    ++retired_;
    return;
  }
  for (const auto& generation : running_)
    if (has_id(*generation)) retire(*generation);
  release_retired();
}

void Runner::expire(Clock::time_point now) {
  const auto late = [now](const Generation& generation) { return generation.deadline <= now; };
  constexpr std::string_view message = "The deadline passed before the answer was complete.";
  while (const auto generation = queue_.remove_if(late)) fail(*generation, ErrorCode::deadline_exceeded, true, message);
  for (const auto& generation : running_)
    if (late(*generation)) fail(*generation, ErrorCode::deadline_exceeded, true, message);
  release_retired();
}

void Runner::admit(Clock::time_point now) {
  while (!queue_.empty() && !free_rows_.empty()) {
    const Generation& head = queue_.front();
    auto lease = cache_.reserve(head.context, head.request.salt, head.kv_capacity());
    // The head waits for room rather than being overtaken: a large request would starve behind small ones.
    if (!lease) return;
    place(queue_.pop(), std::move(*lease), now);
  }
}

void Runner::place(std::unique_ptr<Generation> generation, KvLease lease, Clock::time_point now) {
  Generation& placed = *generation;
  placed.row = free_rows_.back();
  free_rows_.pop_back();
  by_row_[static_cast<size_t>(placed.row)] = &placed;
  placed.admitted = now;
  placed.computed = lease.cached_tokens();
  placed.lease = std::move(lease);
  write_table(placed, 0);

  const std::span<const Token> context = placed.context;
  const auto prompt = context.first(static_cast<size_t>(placed.n_prompt));
  if (has_penalties(placed.request.sampling)) {
    placed.counts.add_prompt(prompt);
    for (const Token token : placed.output()) placed.counts.add_output(token);
  }
  if (placed.grammar) mask_workers_.start(placed.grammar, {placed.output().begin(), placed.output().end()});
  const int32_t cached = std::min(placed.computed, placed.n_prompt);
  totals_.cached_tokens += static_cast<uint64_t>(cached);
  events_.accepted(placed.id, cached);
  running_.push_back(std::move(generation));
}

void Runner::write_table(const Generation& generation, size_t from) {
  const auto blocks = generation.lease->blocks();
  const size_t base = static_cast<size_t>(generation.row) * static_cast<size_t>(blocks_per_row_);
  std::copy(blocks.begin() + static_cast<std::ptrdiff_t>(from), blocks.end(),
            block_table_.begin() + static_cast<std::ptrdiff_t>(base + from));
}

void Runner::step() {
  views_.clear();
  int32_t decode_rows = 0;
  for (const auto& generation : running_) {
    views_.push_back({.row = generation->row, .computed = generation->computed, .known = generation->known(), .drafts = 0});
    decode_rows += generation->known() - generation->computed == 1 ? 1 : 0;
  }
  plan_step(views_, {.max_tokens = options_.max_step_tokens, .prefill_tokens = budget_.prefill_tokens(decode_rows)}, work_);

  tokens_.clear();
  int32_t n_logits = 0;
  for (const RowWork& work : work_) {
    const auto& context = by_row_[static_cast<size_t>(work.row)]->context;
    tokens_.insert(tokens_.end(), context.begin() + work.first_pos, context.begin() + work.first_pos + work.n_new);
    n_logits += work.n_logits;
  }
  const auto vocab = static_cast<size_t>(model_.info().vocab_size);
  const std::span<float> logits = std::span<float>(logits_).first(static_cast<size_t>(n_logits) * vocab);

  const auto begin = Clock::now();
  model_.forward({.rows = work_, .tokens = tokens_, .n_logits = n_logits}, {.groups = groups_}, logits);
  const double forward_ms = milliseconds(Clock::now() - begin);
  const auto prefilled = static_cast<int32_t>(tokens_.size()) - decode_rows;
  budget_.observe(decode_rows, prefilled, forward_ms);

  size_t at = 0;
  for (const RowWork& work : work_) {
    Generation& generation = *by_row_[static_cast<size_t>(work.row)];
    generation.computed += work.n_new;
    ++generation.steps;
    if (!generation.first_token) events_.progress(generation.id, generation.computed);
    if (work.n_logits > 0) sample_row(generation, logits.subspan(at * vocab, vocab));
    at += static_cast<size_t>(work.n_logits);
    // After sampling, so that KV behind broken logits is never shared.
    if (generation.row < 0) continue;
    const int32_t changed = cache_.publish(*generation.lease, generation.context, generation.computed);
    if (changed >= 0) write_table(generation, static_cast<size_t>(changed));
  }
  release_retired();
  ++totals_.steps;
  totals_.prefilled_tokens += static_cast<uint64_t>(prefilled);
  totals_.step_ms.add(milliseconds(Clock::now() - begin));
}

bool Runner::join_grammar(Generation& generation) {
  RowGrammar& grammar = *generation.grammar;
  const auto outcome = grammar.join();
  generation.mask_ms += grammar.job_ms();
  totals_.mask_ms.add(grammar.job_ms());
  if (outcome == RowGrammar::Outcome::ready) return true;
  if (outcome == RowGrammar::Outcome::failed)
    fail(generation, ErrorCode::grammar_failed, false, grammar.failure());
  else
    fail(generation, ErrorCode::grammar_mismatch, false, "The tokens generated so far do not fit the grammar.");
  return false;
}

void Runner::sample_row(Generation& generation, std::span<const float> logits) {
  if (generation.grammar && !join_grammar(generation)) return;
  const SampleResult sampled = sampler_.sample({
      .logits = logits,
      .mask = generation.grammar ? generation.grammar->mask() : std::span<const uint32_t>{},
      .params = generation.request.sampling,
      .counts = generation.counts,
      .output = generation.output(),
      .position = static_cast<uint32_t>(generation.known()),
      .logprobs = generation.request.logprobs,
  });
  switch (sampled.status) {
    case SampleStatus::ok: return commit_token(generation, sampled);
    case SampleStatus::invalid_logits:
      return fail(generation, ErrorCode::invalid_logits, true, "The model produced logits that are not numbers.");
    case SampleStatus::nothing_allowed:
      if (generation.grammar)
        return fail(generation, ErrorCode::grammar_dead_end, false, "The grammar and the bans allow no token here.");
      return fail(generation, ErrorCode::no_token_allowed, false, "The bans and biases allow no token here.");
  }
}

bool Runner::ends_answer(const Generation& generation, Token token) const {
  if (!generation.grammar) return contains(generation.request.stop_ids, token);
  // A caller's own stop token may also be text of the grammar: it ends the answer only where the grammar may end.
  return contains(grammar_stop_ids_, token) ||
         (contains(generation.request.stop_ids, token) && generation.grammar->may_end());
}

void Runner::commit_token(Generation& generation, const SampleResult& sampled) {
  if (!generation.first_token) generation.first_token = Clock::now();
  ++generation.n_sampled;
  ++totals_.generated_tokens;
  if (ends_answer(generation, sampled.token)) return finish(generation, FinishReason::stop);

  generation.context.push_back(sampled.token);
  if (has_penalties(generation.request.sampling)) generation.counts.add_output(sampled.token);
  const std::array ids{sampled.token};
  if (generation.request.logprobs >= 0)
    events_.tokens(generation.id, ids, std::array{sampled.logprob});
  else
    events_.tokens(generation.id, ids, {});
  const bool at_end = generation.n_sampled == generation.request.max_new_tokens;
  if (generation.grammar) mask_workers_.start(generation.grammar, {sampled.token});
  if (!at_end) return;
  // With nothing but the end left to say, the answer is complete although no stop token was sampled.
  if (generation.grammar) {
    if (!join_grammar(generation)) return;
    if (generation.grammar->allows_only(grammar_stop_ids_)) return finish(generation, FinishReason::stop);
  }
  finish(generation, FinishReason::length);
}

void Runner::finish(Generation& generation, FinishReason reason) {
  const auto now = Clock::now();
  const auto first = generation.first_token.value_or(now);
  const auto ms = [](Clock::duration duration) { return static_cast<float>(milliseconds(duration)); };
  events_.finish(generation.id, reason,
                 {.prompt_tokens = generation.n_prompt,
                  .cached_tokens = std::min(generation.lease->cached_tokens(), generation.n_prompt),
                  .completion_tokens = generation.n_sampled},
                 {.queued_ms = ms(generation.admitted - generation.submitted),
                  .prefill_ms = ms(first - generation.admitted),
                  .decode_ms = ms(now - first),
                  .mask_ms = static_cast<float>(generation.mask_ms),
                  .steps = generation.steps});
  // The tokens computed in this step stay findable: a conversation's next turn begins with them.
  cache_.publish(*generation.lease, generation.context, generation.computed);
  retire(generation);
}

void Runner::fail(Generation& generation, ErrorCode code, bool retryable, std::string_view message) {
  events_.error(generation.id, code, retryable, message);
  if (generation.row >= 0)
    retire(generation);
  else
    ++retired_;  // was waiting
}

void Runner::retire(Generation& generation) {
  by_row_[static_cast<size_t>(generation.row)] = nullptr;
  free_rows_.push_back(generation.row);
  generation.row = -1;
  ++retired_;
}

void Runner::release_retired() {
  std::erase_if(running_, [](const auto& generation) { return generation->row < 0; });
}

void Runner::fail_all(ErrorCode code, bool retryable, std::string_view message) {
  while (!queue_.empty()) fail(*queue_.pop(), code, retryable, message);
  for (const auto& generation : running_)
    if (generation->row >= 0) fail(*generation, code, retryable, message);
  release_retired();
}

EngineStats Runner::stats() const {
  EngineStats stats = totals_;
  stats.running = static_cast<int32_t>(running_.size());
  stats.queued = queue_.size();
  stats.pending_prefill_tokens = queue_.tokens();
  for (const auto& generation : running_) {
    const int32_t remaining = generation->known() - generation->computed;
    if (remaining > 1) stats.pending_prefill_tokens += remaining;
  }
  stats.blocks = cache_.counts();
  return stats;
}

IntegrityReport Runner::integrity() const {
  std::vector<const KvLease*> leases;
  for (const auto& generation : running_) leases.push_back(&*generation->lease);
  if (running_.size() + free_rows_.size() != by_row_.size()) return {.ok = false, .detail = "rows are lost"};
  return cache_.integrity(leases);
}

}  // namespace sluice
