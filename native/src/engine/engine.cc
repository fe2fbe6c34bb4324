// The engine thread and its doors. Scheduling state lives in Runner and is touched by that thread alone; everything else
// reaches it through the inbox, and learns of it through the sink and the published statistics.
#include "sluice/engine.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <future>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "engine/admission.h"
#include "engine/generation.h"
#include "engine/grammar_store.h"
#include "engine/runner.h"
#include "kv/kv_log.h"

namespace sluice {

const char* refusal_code(Refusal refusal) {
  switch (refusal) {
    case Refusal::none: return "none";
    case Refusal::queue_full: return "queue_full";
    case Refusal::prompt_too_long: return "prompt_too_long";
    case Refusal::kv_too_small: return "kv_too_small";
    case Refusal::grammar_missing: return "grammar_missing";
    case Refusal::invalid_request: return "invalid_request";
    case Refusal::draining: return "draining";
    case Refusal::engine_failed: return "engine_failed";
  }
  return "engine_failed";
}

void Histogram::add(double ms) {
  int bucket = 0;
  while (bucket < kBuckets - 1 && ms >= bound(bucket)) ++bucket;
  ++counts[static_cast<size_t>(bucket)];
  ++count;
  total_ms += ms;
  max_ms = std::max(max_ms, ms);
}

namespace {

// Below this a temperature only makes the arithmetic of the weights overflow; the draw is greedy long before.
constexpr float kGreedyBelow = 1e-5f;

// Delta numbers of a later process exceed those of an earlier one: 1024 steps a millisecond cannot be reached.
int64_t first_kv_seq() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::milliseconds>(now).count() * 1024;
}

class EngineThread final : public Engine {
 public:
  EngineThread(const EngineOptions& options, std::unique_ptr<Model> model, GrammarSupport grammars, EventSink sink)
      : options_(options),
        model_(std::move(model)),
        grammar_vocab_(grammars.vocab_size),
        grammars_(std::move(grammars.engine), options.grammar_cache_bytes),
        sink_(std::move(sink)),
        // Four times the cache's blocks: a reader may miss the turnover of the whole cache and still catch up by deltas.
        kv_log_(first_kv_seq(), std::max<size_t>(1024, static_cast<size_t>(options.kv_tokens / kBlockTokens) * 4)),
        runner_(options, *model_, std::move(grammars.stop_ids), kv_log_) {
    if (grammar_vocab_ > model_->info().vocab_size)
      throw std::runtime_error("the tokenizer has " + std::to_string(grammar_vocab_) + " tokens, the model only " +
                               std::to_string(model_->info().vocab_size));
    published_ = runner_.stats();
    thread_ = std::thread([this] { run(); });
  }
  ~EngineThread() override { close(); }

  const ModelInfo& model() const override { return model_->info(); }
  const EngineOptions& options() const override { return options_; }
  SubmitResult submit(Request request) override;
  void cancel(GenerationId id) override { post(id); }
  bool has_grammar(const std::string& hash) const override { return grammars_.has(hash); }
  void load_grammar(const std::string& hash, std::span<const std::byte> bytes) override { grammars_.load(hash, bytes); }
  void drop_grammar(const std::string& hash) override { grammars_.drop(hash); }
  EngineStats stats() const override;
  IntegrityReport integrity() override;
  std::optional<std::vector<KvDelta>> kv_events(int64_t seq) const override { return kv_log_.since(seq); }
  KvDelta kv_snapshot() const override { return kv_log_.snapshot(); }
  void drain(std::chrono::milliseconds timeout) override;
  void close() override;

 private:
  using Call = std::function<void()>;
  using Command = std::variant<std::unique_ptr<Generation>, GenerationId, Call>;

  // False once the engine closes.
  bool post(Command command);
  // The next commands; sleeps while there is nothing to do. False when closing.
  bool receive(std::vector<Command>& commands);
  void apply(Command& command);
  void run();
  // What the thread did becomes visible: events, KV log, statistics, waiters of drain().
  void publish();
  void end_all_as_closed();

