#include "napi/js_values.h"

#include <cstdio>
#include <limits>
#include <string>

namespace sluice {
namespace {

[[noreturn]] void wrong(const Napi::Object& object, const char* name, const char* wanted) {
  throw Napi::TypeError::New(object.Env(), std::string(name) + " must be " + wanted);
}

double number(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  if (!value.IsNumber()) wrong(object, name, "a number");
  return value.As<Napi::Number>().DoubleValue();
}

int64_t integer(const Napi::Object& object, const char* name, int64_t low, int64_t high) {
  const double value = number(object, name);
  if (!(value >= static_cast<double>(low) && value <= static_cast<double>(high)) ||
      value != static_cast<double>(static_cast<int64_t>(value)))
    wrong(object, name, "an integer in its range");
  return static_cast<int64_t>(value);
}

int32_t int32(const Napi::Object& object, const char* name, int32_t low = 0) {
  return static_cast<int32_t>(integer(object, name, low, std::numeric_limits<int32_t>::max()));
}

std::string text(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  if (!value.IsString()) wrong(object, name, "a string");
  return value.As<Napi::String>().Utf8Value();
}

Napi::Object inner(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  if (!value.IsObject()) wrong(object, name, "an object");
  return value.As<Napi::Object>();
}

template <typename Array>
Array typed_array(const Napi::Object& object, const char* name, napi_typedarray_type type, const char* wanted) {
  const Napi::Value value = object.Get(name);
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != type) wrong(object, name, wanted);
  return value.As<Array>();
}

// Ids past 2^31 become negative and are refused with the others outside the vocabulary.
std::vector<Token> token_array(const Napi::Object& object, const char* name) {
  const auto array = typed_array<Napi::Uint32Array>(object, name, napi_uint32_array, "a Uint32Array");
  return {array.Data(), array.Data() + array.ElementLength()};
}

Token token_of(const Napi::Object& object, const char* name, const Napi::Value& value) {
  if (!value.IsNumber()) wrong(object, name, "token ids");
  return static_cast<Token>(value.As<Napi::Number>().Uint32Value());
}

Napi::Array list(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  if (!value.IsArray()) wrong(object, name, "an array");
  return value.As<Napi::Array>();
}

std::vector<Token> token_list(const Napi::Object& owner, const char* name, const Napi::Array& array) {
  std::vector<Token> tokens;
  tokens.reserve(array.Length());
  for (uint32_t i = 0; i < array.Length(); ++i) tokens.push_back(token_of(owner, name, array.Get(i)));
  return tokens;
}

SamplingParams sampling_from(const Napi::Object& object) {
  SamplingParams params;
  params.temperature = static_cast<float>(number(object, "temperature"));
  params.top_k = int32(object, "topK");
  params.top_p = static_cast<float>(number(object, "topP"));
  params.min_p = static_cast<float>(number(object, "minP"));
  params.repetition_penalty = static_cast<float>(number(object, "repetitionPenalty"));
  params.presence_penalty = static_cast<float>(number(object, "presencePenalty"));
  params.frequency_penalty = static_cast<float>(number(object, "frequencyPenalty"));
  const Napi::Array biases = list(object, "logitBias");
  for (uint32_t i = 0; i < biases.Length(); ++i) {
    const Napi::Value entry = biases.Get(i);
    if (!entry.IsArray()) wrong(object, "logitBias", "pairs of token and bias");
    const auto pair = entry.As<Napi::Array>();
    const Napi::Value bias = pair.Get(1u);
    if (!bias.IsNumber()) wrong(object, "logitBias", "pairs of token and bias");
    params.logit_bias.emplace_back(token_of(object, "logitBias", pair.Get(0u)), bias.As<Napi::Number>().FloatValue());
  }
  const Napi::Array bans = list(object, "bannedSequences");
  for (uint32_t i = 0; i < bans.Length(); ++i) {
    const Napi::Value entry = bans.Get(i);
    if (!entry.IsArray()) wrong(object, "bannedSequences", "arrays of token ids");
    params.banned_sequences.push_back(token_list(object, "bannedSequences", entry.As<Napi::Array>()));
  }
  constexpr int64_t safe = (int64_t{1} << 53) - 1;
  params.seed = static_cast<uint64_t>(integer(object, "seed", -safe, safe));
  params.choice = static_cast<uint32_t>(int32(object, "choice"));
  return params;
}

// Token bytes packed end to end, as one array: fifty thousand small ones would cost more to read than the model's header.
grammar::Vocabulary vocabulary_from(const Napi::Object& object) {
  const auto bytes = typed_array<Napi::Uint8Array>(object, "bytes", napi_uint8_array, "a Uint8Array");
  const auto ends = typed_array<Napi::Uint32Array>(object, "ends", napi_uint32_array, "a Uint32Array");
  grammar::Vocabulary vocabulary;
  vocabulary.tokens.reserve(ends.ElementLength());
  size_t start = 0;
  for (size_t i = 0; i < ends.ElementLength(); ++i) {
    const size_t end = ends[i];
    if (end < start || end > bytes.ElementLength()) wrong(object, "ends", "rising and within bytes");
    vocabulary.tokens.emplace_back(reinterpret_cast<const char*>(bytes.Data()) + start, end - start);
    start = end;
  }
  for (const Token id : token_array(object, "stopIds")) {
    if (id < 0 || static_cast<size_t>(id) >= vocabulary.tokens.size()) wrong(object, "stopIds", "inside the vocabulary");
    vocabulary.stop_ids.push_back(id);
  }
  return vocabulary;
}

// JavaScript's numbers cannot hold 64 bits.
Napi::String key_to(Napi::Env env, uint64_t key) {
  char digits[17];
  std::snprintf(digits, sizeof(digits), "%016llx", static_cast<unsigned long long>(key));
  return Napi::String::New(env, digits, 16);
}

Napi::Number count_to(Napi::Env env, uint64_t count) { return Napi::Number::New(env, static_cast<double>(count)); }

Napi::Object histogram_to(Napi::Env env, const Histogram& histogram) {
  Napi::Array bounds = Napi::Array::New(env);
  Napi::Array counts = Napi::Array::New(env);
  for (int i = 0; i < Histogram::kBuckets; ++i) {
    const auto at = static_cast<uint32_t>(i);
    if (i + 1 < Histogram::kBuckets) bounds.Set(at, Napi::Number::New(env, Histogram::bound(i)));
    counts.Set(at, count_to(env, histogram.counts[at]));
  }
  Napi::Object object = Napi::Object::New(env);
  object.Set("count", count_to(env, histogram.count));
  object.Set("totalMs", Napi::Number::New(env, histogram.total_ms));
  object.Set("maxMs", Napi::Number::New(env, histogram.max_ms));
  object.Set("boundsMs", bounds);
  object.Set("counts", counts);
  return object;
}

}  // namespace

