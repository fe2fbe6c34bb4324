// sluice_grammar.node: the XGrammar compiler, and a matcher to test artifacts with. Loaded by the compile child and by
// tests only; the daemon's engine links the matcher itself and never the way from a source to an artifact.
#include <napi.h>

#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "grammar/automaton/automaton.h"
#include "grammar/matcher.h"
#include "grammar/xgrammar_compiler.h"

namespace {

using sluice::grammar::Artifact;
using sluice::grammar::CompileResult;
using sluice::grammar::Engine;
using sluice::grammar::SourceKind;
using sluice::grammar::Vocabulary;
using sluice::grammar::XGrammarCompiler;

// Arguments: packed token bytes (Uint8Array), ends (Uint32Array: token i is [ends[i-1], ends[i])), stop ids (Int32Array).
Vocabulary read_vocabulary(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (info.Length() < 3 || !info[0].IsTypedArray() || !info[1].IsTypedArray() || !info[2].IsTypedArray()) {
    throw Napi::TypeError::New(env, "expected (Uint8Array bytes, Uint32Array ends, Int32Array stopIds)");
  }
  const auto bytes = info[0].As<Napi::Uint8Array>();
  const auto ends = info[1].As<Napi::Uint32Array>();
  const auto stops = info[2].As<Napi::Int32Array>();
  if (bytes.TypedArrayType() != napi_uint8_array || ends.TypedArrayType() != napi_uint32_array ||
      stops.TypedArrayType() != napi_int32_array) {
    throw Napi::TypeError::New(env, "expected (Uint8Array bytes, Uint32Array ends, Int32Array stopIds)");
  }
  Vocabulary vocabulary;
  vocabulary.tokens.reserve(ends.ElementLength());
  uint32_t start = 0;
  for (size_t i = 0; i < ends.ElementLength(); ++i) {
    const uint32_t end = ends[i];
    if (end < start || end > bytes.ElementLength()) throw Napi::RangeError::New(env, "token ends must rise and fit the bytes");
    vocabulary.tokens.emplace_back(reinterpret_cast<const char*>(bytes.Data()) + start, end - start);
    start = end;
  }
  for (size_t i = 0; i < stops.ElementLength(); ++i) {
    const int32_t id = stops[i];
    if (id < 0 || static_cast<size_t>(id) >= vocabulary.tokens.size()) {
      throw Napi::RangeError::New(env, "a stop id lies outside the vocabulary");
    }
    vocabulary.stop_ids.push_back(id);
  }
  return vocabulary;
}

std::optional<SourceKind> kind_of(const std::string& name) {
  if (name == "ebnf") return SourceKind::kEbnf;
  if (name == "regex") return SourceKind::kRegex;
  if (name == "structural_tag") return SourceKind::kStructuralTag;
  return std::nullopt;
}

class CompileWork final : public Napi::AsyncWorker {
 public:
  CompileWork(Napi::Env env, std::shared_ptr<XGrammarCompiler> compiler, SourceKind kind, std::string source)
      : AsyncWorker(env), deferred_(env), compiler_(std::move(compiler)), kind_(kind), source_(std::move(source)) {}
  Napi::Promise promise() const { return deferred_.Promise(); }

 protected:
  void Execute() override {
    try {
      result_ = compiler_->compile(kind_, source_);
    } catch (const std::exception& error) {
      SetError(error.what());
    }
  }
  void OnOK() override {
    Napi::Env env = Env();
    Napi::Object out = Napi::Object::New(env);
    Napi::Array warnings = Napi::Array::New(env, result_.warnings.size());
    for (size_t i = 0; i < result_.warnings.size(); ++i) {
      warnings.Set(static_cast<uint32_t>(i), Napi::String::New(env, result_.warnings[i]));
    }
    out.Set("warnings", warnings);
    out.Set("bytes", Napi::Buffer<uint8_t>::Copy(env, reinterpret_cast<const uint8_t*>(result_.bytes.data()), result_.bytes.size()));
    deferred_.Resolve(out);
  }
  void OnError(const Napi::Error& error) override { deferred_.Reject(error.Value()); }

 private:
  Napi::Promise::Deferred deferred_;
  std::shared_ptr<XGrammarCompiler> compiler_;
  SourceKind kind_;
  std::string source_;
  CompileResult result_;
};

class CompilerObject final : public Napi::ObjectWrap<CompilerObject> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "Compiler",
                       {InstanceMethod<&CompilerObject::compile>("compile"), InstanceMethod<&CompilerObject::cache_bytes>("cacheBytes")});
  }
  // (bytes, ends, stopIds, cacheBytes)
  explicit CompilerObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
    const Vocabulary vocabulary = read_vocabulary(info);
    const auto cache_bytes = info.Length() > 3 && info[3].IsNumber() ? static_cast<size_t>(info[3].As<Napi::Number>().Int64Value()) : size_t{64} << 20;
    try {
      compiler_ = std::make_shared<XGrammarCompiler>(vocabulary, cache_bytes, 1);
    } catch (const std::exception& error) {
      throw Napi::Error::New(info.Env(), error.what());
    }
  }

 private:
  // (kind, source) -> Promise<{bytes, warnings}>
  Napi::Value compile(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    if (info.Length() < 2 || !info[0].IsString() || !info[1].IsString()) throw Napi::TypeError::New(env, "expected (kind, source)");
    const auto kind = kind_of(info[0].As<Napi::String>().Utf8Value());
    if (!kind) throw Napi::TypeError::New(env, "kind must be ebnf, regex or structural_tag");
    auto* work = new CompileWork(env, compiler_, *kind, info[1].As<Napi::String>().Utf8Value());
    Napi::Promise promise = work->promise();
    work->Queue();
    return promise;
  }
  Napi::Value cache_bytes(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), static_cast<double>(compiler_->cache_bytes()));
  }

  std::shared_ptr<XGrammarCompiler> compiler_;
};

