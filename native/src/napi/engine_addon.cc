// sluice_engine.node: loads a model and runs the engine beside the event loop. JavaScript never waits for a step, except
// in integrity(), which is for tests and diagnosis.
#include <napi.h>

#include <chrono>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "grammar/automaton/automaton.h"
#include "napi/event_ring.h"
#include "napi/js_values.h"
#include "sluice/engine.h"

namespace {

using sluice::Engine;
using sluice::EventRing;

// Runs `work` on a thread of libuv's pool and settles a promise with its outcome; `settle` runs on the JavaScript thread
// first, whatever the outcome.
class Background final : public Napi::AsyncWorker {
 public:
  using Work = std::function<void()>;
  static Napi::Promise start(Napi::Env env, Work work, Work settle = [] {}) {
    auto* worker = new Background(env, std::move(work), std::move(settle));
    const Napi::Promise promise = worker->deferred_.Promise();
    worker->Queue();
    return promise;
  }

 protected:
  void Execute() override {
    try {
      work_();
    } catch (const std::exception& error) {
      SetError(error.what());
    }
  }
  void OnOK() override {
    settle_();
    deferred_.Resolve(Env().Undefined());
  }
  void OnError(const Napi::Error& error) override {
    settle_();
    deferred_.Reject(error.Value());
  }

 private:
  Background(Napi::Env env, Work work, Work settle)
      : AsyncWorker(env), deferred_(env), work_(std::move(work)), settle_(std::move(settle)) {}
  Napi::Promise::Deferred deferred_;
  Work work_;
  Work settle_;
};

// The engine as JavaScript holds it. Kept from collection until close(), since its thread would outlive it; an
// environment that ends first closes it in the clean-up hook.
class EngineHandle final : public Napi::ObjectWrap<EngineHandle> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "EngineHandle",
                       {InstanceMethod("info", &EngineHandle::info),
                        InstanceMethod("submit", &EngineHandle::submit),
                        InstanceMethod("cancel", &EngineHandle::cancel),
                        InstanceMethod("hasGrammar", &EngineHandle::has_grammar),
                        InstanceMethod("loadGrammar", &EngineHandle::load_grammar),
                        InstanceMethod("dropGrammar", &EngineHandle::drop_grammar),
                        InstanceMethod("kvEvents", &EngineHandle::kv_events),
                        InstanceMethod("kvSnapshot", &EngineHandle::kv_snapshot),
                        InstanceMethod("stats", &EngineHandle::stats),
                        InstanceMethod("integrity", &EngineHandle::integrity),
                        InstanceMethod("drain", &EngineHandle::drain),
                        InstanceMethod("close", &EngineHandle::close),
                        InstanceMethod("ref", &EngineHandle::ref),
                        InstanceMethod("unref", &EngineHandle::unref)});
  }

  explicit EngineHandle(const Napi::CallbackInfo& info) : ObjectWrap(info) {}

  ~EngineHandle() override {
    // Reached with a live engine only when the environment ends; its clean-up hook has joined the thread by then.
    if (engine_) engine_->close();
  }

  void adopt(std::unique_ptr<Engine> engine, std::shared_ptr<EventRing> ring) {
    engine_ = std::move(engine);
    ring_ = std::move(ring);
    open_ = true;
    Ref();
    napi_add_env_cleanup_hook(Env(), on_environment_end, this);
  }

 private:
  static void on_environment_end(void* data) {
    auto* handle = static_cast<EngineHandle*>(data);
    handle->engine_->close();
  }

  Napi::Value info(const Napi::CallbackInfo& info) {
    return sluice::info_to(info.Env(), engine_->model(), engine_->options());
  }

  Napi::Value submit(const Napi::CallbackInfo& info) {
    const Napi::Env env = info.Env();
    const auto result = engine_->submit(sluice::request_from(argument(info, 0).As<Napi::Object>()));
    if (result.refusal == sluice::Refusal::none) return Napi::Number::New(env, result.id);
    Napi::Object refused = Napi::Object::New(env);
    refused.Set("refused", sluice::refusal_code(result.refusal));
    refused.Set("message", result.message);
    return refused;
  }

  void cancel(const Napi::CallbackInfo& info) { engine_->cancel(argument(info, 0).As<Napi::Number>().Uint32Value()); }

  Napi::Value has_grammar(const Napi::CallbackInfo& info) {
    return Napi::Boolean::New(info.Env(), engine_->has_grammar(argument(info, 0).As<Napi::String>()));
  }

  Napi::Value load_grammar(const Napi::CallbackInfo& info) {
    const auto bytes = argument(info, 1).As<Napi::Uint8Array>();
    const auto* data = reinterpret_cast<const std::byte*>(bytes.Data());
    return Background::start(info.Env(),
                             [engine = engine_, hash = argument(info, 0).As<Napi::String>().Utf8Value(),
                              copy = std::vector<std::byte>(data, data + bytes.ByteLength())] {
                               engine->load_grammar(hash, copy);
                             });
  }

  void drop_grammar(const Napi::CallbackInfo& info) { engine_->drop_grammar(argument(info, 0).As<Napi::String>()); }

  Napi::Value kv_events(const Napi::CallbackInfo& info) {
    const Napi::Env env = info.Env();
    const auto deltas = engine_->kv_events(argument(info, 0).As<Napi::Number>().Int64Value());
    if (!deltas) return env.Undefined();
    Napi::Array array = Napi::Array::New(env, deltas->size());
    for (uint32_t i = 0; i < deltas->size(); ++i) array.Set(i, sluice::delta_to(env, (*deltas)[i]));
    return array;
  }

  Napi::Value kv_snapshot(const Napi::CallbackInfo& info) {
    return sluice::delta_to(info.Env(), engine_->kv_snapshot());
  }

  Napi::Value stats(const Napi::CallbackInfo& info) { return sluice::stats_to(info.Env(), engine_->stats()); }

  Napi::Value integrity(const Napi::CallbackInfo& info) {
    const auto report = engine_->integrity();
    Napi::Object object = Napi::Object::New(info.Env());
    object.Set("ok", report.ok);
    object.Set("detail", report.detail);
    return object;
  }

  Napi::Value drain(const Napi::CallbackInfo& info) {
    const auto timeout = std::chrono::milliseconds(argument(info, 0).As<Napi::Number>().Int64Value());
    return Background::start(info.Env(), [engine = engine_, timeout] { engine->drain(timeout); });
  }

  Napi::Value close(const Napi::CallbackInfo& info) {
    return Background::start(
        info.Env(), [engine = engine_] { engine->close(); }, [this] { closed(); });
  }

  // The thread has ended: its last events go out, then nothing holds the environment or this object.
  void closed() {
    if (!std::exchange(open_, false)) return;
    napi_remove_env_cleanup_hook(Env(), on_environment_end, this);
    ring_->deliver();
    ring_->close();
    Unref();
  }

  void ref(const Napi::CallbackInfo&) { ring_->ref(); }
  void unref(const Napi::CallbackInfo&) { ring_->unref(); }

  static Napi::Value argument(const Napi::CallbackInfo& info, size_t index) {
    if (info.Length() <= index) throw Napi::TypeError::New(info.Env(), "an argument is missing");
    return info[index];
  }

  std::shared_ptr<Engine> engine_;
  std::shared_ptr<EventRing> ring_;
  bool open_ = false;
};

