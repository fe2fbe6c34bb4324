#include "grammar/xgrammar_log.h"

#include <stdexcept>

namespace sluice::grammar {
namespace {

thread_local std::vector<std::string>* collector = nullptr;
// A hostile grammar can repeat one warning per character; the first few say it all.
constexpr size_t kMaxWarnings = 8;

}  // namespace

WarningScope::WarningScope() : outer_(collector) { collector = &warnings_; }
WarningScope::~WarningScope() { collector = outer_; }

void note_xgrammar_warning(const std::string& message) {
  if (collector != nullptr && collector->size() < kMaxWarnings) collector->push_back(message);
}

}  // namespace sluice::grammar

// The two hooks that XGRAMMAR_LOG_CUSTOMIZE leaves to the program; declared in the core's support/logging.h, which its
// public headers do not ship.
namespace xgrammar {

[[noreturn]] void LogFatalImpl(const std::string& file, int lineno, const std::string& message);
void LogMessageImpl(const std::string& file, int lineno, int level, const std::string& message);

void LogFatalImpl(const std::string&, int, const std::string& message) { throw std::runtime_error(message); }

void LogMessageImpl(const std::string&, int, int level, const std::string& message) {
  constexpr int kWarning = 2;
  if (level >= kWarning) sluice::grammar::note_xgrammar_warning(message);
}

}  // namespace xgrammar
