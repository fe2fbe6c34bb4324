// Grammar masks for the next token, filled on worker threads while the forward pass runs.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "grammar/matcher.h"
#include "ops/step.h"

namespace sluice {

// The grammar state of one generation. Between start() and join() a worker owns everything but `state_`.
class RowGrammar {
 public:
  // `vocab_size`: of the model; ids beyond the grammar's vocabulary (padding rows of the head) are never allowed.
  RowGrammar(std::shared_ptr<const grammar::Artifact> artifact, int32_t grammar_vocab, int32_t vocab_size);

  enum class Outcome : uint8_t { ready, mismatch, failed };

  // Runs the job if nobody has begun it, else waits for it. Call before reading what follows.
  Outcome join();
  // Empty = all tokens allowed.
  std::span<const uint32_t> mask() const { return std::span<const uint32_t>(mask_).first(constrained_ ? mask_.size() : 0); }
  // The grammar may end here.
  bool may_end() const { return may_end_; }
  // The mask allows some of `tokens` (distinct ids of the vocabulary) and nothing else.
  bool allows_only(std::span<const Token> tokens) const;
  const std::string& failure() const { return failure_; }
  // Wall time of the last job, milliseconds.
  double job_ms() const { return job_ms_; }

 private:
  friend class MaskWorkers;
  enum State : int { idle, queued, running, done };
  bool claim();
  void run();

  std::atomic<int> state_{idle};
  std::shared_ptr<const grammar::Artifact> artifact_;  // the matcher may point into it
  std::unique_ptr<grammar::Matcher> matcher_;
  std::vector<Token> to_accept_;
  std::vector<uint32_t> mask_;
  int32_t grammar_vocab_;
  bool padded_;
  bool constrained_ = false;
  bool may_end_ = false;
  Outcome outcome_ = Outcome::ready;
  std::string failure_;
  double job_ms_ = 0;
};

// A few threads that sleep while there is nothing to fill. A row's next job starts only after join() of the last.
class MaskWorkers {
 public:
  explicit MaskWorkers(int32_t n_threads);
  ~MaskWorkers();
  MaskWorkers(const MaskWorkers&) = delete;
  MaskWorkers& operator=(const MaskWorkers&) = delete;

  // Accepts `tokens` and fills the mask for the token after them.
  void start(const std::shared_ptr<RowGrammar>& row, std::vector<Token> tokens);

 private:
  void work();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::shared_ptr<RowGrammar>> jobs_;  // a generation may end while its job waits here
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace sluice
