# The XGrammar core as the static library `xgrammar_core`: C++17, no Python binding, no tvm-ffi, no LTO.
# Upstream's own CMakeLists forces -Werror, -flto=auto and a Python binding by a plain set() that shadows -D options, so
# the sources are listed here instead.
#
#   SLUICE_XGRAMMAR_SOURCE   unpacked sdist (scripts/fetch-xgrammar.mjs)
#   SLUICE_XGRAMMAR_ARCHIVE  a libxgrammar_core.a built before by this file with the same sources, compiler and flags;
#                            set, nothing of XGrammar is compiled. The caller answers for the match.

set(SLUICE_XGRAMMAR_VERSION "0.2.8")
set(SLUICE_XGRAMMAR_SOURCE "${CMAKE_CURRENT_LIST_DIR}/../.cache/xgrammar/xgrammar-${SLUICE_XGRAMMAR_VERSION}"
    CACHE PATH "Unpacked XGrammar sdist")
set(SLUICE_XGRAMMAR_ARCHIVE "" CACHE FILEPATH "Prebuilt libxgrammar_core.a; empty: compile the sources")

if(NOT EXISTS "${SLUICE_XGRAMMAR_SOURCE}/include/xgrammar/xgrammar.h")
  message(FATAL_ERROR "No XGrammar sources at ${SLUICE_XGRAMMAR_SOURCE}: run `node scripts/fetch-xgrammar.mjs` first")
endif()

if(SLUICE_XGRAMMAR_ARCHIVE)
  if(NOT EXISTS "${SLUICE_XGRAMMAR_ARCHIVE}")
    message(FATAL_ERROR "SLUICE_XGRAMMAR_ARCHIVE names no file: ${SLUICE_XGRAMMAR_ARCHIVE}")
  endif()
  add_library(xgrammar_core STATIC IMPORTED GLOBAL)
  set_target_properties(xgrammar_core PROPERTIES IMPORTED_LOCATION "${SLUICE_XGRAMMAR_ARCHIVE}")
else()
  file(GLOB_RECURSE SLUICE_XGRAMMAR_FILES CONFIGURE_DEPENDS "${SLUICE_XGRAMMAR_SOURCE}/cpp/*.cc")
  list(FILTER SLUICE_XGRAMMAR_FILES EXCLUDE REGEX "/cpp/tvm_ffi/.*\\.cc$")

  # Two faults of 0.2.8's automata accept texts that the grammar forbids (native/tests/grammar_regex_test.cc shows both):
  #  - X? where X loops through its own start or end: `(b+ac)?b` accepts "bb". The short cut from start to end may be
  #    taken in the middle of X; a fresh accepting start may not.
  #  - `[bc]|([bc]([bc]([bc]|)|)|)` accepts "bbbb": leaves are merged with each other although one of them was merged with
  #    a state that is no leaf in the same round.
  # The copy is patched in the build folder; a text that no longer fits stops the build.
  file(READ "${SLUICE_XGRAMMAR_SOURCE}/cpp/fsm.cc" SLUICE_FSM)
  set(SLUICE_FSM_BEFORE "${SLUICE_FSM}")
  string(REPLACE [=[  if (!ends_.empty()) {
    fsm.AddEpsilonEdge(start_, ends_.front());
  }
  return FSMWithStartEnd(fsm, start_, ends_);]=] [=[  auto new_start = fsm.AddState();
  fsm.AddEpsilonEdge(new_start, start_);
  auto new_ends = ends_;
  new_ends.push_back(new_start);
  return FSMWithStartEnd(fsm, new_start, std::move(new_ends));]=] SLUICE_FSM "${SLUICE_FSM}")
  if(SLUICE_FSM STREQUAL SLUICE_FSM_BEFORE)
    message(FATAL_ERROR "XGrammar's FSMWithStartEnd::Optional is not the one that is patched here")
  endif()
  set(SLUICE_FSM_BEFORE "${SLUICE_FSM}")
  string(REPLACE [=[      if (outgoing_count == 0) {
        if (result.IsEndState(i)) {]=] [=[      if (outgoing_count == 0) {
        if (union_find_set.Count(i)) {
          continue;
        }
        if (result.IsEndState(i)) {]=] SLUICE_FSM "${SLUICE_FSM}")
  if(SLUICE_FSM STREQUAL SLUICE_FSM_BEFORE)
    message(FATAL_ERROR "XGrammar's FSMWithStartEnd::MergeEquivalentStates is not the one that is patched here")
  endif()
  set(SLUICE_FSM_FILE "${CMAKE_CURRENT_BINARY_DIR}/xgrammar-patched/fsm.cc")
  file(CONFIGURE OUTPUT "${SLUICE_FSM_FILE}" CONTENT "${SLUICE_FSM}" @ONLY)
  list(FILTER SLUICE_XGRAMMAR_FILES EXCLUDE REGEX "/cpp/fsm\\.cc$")
  list(APPEND SLUICE_XGRAMMAR_FILES "${SLUICE_FSM_FILE}")
  add_library(xgrammar_core STATIC ${SLUICE_XGRAMMAR_FILES})
  set_target_properties(xgrammar_core PROPERTIES
    CXX_STANDARD 17 CXX_STANDARD_REQUIRED ON CXX_EXTENSIONS OFF POSITION_INDEPENDENT_CODE ON
    CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON INTERPROCEDURAL_OPTIMIZATION OFF)
  # Error texts carry __FILE__: mapped, so that no build folder shows in what a caller may read.
  target_compile_options(xgrammar_core PRIVATE
    -O2 -g0 -w -ffunction-sections -fdata-sections
    "-ffile-prefix-map=${SLUICE_XGRAMMAR_SOURCE}=xgrammar")
  target_compile_definitions(xgrammar_core PRIVATE
    NDEBUG XGRAMMAR_ENABLE_CPPTRACE=0 XGRAMMAR_ENABLE_INTERNAL_CHECK=0)
endif()

# XGRAMMAR_LOG_CUSTOMIZE: warnings ("ignored", "not supported") reach our own sink, which turns them into refusals,
# instead of stderr. Whoever links this library defines LogFatalImpl and LogMessageImpl (src/grammar/xgrammar_log.cc).
set_property(TARGET xgrammar_core APPEND PROPERTY INTERFACE_COMPILE_DEFINITIONS XGRAMMAR_LOG_CUSTOMIZE=1)
if(NOT SLUICE_XGRAMMAR_ARCHIVE)
  target_compile_definitions(xgrammar_core PRIVATE XGRAMMAR_LOG_CUSTOMIZE=1)
  target_include_directories(xgrammar_core PRIVATE "${SLUICE_XGRAMMAR_SOURCE}/include"
    "${SLUICE_XGRAMMAR_SOURCE}/cpp" "${SLUICE_XGRAMMAR_SOURCE}/3rdparty/picojson" "${SLUICE_XGRAMMAR_SOURCE}/3rdparty/dlpack/include")
endif()
set_property(TARGET xgrammar_core APPEND PROPERTY INTERFACE_SYSTEM_INCLUDE_DIRECTORIES
  "${SLUICE_XGRAMMAR_SOURCE}/include" "${SLUICE_XGRAMMAR_SOURCE}/3rdparty/dlpack/include")
set_property(TARGET xgrammar_core APPEND PROPERTY INTERFACE_INCLUDE_DIRECTORIES
  "${SLUICE_XGRAMMAR_SOURCE}/include" "${SLUICE_XGRAMMAR_SOURCE}/3rdparty/dlpack/include")