CreateOptions create_options_from(const Napi::Object& options) {
  CreateOptions out;
  out.load.path = text(options, "model");
  const std::string precision = text(options, "precision");
  if (precision != "exact" && precision != "fast") wrong(options, "precision", "\"exact\" or \"fast\"");
  out.load.precision = precision == "exact" ? Precision::exact : Precision::fast;
  out.load.threads = int32(options, "threads", 1);
  out.engine.kv_tokens = int32(options, "kvTokens", kBlockTokens);
  out.engine.max_rows = int32(options, "maxRows", 1);
  out.engine.max_step_tokens = int32(options, "maxStepTokens", 1);
  out.engine.max_queued = int32(options, "maxQueued");
  out.engine.mask_threads = out.load.threads;
  out.engine.grammar_cache_bytes =
      static_cast<size_t>(integer(options, "grammarCacheBytes", 0, (int64_t{1} << 53) - 1));
  out.vocabulary = vocabulary_from(inner(options, "vocabulary"));
  return out;
}

Request request_from(const Napi::Object& object) {
  Request request;
  request.prompt = token_array(object, "promptIds");
  request.generated = token_array(object, "generatedIds");
  request.max_new_tokens = int32(object, "maxNewTokens");
  request.sampling = sampling_from(inner(object, "sampling"));
  request.stop_ids = token_list(object, "stopIds", list(object, "stopIds"));
  if (!object.Get("grammar").IsUndefined()) request.grammar = text(object, "grammar");
  if (!object.Get("logprobs").IsUndefined()) request.logprobs = int32(object, "logprobs");
  request.salt = text(object, "salt");
  request.priority = int32(object, "priority", std::numeric_limits<int32_t>::min());
  const double deadline = number(object, "deadlineMs");
  // A deadline that has passed is the shortest one, not none.
  request.deadline_ms = deadline < 1 ? 1 : deadline > 1e15 ? 0 : static_cast<int64_t>(deadline);
  return request;
}

