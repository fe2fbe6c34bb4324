#include "grammar/automaton/text_loops.h"

namespace sluice::grammar::automaton {
namespace {

// Where `low`..`high` all lead from this state; kNone unless it is one place.
uint32_t common_target(const Program& program, const State& state, int low, int high) {
  const uint32_t target = program.next(state, static_cast<uint8_t>(low));
  for (int byte = low + 1; byte <= high; ++byte)
    if (program.next(state, static_cast<uint8_t>(byte)) != target) return kNone;
  return target;
}

// True when `lead` and then the continuation bytes come back to `home`; `first` bounds the first of them.
bool returns(const Program& program, const State& from, int lead, int first_low, int first_high, int bytes, uint32_t home) {
  uint32_t at = program.next(from, static_cast<uint8_t>(lead));
  for (int i = 1; i < bytes; ++i) {
    if (at == kNone) return false;
    const State& state = program.state(at);
    if (state.op != Op::none) return false;
    at = common_target(program, state, i == 1 ? first_low : 0x80, i == 1 ? first_high : 0xbf);
  }
  return at == home;
}

bool keeps_utf8(const Program& program, const State& from, uint32_t home) {
  for (int lead = 0xc2; lead <= 0xdf; ++lead)
    if (!returns(program, from, lead, 0x80, 0xbf, 2, home)) return false;
  for (int lead = 0xe0; lead <= 0xef; ++lead)
    if (!returns(program, from, lead, lead == 0xe0 ? 0xa0 : 0x80, lead == 0xed ? 0x9f : 0xbf, 3, home)) return false;
  for (int lead = 0xf0; lead <= 0xf4; ++lead)
    if (!returns(program, from, lead, lead == 0xf0 ? 0x90 : 0x80, lead == 0xf4 ? 0x8f : 0xbf, 4, home)) return false;
  return true;
}

TextLoop loop_of(const Program& program, uint32_t id) {
  const State& state = program.state(id);
  for (const SliceKind kind : {SliceKind::text, SliceKind::word}) {
    uint32_t home = kNone;
    bool one = true;
    for (int byte = 0; one && byte < 0x80; ++byte) {
      if (!in_slice(kind, static_cast<uint8_t>(byte))) continue;
      const uint32_t target = program.next(state, static_cast<uint8_t>(byte));
      one = target != kNone && (home == kNone || home == target);
      home = target;
    }
    if (!one || home == kNone) continue;
    if (kind == SliceKind::text && !keeps_utf8(program, state, home)) continue;
    if (home == id) return {static_cast<int>(kind), kNone, {}};
    const State& count = program.state(home);
    if (count.op == Op::count && count.args[2] == id) return {static_cast<int>(kind), home, {}};
  }
  return {};
}

bool takes(const Program& program, const State& state, SliceKind kind) {
  for (const Edge& edge : program.edges(state)) {
    if (kind == SliceKind::text && edge.high >= 0x80) return true;
    for (int byte = edge.low; byte <= edge.high && byte < 0x80; ++byte)
      if (in_slice(kind, static_cast<uint8_t>(byte))) return true;
  }
  return false;
}

}  // namespace

std::vector<TextLoop> find_text_loops(const Program& program) {
  std::vector<TextLoop> loops(program.states().size());
  for (uint32_t id = 0; id < loops.size(); ++id) {
    const State& state = program.state(id);
    if (state.edge_count == 0) continue;
    // The smaller slice alone has five ranges.
    if (state.edge_count >= 5) loops[id] = loop_of(program, id);
    for (const SliceKind kind : {SliceKind::text, SliceKind::word})
      loops[id].takes[static_cast<int>(kind)] = takes(program, state, kind);
  }
  return loops;
}

}  // namespace sluice::grammar::automaton
