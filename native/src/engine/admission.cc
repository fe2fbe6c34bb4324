#include "engine/admission.h"

#include <algorithm>
#include <cmath>
#include <string>

namespace sluice {
namespace {

SubmitResult refuse(Refusal refusal, std::string message) {
  return {.id = 0, .refusal = refusal, .message = std::move(message)};
}

// The first thing wrong with the parameters, or null.
const char* fault_of(const SamplingParams& params) {
  if (!std::isfinite(params.temperature) || params.temperature < 0) return "temperature must be a number >= 0";
  if (params.top_k < 0) return "top_k must be >= 0";
  if (!(params.top_p >= 0 && params.top_p <= 1)) return "top_p must be between 0 and 1";
  if (!(params.min_p >= 0 && params.min_p <= 1)) return "min_p must be between 0 and 1";
  if (!std::isfinite(params.repetition_penalty) || params.repetition_penalty <= 0)
    return "repetition_penalty must be a number > 0";
  if (!std::isfinite(params.presence_penalty) || !std::isfinite(params.frequency_penalty))
    return "presence_penalty and frequency_penalty must be numbers";
  const auto empty = [](const auto& sequence) { return sequence.empty(); };
  if (std::ranges::any_of(params.banned_sequences, empty)) return "a banned sequence must hold a token";
  const auto not_a_number = [](const auto& bias) { return std::isnan(bias.second) || bias.second == INFINITY; };
  if (std::ranges::any_of(params.logit_bias, not_a_number)) return "a bias must be a number";
  return nullptr;
}

}  // namespace

SubmitResult check_request(const Request& request, const ModelInfo& model, const EngineOptions& options) {
  if (request.prompt.empty()) return refuse(Refusal::invalid_request, "the prompt holds no token");
  if (request.max_new_tokens < 1) return refuse(Refusal::invalid_request, "max_new_tokens must be at least 1");
  if (request.logprobs > kMaxTopLogprobs)
    return refuse(Refusal::invalid_request, "logprobs must be at most " + std::to_string(kMaxTopLogprobs));
  if (const char* fault = fault_of(request.sampling)) return refuse(Refusal::invalid_request, fault);

  const auto foreign = [&model](Token token) { return token < 0 || token >= model.vocab_size; };
  const auto any_foreign = [&foreign](const std::vector<Token>& tokens) { return std::ranges::any_of(tokens, foreign); };
  const auto foreign_bias = [&foreign](const auto& bias) { return foreign(bias.first); };
  if (any_foreign(request.prompt) || any_foreign(request.generated) || any_foreign(request.stop_ids) ||
      std::ranges::any_of(request.sampling.banned_sequences, any_foreign) ||
      std::ranges::any_of(request.sampling.logit_bias, foreign_bias))
    return refuse(Refusal::invalid_request,
                  "a token id lies outside the vocabulary of " + std::to_string(model.vocab_size));

  const auto context = static_cast<int64_t>(request.prompt.size() + request.generated.size());
  const int64_t total = context + request.max_new_tokens;
  const std::string sum = std::to_string(context) + " tokens of context and " +
                          std::to_string(request.max_new_tokens) + " to generate";
  if (total > model.context_length)
    return refuse(Refusal::prompt_too_long,
                  sum + " exceed the model's context of " + std::to_string(model.context_length));
  // The last token is sampled but never stored.
  const int64_t blocks = (total - 1 + kBlockTokens - 1) / kBlockTokens;
  if (blocks > options.kv_tokens / kBlockTokens)
    return refuse(Refusal::kv_too_small,
                  sum + " exceed the whole KV cache of " + std::to_string(options.kv_tokens) + " tokens");
  return {};
}

}  // namespace sluice