  const EngineOptions options_;
  const std::unique_ptr<Model> model_;
  const int32_t grammar_vocab_;
  GrammarStore grammars_;
  const EventSink sink_;
  KvLog kv_log_;
  Runner runner_;

  std::atomic<GenerationId> next_id_{1};
  std::atomic<int32_t> live_{0};  // submitted and not ended
  std::atomic<bool> draining_{false};
  std::atomic<bool> healthy_{true};
  std::atomic<Clock::rep> progress_at_{Clock::now().time_since_epoch().count()};

  std::mutex inbox_mutex_;
  std::condition_variable wake_;
  std::vector<Command> inbox_;
  bool closing_ = false;

  mutable std::mutex published_mutex_;
  EngineStats published_;
  bool delivering_ = false;  // the sink has not yet returned from the events of what `published_` counts as ended
  std::condition_variable idle_;

  std::mutex close_mutex_;
  std::thread thread_;
};

bool EngineThread::post(Command command) {
  {
    const std::lock_guard lock(inbox_mutex_);
    if (closing_) return false;
    inbox_.push_back(std::move(command));
  }
  wake_.notify_one();
  return true;
}

SubmitResult EngineThread::submit(Request request) {
  const auto refuse = [](Refusal refusal, std::string message) {
    return SubmitResult{.id = 0, .refusal = refusal, .message = std::move(message)};
  };
  if (!healthy_) return refuse(Refusal::engine_failed, "The engine failed and takes no more work.");
  if (draining_) return refuse(Refusal::draining, "The engine is draining.");
  if (SubmitResult fault = check_request(request, model_->info(), options_); fault.refusal != Refusal::none) return fault;
  std::shared_ptr<const grammar::Artifact> artifact;
  if (!request.grammar.empty()) {
    artifact = grammars_.find(request.grammar);
    if (!artifact) return refuse(Refusal::grammar_missing, "No grammar of this hash is loaded.");
  }
  // Counted here and not in the queue, so that the answer is exact without asking the engine thread.
  const int32_t live = live_.fetch_add(1);
  if (live >= options_.max_rows + options_.max_queued) {
    live_.fetch_sub(1);
    return refuse(Refusal::queue_full, "The engine's queue is full.");
  }
  // The time before the first of several generations was idle, not stalled.
  if (live == 0) progress_at_ = Clock::now().time_since_epoch().count();

  auto generation = std::make_unique<Generation>();
  do generation->id = next_id_.fetch_add(1);
  while (generation->id == 0);
  generation->submitted = Clock::now();
  if (request.deadline_ms > 0)
    generation->deadline = generation->submitted + std::chrono::milliseconds(std::min<int64_t>(request.deadline_ms, int64_t{1} << 40));
  generation->n_prompt = static_cast<int32_t>(request.prompt.size());
  generation->n_generated = static_cast<int32_t>(request.generated.size());
  generation->context = std::move(request.prompt);
  generation->context.reserve(generation->context.size() + request.generated.size() +
                              static_cast<size_t>(request.max_new_tokens));
  generation->context.insert(generation->context.end(), request.generated.begin(), request.generated.end());
  if (request.sampling.temperature < kGreedyBelow) request.sampling.temperature = 0;
  generation->request = std::move(request);
  if (artifact)
    generation->grammar = std::make_shared<RowGrammar>(std::move(artifact), grammar_vocab_, model_->info().vocab_size);

  const GenerationId id = generation->id;
  if (!post(std::move(generation))) {
    live_.fetch_sub(1);
    return refuse(Refusal::draining, "The engine is closed.");
  }
  return {.id = id, .refusal = Refusal::none, .message = {}};
}

EngineStats EngineThread::stats() const {
  EngineStats stats;
  {
    const std::lock_guard lock(published_mutex_);
    stats = published_;
  }
  const int32_t live = live_;
  stats.queued = std::max(0, live - stats.running);
  stats.healthy = healthy_;
  if (live > 0) {
    const Clock::duration since = Clock::now().time_since_epoch() - Clock::duration(progress_at_.load());
    stats.stalled_ms = std::max(0.0, milliseconds(since));
  }
  return stats;
}

IntegrityReport EngineThread::integrity() {
  auto report = std::make_shared<std::promise<IntegrityReport>>();
  auto answer = report->get_future();
  if (post(Call([this, report] { report->set_value(runner_.integrity()); }))) return answer.get();
  close();  // waits until the thread has ended: then its state may be read here
  return runner_.integrity();
}

void EngineThread::drain(std::chrono::milliseconds timeout) {
  draining_ = true;
  std::unique_lock lock(published_mutex_);
  const auto idle = [this] { return live_ == 0 && !delivering_; };
  if (idle_.wait_for(lock, timeout, idle)) return;
  lock.unlock();
  if (!post(Call([this] { end_all_as_closed(); }))) return;
  lock.lock();
  idle_.wait(lock, idle);
}

void EngineThread::close() {
  const std::lock_guard once(close_mutex_);
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(inbox_mutex_);
    closing_ = true;
  }
  draining_ = true;  // looked at before the queue's bound: a full queue would call for a retry that cannot succeed
  wake_.notify_one();
  thread_.join();
}