class MatcherObject final : public Napi::ObjectWrap<MatcherObject> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "Matcher",
                       {InstanceMethod<&MatcherObject::accept>("accept"), InstanceMethod<&MatcherObject::fill>("fillMask"),
                        InstanceMethod<&MatcherObject::terminated>("terminated"),
                        InstanceMethod<&MatcherObject::completed>("completed"), InstanceMethod<&MatcherObject::rollback>("rollback")});
  }
  explicit MatcherObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {}
  void reset(std::unique_ptr<sluice::grammar::Matcher> matcher) { matcher_ = std::move(matcher); }

 private:
  Napi::Value accept(const Napi::CallbackInfo& info) {
    return Napi::Boolean::New(info.Env(), matcher(info).accept(info[0].ToNumber().Int32Value()));
  }
  Napi::Value fill(const Napi::CallbackInfo& info) {
    if (!info[0].IsTypedArray() || info[0].As<Napi::TypedArray>().TypedArrayType() != napi_uint32_array) {
      throw Napi::TypeError::New(info.Env(), "expected a Uint32Array");
    }
    auto mask = info[0].As<Napi::Uint32Array>();
    try {
      return Napi::Boolean::New(info.Env(), matcher(info).fill_mask({mask.Data(), mask.ElementLength()}));
    } catch (const std::exception& error) {
      throw Napi::Error::New(info.Env(), error.what());
    }
  }
  Napi::Value terminated(const Napi::CallbackInfo& info) { return Napi::Boolean::New(info.Env(), matcher(info).terminated()); }
  Napi::Value completed(const Napi::CallbackInfo& info) { return Napi::Boolean::New(info.Env(), matcher(info).completed()); }
  Napi::Value rollback(const Napi::CallbackInfo& info) {
    try {
      matcher(info).rollback(info[0].ToNumber().Int32Value());
    } catch (const std::exception& error) {
      throw Napi::Error::New(info.Env(), error.what());
    }
    return info.Env().Undefined();
  }
  sluice::grammar::Matcher& matcher(const Napi::CallbackInfo& info) {
    if (matcher_ == nullptr) throw Napi::Error::New(info.Env(), "a Matcher is made by Engine.matcher(artifactBytes)");
    return *matcher_;
  }

  std::unique_ptr<sluice::grammar::Matcher> matcher_;
};

struct AddonData {
  Napi::FunctionReference matcher;
};

class EngineObject final : public Napi::ObjectWrap<EngineObject> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "Engine", {InstanceMethod<&EngineObject::load>("load"), InstanceMethod<&EngineObject::matcher>("matcher"),
                                       InstanceMethod<&EngineObject::memory>("memoryBytes")});
  }
  explicit EngineObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
    try {
      const Vocabulary vocabulary = read_vocabulary(info);
      engine_ = sluice::grammar::make_engine_by_artifact(sluice::grammar::make_automaton_engine(vocabulary),
                                                         sluice::grammar::make_xgrammar_engine(vocabulary));
    } catch (const Napi::Error&) {
      throw;
    } catch (const std::exception& error) {
      throw Napi::Error::New(info.Env(), error.what());
    }
  }

 private:
  // Replaces the artifact that `matcher` makes matchers of.
  Napi::Value load(const Napi::CallbackInfo& info) {
    if (!info[0].IsTypedArray()) throw Napi::TypeError::New(info.Env(), "expected a Uint8Array");
    const auto bytes = info[0].As<Napi::Uint8Array>();
    try {
      artifact_ = engine_->load({reinterpret_cast<const std::byte*>(bytes.Data()), bytes.ElementLength()});
    } catch (const std::exception& error) {
      throw Napi::Error::New(info.Env(), error.what());
    }
    return info.Env().Undefined();
  }
  Napi::Value matcher(const Napi::CallbackInfo& info) {
    if (artifact_ == nullptr) throw Napi::Error::New(info.Env(), "load an artifact first");
    Napi::Object object = info.Env().GetInstanceData<AddonData>()->matcher.New({});
    MatcherObject::Unwrap(object)->reset(artifact_->matcher());
    return object;
  }
  Napi::Value memory(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), artifact_ == nullptr ? 0.0 : static_cast<double>(artifact_->memory_bytes()));
  }

  std::unique_ptr<Engine> engine_;
  std::shared_ptr<const Artifact> artifact_;
};

Napi::Object init(Napi::Env env, Napi::Object exports) {
  auto* data = new AddonData;
  data->matcher = Napi::Persistent(MatcherObject::define(env));
  env.SetInstanceData(data);
  exports.Set("Compiler", CompilerObject::define(env));
  exports.Set("Engine", EngineObject::define(env));
  return exports;
}

}  // namespace

NODE_API_MODULE(NODE_GYP_MODULE_NAME, init)
