// The whole test framework: TEST defines and registers, CHECK* report and count, main prints a summary and exits 1 on any
// failure. A test that checks nothing fails, since it could not fail otherwise. One *_test.cc file is one program;
// `NAME_test SUBSTRING` runs only the tests whose name contains it.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <sstream>
#include <string>
#include <vector>

namespace check {

struct Test {
  const char* name;
  void (*body)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

struct Register {
  Register(const char* name, void (*body)()) { tests().push_back({name, body}); }
};

struct State {
  int checks = 0;
  int failures = 0;
};

inline State& state() {
  static State current;
  return current;
}

inline void report(bool ok, const char* file, int line, const std::string& what) {
  ++state().checks;
  if (ok) return;
  ++state().failures;
  std::fprintf(stderr, "  %s:%d: %s\n", file, line, what.c_str());
}

template <class T>
std::string show(const T& value) {
  if constexpr (requires(std::ostringstream& s) { s << value; }) {
    std::ostringstream out;
    out.precision(9);
    out << value;
    return out.str();
  } else {
    return "(a value)";
  }
}

template <class A, class B>
void equal(const A& a, const B& b, const char* text, const char* file, int line) {
  const bool ok = a == b;
  report(ok, file, line, ok ? std::string() : std::string(text) + ": " + show(a) + " is not " + show(b));
}

inline void near(double a, double b, double tolerance, const char* text, const char* file, int line) {
  const bool ok = std::fabs(a - b) <= tolerance;  // false for NaN
  report(ok, file, line,
         ok ? std::string() : std::string(text) + ": " + show(a) + " and " + show(b) + " differ by " +
                                  show(std::fabs(a - b)) + ", more than " + show(tolerance));
}

// Runs `body` and checks that it throws std::exception with `part` in its message.
template <class Body>
void throws(Body&& body, const char* part, const char* text, const char* file, int line) {
  try {
    body();
  } catch (const std::exception& e) {
    const bool ok = std::strstr(e.what(), part) != nullptr;
    report(ok, file, line, std::string(text) + " threw \"" + e.what() + "\", without \"" + part + "\"");
    return;
  }
  report(false, file, line, std::string(text) + " did not throw");
}

inline int run(int argc, char** argv) {
  int passed = 0, failed = 0;
  for (const Test& test : tests()) {
    if (argc > 1 && std::strstr(test.name, argv[1]) == nullptr) continue;
    state() = {};
    std::string escaped;
    try {
      test.body();
    } catch (const std::exception& e) {
      escaped = e.what();
      ++state().failures;
    }
    if (state().checks == 0 && escaped.empty()) {
      escaped = "checked nothing";
      ++state().failures;
    }
    const bool ok = state().failures == 0;
    if (!escaped.empty()) std::fprintf(stderr, "  %s: %s\n", test.name, escaped.c_str());
    std::fprintf(stderr, "%s %s\n", ok ? "ok  " : "FAIL", test.name);
    ++(ok ? passed : failed);
  }
  std::fprintf(stderr, "%d passed, %d failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}

}  // namespace check

// `name` is an identifier that reads as a sentence: TEST(a_cancelled_row_is_free_at_the_end_of_the_step) { ... }
#define TEST(name)                                              \
  static void test_##name();                                    \
  static const ::check::Register register_##name(#name, test_##name); \
  static void test_##name()

#define CHECK(condition) ::check::report(static_cast<bool>(condition), __FILE__, __LINE__, #condition)
#define CHECK_EQ(a, b) ::check::equal((a), (b), #a " == " #b, __FILE__, __LINE__)
#define CHECK_NEAR(a, b, tolerance) ::check::near((a), (b), (tolerance), #a " ~ " #b, __FILE__, __LINE__)
#define CHECK_THROWS(expression, part) \
  ::check::throws([&] { (void)(expression); }, part, #expression, __FILE__, __LINE__)

// A test program is one file, so its main stands here.
int main(int argc, char** argv) { return ::check::run(argc, argv); }