// Loads on a thread of the pool; JavaScript hears of the progress and gets the handle.
class LoadWorker final : public Napi::AsyncProgressWorker<double> {
 public:
  LoadWorker(Napi::Env env, sluice::CreateOptions options, std::shared_ptr<EventRing> ring,
             const Napi::Function& on_progress)
      : AsyncProgressWorker(env),
        deferred_(env),
        options_(std::move(options)),
        ring_(std::move(ring)),
        on_progress_(Napi::Persistent(on_progress)) {}
  Napi::Promise promise() const { return deferred_.Promise(); }

 protected:
  void Execute(const ExecutionProgress& progress) override {
    try {
      options_.load.progress = [&progress](double fraction) { progress.Send(&fraction, 1); };
      auto model = sluice::load_model(options_.load);
      sluice::GrammarSupport grammars;
      if (!options_.vocabulary.tokens.empty()) {
        std::unique_ptr<sluice::grammar::Engine> xgrammar;
#ifdef SLUICE_XGRAMMAR
        xgrammar = sluice::grammar::make_xgrammar_engine(options_.vocabulary);
#endif
        grammars.engine = sluice::grammar::make_engine_by_artifact(
            sluice::grammar::make_automaton_engine(options_.vocabulary), std::move(xgrammar));
        grammars.vocab_size = static_cast<int32_t>(options_.vocabulary.tokens.size());
        grammars.stop_ids = options_.vocabulary.stop_ids;
      }
      engine_ = Engine::create(options_.engine, std::move(model), std::move(grammars),
                               [ring = ring_](std::span<const uint32_t> words) { ring->push(words); });
    } catch (const std::exception& error) {
      SetError(error.what());
    }
  }
  void OnProgress(const double* fraction, size_t count) override {
    if (count > 0) on_progress_.Call({Napi::Number::New(Env(), fraction[count - 1])});
  }
  void OnOK() override {
    const Napi::Object handle = Env().GetInstanceData<Napi::FunctionReference>()->New({});
    EngineHandle::Unwrap(handle)->adopt(std::move(engine_), std::move(ring_));
    deferred_.Resolve(handle);
  }
  void OnError(const Napi::Error& error) override {
    ring_->close();
    deferred_.Reject(error.Value());
  }

 private:
  Napi::Promise::Deferred deferred_;
  sluice::CreateOptions options_;
  std::shared_ptr<EventRing> ring_;
  Napi::FunctionReference on_progress_;
  std::unique_ptr<Engine> engine_;
};

// createEngine(options, onWords(Uint32Array), onProgress(fraction)): Promise<EngineHandle>
Napi::Value create_engine(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (info.Length() < 3 || !info[0].IsObject() || !info[1].IsFunction() || !info[2].IsFunction())
    throw Napi::TypeError::New(env, "expected (options, onWords, onProgress)");
  auto options = sluice::create_options_from(info[0].As<Napi::Object>());
  auto ring = std::make_shared<EventRing>(env, info[1]);
  auto* worker = new LoadWorker(env, std::move(options), std::move(ring), info[2].As<Napi::Function>());
  const Napi::Promise promise = worker->promise();
  worker->Queue();
  return promise;
}

Napi::Object initialise(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new Napi::FunctionReference(Napi::Persistent(EngineHandle::define(env))));
  exports.Set("createEngine", Napi::Function::New(env, create_engine, "createEngine"));
  return exports;
}

}  // namespace

NODE_API_MODULE(sluice_engine, initialise)