Napi::Object info_to(Napi::Env env, const ModelInfo& model, const EngineOptions& options) {
  Napi::Object info = Napi::Object::New(env);
  info.Set("model", model.name);
  info.Set("architecture", model.architecture);
  info.Set("vocabularySize", Napi::Number::New(env, model.vocab_size));
  info.Set("contextLength", Napi::Number::New(env, model.context_length));
  info.Set("blockSize", Napi::Number::New(env, kBlockTokens));
  info.Set("kvTokens", Napi::Number::New(env, options.kv_tokens / kBlockTokens * kBlockTokens));
  info.Set("maxRows", Napi::Number::New(env, options.max_rows));
  info.Set("parameters", Napi::Number::New(env, static_cast<double>(model.parameters)));
  info.Set("weightBytes", Napi::Number::New(env, static_cast<double>(model.weight_bytes)));
  return info;
}

Napi::Object stats_to(Napi::Env env, const EngineStats& stats) {
  Napi::Object blocks = Napi::Object::New(env);
  blocks.Set("total", Napi::Number::New(env, stats.blocks.total));
  blocks.Set("free", Napi::Number::New(env, stats.blocks.free));
  blocks.Set("cached", Napi::Number::New(env, stats.blocks.cached));
  blocks.Set("leased", Napi::Number::New(env, stats.blocks.leased));
  Napi::Object object = Napi::Object::New(env);
  object.Set("runningRows", Napi::Number::New(env, stats.running));
  object.Set("queuedRows", Napi::Number::New(env, stats.queued));
  object.Set("pendingPrefillTokens", Napi::Number::New(env, static_cast<double>(stats.pending_prefill_tokens)));
  object.Set("blocks", blocks);
  object.Set("steps", count_to(env, stats.steps));
  object.Set("generatedTokens", count_to(env, stats.generated_tokens));
  object.Set("prefilledTokens", count_to(env, stats.prefilled_tokens));
  object.Set("cachedTokens", count_to(env, stats.cached_tokens));
  object.Set("stepMsTotal", Napi::Number::New(env, stats.step_ms.total_ms));
  object.Set("stepMsMax", Napi::Number::New(env, stats.step_ms.max_ms));
  object.Set("stepHistogram", histogram_to(env, stats.step_ms));
  object.Set("masks", histogram_to(env, stats.mask_ms));
  object.Set("stalledMs", Napi::Number::New(env, stats.stalled_ms));
  object.Set("healthy", Napi::Boolean::New(env, stats.healthy));
  return object;
}

Napi::Object delta_to(Napi::Env env, const KvDelta& delta) {
  Napi::Array stored = Napi::Array::New(env, delta.stored.size());
  for (uint32_t i = 0; i < delta.stored.size(); ++i) {
    const KvBlockRecord& record = delta.stored[i];
    Napi::Array tokens = Napi::Array::New(env, record.tokens.size());
    for (uint32_t k = 0; k < record.tokens.size(); ++k) tokens.Set(k, Napi::Number::New(env, record.tokens[k]));
    Napi::Object block = Napi::Object::New(env);
    block.Set("key", key_to(env, record.key));
    block.Set("parent", record.parent == 0 ? env.Undefined() : key_to(env, record.parent));
    block.Set("salt", *record.salt);
    block.Set("tokenIds", tokens);
    stored.Set(i, block);
  }
  Napi::Array removed = Napi::Array::New(env, delta.removed.size());
  for (uint32_t i = 0; i < delta.removed.size(); ++i) removed.Set(i, key_to(env, delta.removed[i]));
  Napi::Object object = Napi::Object::New(env);
  object.Set("seq", Napi::Number::New(env, static_cast<double>(delta.seq)));
  object.Set("stored", stored);
  object.Set("removed", removed);
  return object;
}

}  // namespace sluice
