// Where XGrammar's own messages go: a thread's collector while it compiles, nowhere otherwise, never stderr.
#pragma once

#include <string>
#include <vector>

namespace sluice::grammar {

// While alive, collects what XGrammar warns about on this thread ("is ignored", "is not supported"). A constraint that
// was warned about is a constraint that was dropped, so the compiler refuses a grammar that produced any.
class WarningScope {
 public:
  WarningScope();
  ~WarningScope();
  WarningScope(const WarningScope&) = delete;
  WarningScope& operator=(const WarningScope&) = delete;
  const std::vector<std::string>& warnings() const { return warnings_; }

 private:
  std::vector<std::string> warnings_;
  std::vector<std::string>* outer_;
};

// Stores a warning in the innermost scope of this thread, if there is one.
void note_xgrammar_warning(const std::string& message);

}  // namespace sluice::grammar
