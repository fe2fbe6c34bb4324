// Which states of a program take any number of a slice's characters and stay what they are.
#pragma once

#include <cstdint>
#include <vector>

#include "grammar/automaton/program.h"
#include "grammar/automaton/vocabulary_trie.h"

namespace sluice::grammar::automaton {

struct TextLoop {
  int slice = -1;            // the larger slice that fits; -1: none
  uint32_t count = kNone;    // the counter that each character goes through, kNone = not counted
  bool takes[kSlices] = {};  // some byte that a token of the slice may begin with leads on from here
};

// One for each state.
std::vector<TextLoop> find_text_loops(const Program& program);

}  // namespace sluice::grammar::automaton
