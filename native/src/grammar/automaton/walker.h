// Follows a program byte by byte: configurations (a state and a stack of frames), and what each byte makes of them.
// Decisions and their order are those of src/grammar/automaton/matcher.ts.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "grammar/automaton/program.h"

namespace sluice::grammar::automaton {

inline constexpr size_t kMaxConfigurations = 64;
inline constexpr int kMaxSilentSteps = 4096;
inline constexpr int kMaxNestedSplits = 128;

// `stack` is a frame's index; 0 is the bottom.
struct Configuration {
  uint32_t state;
  uint32_t stack;
};

struct Frame {
  uint32_t below;
  uint32_t state;
  uint32_t value;
  uint32_t depth;
};

// Frames are only ever added above others, so that stacks share them; what was added since a mark can be dropped.
class Frames {
 public:
  Frames() { clear(); }
  void clear() { frames_.assign(1, Frame{0, 0, 0, 0}); }
  const Frame& operator[](uint32_t at) const { return frames_[at]; }
  uint32_t push(uint32_t below, uint32_t state, uint32_t value) {
    frames_.push_back({below, state, value, frames_[below].depth + 1});
    return static_cast<uint32_t>(frames_.size() - 1);
  }
  size_t size() const { return frames_.size(); }
  void drop_to(size_t size) { frames_.resize(size); }
  bool same(uint32_t a, uint32_t b) const {
    while (a != b) {
      const Frame& x = frames_[a];
      const Frame& y = frames_[b];
      if (a == 0 || b == 0 || x.state != y.state || x.value != y.value) return false;
      a = x.below;
      b = y.below;
    }
    return true;
  }

 private:
  std::vector<Frame> frames_;
};

class Walker {
 public:
  Walker(const Program& program, Frames& frames) : program_(program), frames_(frames) {}

  // Appends to `out` what is reached from the program's start without a byte.
  void start(std::vector<Configuration>& out);
  // Appends to `out` what `byte` makes of out[first, last).
  void step(std::vector<Configuration>& out, size_t first, size_t last, uint8_t byte);
  // The lowest depth of a frame that was read since reset_low().
  uint32_t low() const { return low_; }
  void reset_low() { low_ = kNone; }

 private:
  void follow(std::vector<Configuration>& out, uint32_t state, uint32_t stack, int depth);
  bool add(std::vector<Configuration>& out, uint32_t state, uint32_t stack);
  // Copies the frames of a set to `values_`; the frame below them, or kNone where there are too few.
  uint32_t view(uint32_t stack, uint32_t width);
  void touch(uint32_t depth) { low_ = depth < low_ ? depth : low_; }

  const Program& program_;
  Frames& frames_;
  std::vector<uint32_t> values_;
  size_t found_ = 0;  // where the current step's configurations begin
  int steps_ = 0;
  uint32_t low_ = kNone;
};

}  // namespace sluice::grammar::automaton