bool EngineThread::receive(std::vector<Command>& commands) {
  commands.clear();
  std::unique_lock lock(inbox_mutex_);
  if (!runner_.has_work()) {
    wake_.wait(lock, [this] { return closing_ || !inbox_.empty(); });
    // Idle time is not a stall.
    progress_at_ = Clock::now().time_since_epoch().count();
  }
  std::swap(commands, inbox_);
  return !closing_;
}

void EngineThread::apply(Command& command) {
  if (auto* generation = std::get_if<std::unique_ptr<Generation>>(&command)) {
    if (healthy_) return runner_.enqueue(std::move(*generation));
    runner_.events().error((*generation)->id, ErrorCode::engine_failed, true, "The engine failed.");
    live_.fetch_sub(1);
  } else if (auto* id = std::get_if<GenerationId>(&command)) {
    runner_.cancel(*id);
  } else {
    std::get<Call>(command)();
  }
}

void EngineThread::end_all_as_closed() {
  runner_.fail_all(ErrorCode::engine_closed, true, "The engine closed before the answer was complete.");
}

void EngineThread::run() {
  std::vector<Command> commands;
  bool open = true;
  while (open) {
    open = receive(commands);
    try {
      for (Command& command : commands) apply(command);
      if (!open) {
        end_all_as_closed();
      } else {
        const auto now = Clock::now();
        runner_.expire(now);
        runner_.admit(now);
        if (runner_.has_rows()) runner_.step();
        else if (runner_.has_work()) throw std::logic_error("an empty engine has no room for the head of its queue");
      }
    } catch (const std::exception& error) {
      // State of the model after a failed pass is unknown: whoever supervises the process restarts it.
      healthy_ = false;
      runner_.fail_all(ErrorCode::engine_failed, true, std::string("The engine failed: ") + error.what());
    }
    publish();
  }
}

void EngineThread::publish() {
  if (kv_log_.flush()) runner_.events().kv_change();
  progress_at_ = Clock::now().time_since_epoch().count();
  {
    // Before the events: whoever acts on one finds statistics at least as new.
    const std::lock_guard lock(published_mutex_);
    published_ = runner_.stats();
    live_.fetch_sub(runner_.take_retired());
    delivering_ = true;
  }
  if (!runner_.events().empty()) {
    sink_(runner_.events().words());
    runner_.events().clear();
  }
  {
    const std::lock_guard lock(published_mutex_);
    delivering_ = false;
  }
  if (live_ == 0) idle_.notify_all();
}

}  // namespace

std::unique_ptr<Engine> Engine::create(const EngineOptions& options, std::unique_ptr<Model> model,
                                       GrammarSupport grammars, EventSink sink) {
  return std::make_unique<EngineThread>(options, std::move(model), std::move(grammars), std::move(sink));
}

}  // namespace sluice
