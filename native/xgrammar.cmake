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

  # Two faults of 0.2.8's automata accept texts that the grammar forbids (native/tests/grammar_artifact_test.cc shows both):
  #  - X? where X loops through its own start or end: `(b+ac)?b` accepts "bb". The short cut from start to end may be
  #    taken in the middle of X; a fresh accepting start may not.
  #  - `[bc]|([bc]([bc]([bc]|)|)|)` accepts "bbbb": leaves are merged with each other although one of them was merged with
  #    a state that is no leaf in the same round.
  # A copy is mended in the build folder, each time at one place that must be there exactly once.
  file(READ "${SLUICE_XGRAMMAR_SOURCE}/cpp/fsm.cc" SLUICE_FSM)
  function(sluice_mend_fsm place replacement)
    string(FIND "${SLUICE_FSM}" "${place}" first)
    string(FIND "${SLUICE_FSM}" "${place}" last REVERSE)
    if(first EQUAL -1 OR NOT first EQUAL last)
      message(FATAL_ERROR "XGrammar's fsm.cc is not the one that is mended here: `${place}` must be there once")
    endif()
    string(REPLACE "${place}" "${replacement}" mended "${SLUICE_FSM}")
    set(SLUICE_FSM "${mended}" PARENT_SCOPE)
  endfunction()
  sluice_mend_fsm("fsm.AddEpsilonEdge(start_, ends_.front())" [=[
    // Sluice: a fresh accepting start instead of a short cut.
    const auto entry = fsm.AddState();
    fsm.AddEpsilonEdge(entry, start_);
    auto accepting = ends_;
    accepting.push_back(entry);
    return FSMWithStartEnd(fsm, entry, std::move(accepting))]=])
  sluice_mend_fsm("if (outgoing_count == 0) {" "if (outgoing_count == 0 && !union_find_set.Count(i)) {")
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
