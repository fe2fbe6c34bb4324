#include "emulator.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <semaphore>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulated {
namespace {

constexpr size_t kStackBytes = 256 * 1024;   // mapped, so only what is used counts
constexpr size_t kMaxResidentBlocks = 256;   // of a launch at one time
constexpr unsigned kMaxThreads = 1024, kMaxShared = 227 * 1024;

struct Block;

// One thread of a block.
struct Fiber {
  unsigned index = 0;
  ucontext_t context;   // where it begins
  void* resume[5];      // where it goes on
  bool begun = false, finished = false;
  const char* waits_for = nullptr;               // null while it can run
  const std::function<bool()>* done = nullptr;   // what it polls, or null when somebody else will wake it
};

struct WarpOperation {
  const char* name = nullptr;
  uint32_t arrived = 0;
  std::array<void*, 32> operands{};
};
struct Barrier {
  std::vector<Fiber*> waiting;
  unsigned count = 0;
};

struct Grid {
  Launch launch;
  const std::function<void()>* body = nullptr;
  uint64_t n_blocks = 0, next_block = 0;
  std::vector<std::unique_ptr<Block>> blocks;  // resident ones, each a place that runs one block after another
  std::vector<std::thread> threads;
  std::map<uint64_t, std::vector<uint8_t>> shared;          // dynamic shared memory by block
  std::map<uint64_t, std::pair<unsigned, unsigned>> clusters;  // arrivals and finished rounds of their barriers
  size_t idle = 0;                             // places that had nothing to do, one after the other
  std::string error;
  std::binary_semaphore finished{0};
};

struct Block {
  Grid* grid = nullptr;
  size_t place = 0;
  uint64_t id = 0;
  bool live = true;
  std::binary_semaphore baton{0};
  std::vector<Fiber> fibers;
  std::array<uint64_t, kMaxThreads / 64> ready{};  // a bit a fiber
  unsigned n_ready = 0;
  std::vector<std::array<WarpOperation, 32>> warps;
  std::map<int, Barrier> barriers;
  std::deque<std::function<void()>> copies;
  void* scheduler[5];
  std::byte* stacks = nullptr;
  std::mt19937_64 random;
  unsigned unfinished = 0;
};

thread_local Block* block = nullptr;
thread_local Fiber* fiber = nullptr;
#if defined(__SANITIZE_ADDRESS__)
thread_local const void* scheduler_stack = nullptr;
thread_local size_t scheduler_stack_bytes = 0;
#endif

// Going from one stack to another costs two jumps; swapcontext would make system calls as well. The jump is a function that
// the compiler cannot look into, so that it expects the way back.
[[gnu::noipa, gnu::no_sanitize("address")]] void jump(void** to) { __builtin_longjmp(to, 1); }
[[gnu::noipa, gnu::no_sanitize("address")]] void begin(Fiber& f) {
  f.begun = true;
  setcontext(&f.context);
}
[[gnu::noinline, gnu::no_sanitize("address")]] void jump_to_fiber(Fiber& to) {
  if (__builtin_setjmp(block->scheduler)) return;
  if (to.begun) jump(to.resume);
  else begin(to);
}
[[gnu::noinline, gnu::no_sanitize("address")]] void jump_to_scheduler() {
  if (__builtin_setjmp(fiber->resume)) return;
  jump(block->scheduler);
}

void switch_to_fiber(Fiber& to) {
  fiber = &to;
  const unsigned x = blockDim.x, y = blockDim.y;
  threadIdx = {to.index % x, to.index / x % y, to.index / (x * y)};
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, to.context.uc_stack.ss_sp, to.context.uc_stack.ss_size);
#endif
  jump_to_fiber(to);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  fiber = nullptr;
}

void switch_to_scheduler() {
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(fiber->finished ? nullptr : &fake, scheduler_stack, scheduler_stack_bytes);
#endif
  jump_to_scheduler();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
  try {
    (*block->grid->body)();
  } catch (const std::exception& e) {
    if (block->grid->error.empty()) block->grid->error = e.what();
  }
  fiber->finished = true;
  switch_to_scheduler();
}

// The running thread waits until somebody makes it ready again, or until `done`.
void sleep(const char* what, const std::function<bool()>* done) {
  fiber->waits_for = what;
  fiber->done = done;
  switch_to_scheduler();
}
void make_ready(Block& b, const Fiber& f) {
  b.ready[f.index / 64] |= uint64_t{1} << f.index % 64;
  ++b.n_ready;
}
void wake(Fiber& f) {
  f.waits_for = nullptr;
  f.done = nullptr;
  make_ready(*block, f);
}

Fiber& take_ready(Block& b) {
  const size_t words = b.ready.size();
  size_t word = schedule().order == Order::shuffled ? b.random() % words : 0;
  const bool down = schedule().order == Order::descending;
  if (down) word = words - 1;
  while (b.ready[word] == 0) word = down ? word - 1 : (word + 1) % words;
  uint64_t bits = b.ready[word];
  if (schedule().order == Order::shuffled)
    for (size_t skip = b.random() % size_t(__builtin_popcountll(bits)); skip > 0; --skip) bits &= bits - 1;
  const int bit = down ? 63 - __builtin_clzll(bits) : __builtin_ctzll(bits);
  b.ready[word] &= ~(uint64_t{1} << bit);
  --b.n_ready;
  return b.fibers[word * 64 + size_t(bit)];
}

void describe_deadlock(Grid& grid) {
  grid.error = "deadlock:";
  for (const auto& b : grid.blocks) {
    if (!b->live) continue;
    std::map<std::string, std::string> who;
    for (const Fiber& f : b->fibers) {
      std::string& threads = who[f.finished ? "nothing: it has returned" : f.waits_for ? f.waits_for : "its turn"];
      if (threads.size() < 40) threads += " " + std::to_string(f.index);
      else if (threads.back() != '.') threads += " ...";
    }
    for (const auto& [what, threads] : who) grid.error += "\n  block " + std::to_string(b->id) + " threads" + threads + " wait for " + what;
    if (grid.error.size() > 4000) break;
  }
}

void start_place(Grid& grid);

// Gives the baton to the next place with a block, or to a new place while blocks have not begun.
void hand_on(Block& b) {
  Grid& grid = *b.grid;
  const bool room = grid.error.empty() && grid.next_block < grid.n_blocks && grid.blocks.size() < kMaxResidentBlocks;
  if (room) return start_place(grid);
  for (size_t i = 1; i <= grid.blocks.size(); ++i) {
    Block& next = *grid.blocks[(b.place + i) % grid.blocks.size()];
    if (!next.live) continue;
    if (&next != &b) next.baton.release();
    else if (b.live) b.baton.release();
    return;
  }
  grid.finished.release();
}

// Runs one block to its end. False when the launch has failed.
bool run_block(Block& b) {
  Grid& grid = *b.grid;
  const unsigned n = blockDim.x * blockDim.y * blockDim.z;
  auto& memory = grid.shared[b.id];
  if (memory.empty()) memory.assign(std::max<size_t>(grid.launch.shared_bytes, 1), 0xff);
  b.fibers = std::vector<Fiber>(n);
  b.warps.assign((n + 31) / 32, {});
  b.barriers.clear();
  b.ready = {};
  b.n_ready = 0;
  b.unfinished = n;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(b.stacks, n * kStackBytes);  // frames that were left for good
#endif
  for (unsigned i = 0; i < n; ++i) {
    Fiber& f = b.fibers[i];
    f.index = i;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = b.stacks + i * kStackBytes;
    f.context.uc_stack.ss_size = kStackBytes;
    f.context.uc_link = nullptr;
    makecontext(&f.context, fiber_main, 0);
    make_ready(b, f);
  }
  while (grid.error.empty()) {
    if (b.n_ready > 0) {
      grid.idle = 0;
      Fiber& f = take_ready(b);
      switch_to_fiber(f);
      if (!f.finished) continue;
      if (--b.unfinished == 0) break;
      // Those that wait for everybody need not wait for this one.
      for (auto& [id, barrier] : b.barriers)
        if (barrier.count == 0 && !barrier.waiting.empty() && barrier.waiting.size() == b.unfinished)
          for (Fiber* w : std::exchange(barrier.waiting, {})) wake(*w);
      continue;
    }
    for (Fiber& f : b.fibers)
      if (!f.finished && f.done && (*f.done)()) wake(f);
    if (b.n_ready > 0) continue;
    if (!b.copies.empty()) {
      b.copies.front()();
      b.copies.pop_front();
      continue;
    }
    if (++grid.idle > 2 * grid.blocks.size() + 2 && grid.next_block == grid.n_blocks) {
      describe_deadlock(grid);
      break;
    }
    hand_on(b);
    b.baton.acquire();
  }
  for (auto& copy : b.copies) copy();
  b.copies.clear();
  return grid.error.empty();
}

void place_main(Block& b) {
  block = &b;
  Grid& grid = *b.grid;
  b.baton.acquire();
  blockDim = grid.launch.block;
  gridDim = grid.launch.grid;
  const size_t bytes = size_t(blockDim.x) * blockDim.y * blockDim.z * kStackBytes;
  void* stacks = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) grid.error = "no memory for the threads' stacks";
  else b.stacks = static_cast<std::byte*>(stacks);
  b.random.seed(schedule().seed + b.place);
  while (grid.error.empty() && grid.next_block < grid.n_blocks) {
    b.id = grid.next_block++;
    grid.idle = 0;
    const uint64_t x = gridDim.x, y = gridDim.y;
    blockIdx = {unsigned(b.id % x), unsigned(b.id / x % y), unsigned(b.id / (x * y))};
    if (!run_block(b)) break;
  }
  b.live = false;
  if (b.stacks) {
#if defined(__SANITIZE_ADDRESS__)
    // The C library may put a thread's stack and variables here next, and the sanitizer does not see it do so.
    __asan_unpoison_memory_region(b.stacks, bytes);
#endif
    munmap(b.stacks, bytes);
  }
  // After a failure every place that still waits is let go, one by one.
  hand_on(b);
}

void start_place(Grid& grid) {
  grid.blocks.push_back(std::make_unique<Block>());
  Block& b = *grid.blocks.back();
  b.grid = &grid;
  b.place = grid.blocks.size() - 1;
  grid.threads.emplace_back([&b] { place_main(b); });
  b.baton.release();
}

uint64_t cluster_of(const Block& b) { return b.id / b.grid->launch.cluster; }

}  // namespace

Schedule& schedule() {
  static Schedule current = [] {
    Schedule s;
    const char* order = std::getenv("SLUICE_EMULATED_ORDER");
    const char* copies = std::getenv("SLUICE_EMULATED_COPIES");
    if (order && std::string(order) == "descending") s.order = Order::descending;
    if (order && std::string(order) == "shuffled") s.order = Order::shuffled;
    s.late_copies = copies && std::string(copies) == "late";
    return s;
  }();
  return current;
}

void run(const Launch& launch, const std::function<void()>& body) {
  const uint64_t threads = uint64_t(launch.block.x) * launch.block.y * launch.block.z;
  const uint64_t blocks = uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z;
  if (threads == 0 || threads > kMaxThreads || blocks == 0 || launch.shared_bytes > kMaxShared || launch.cluster == 0 ||
      launch.grid.x % launch.cluster)
    throw std::runtime_error("a launch that no card takes");
  Grid grid;
  grid.launch = launch;
  grid.body = &body;
  grid.n_blocks = blocks;
  start_place(grid);
  grid.finished.acquire();
  for (std::thread& t : grid.threads) t.join();
  if (!grid.error.empty()) throw std::runtime_error(grid.error);
}

unsigned lane() { return fiber->index % 32; }
uint8_t* dynamic_shared() { return block->grid->shared[block->id].data(); }
size_t dynamic_shared_bytes() { return block->grid->launch.shared_bytes; }
unsigned cluster_rank() { return unsigned(block->id % block->grid->launch.cluster); }
uint8_t* cluster_shared(unsigned rank) {
  if (rank >= block->grid->launch.cluster) fail("no such block in the cluster");
  auto& memory = block->grid->shared[cluster_of(*block) * block->grid->launch.cluster + rank];
  if (memory.empty()) fail("a block of the cluster is used before a cluster barrier: it may not have begun");
  return memory.data();
}
void cluster_barrier() {
  auto& [arrived, rounds] = block->grid->clusters[cluster_of(*block)];
  const unsigned n = block->grid->launch.cluster * unsigned(block->fibers.size()), round = rounds;
  if (++arrived == n) arrived = 0, ++rounds;
  const unsigned* now = &rounds;
  wait_until("the cluster's barrier", [=] { return *now != round; });
}

void barrier(int id, unsigned count) {
  Barrier& b = block->barriers[id];
  if (!b.waiting.empty() && b.count != count) fail("threads wait at one barrier with different counts");
  b.count = count;
  if (b.waiting.size() + 1 == (count ? count : block->unfinished)) {
    for (Fiber* f : std::exchange(b.waiting, {})) wake(*f);
    wake(*fiber);
    switch_to_scheduler();
    return;
  }
  b.waiting.push_back(fiber);
  sleep(id ? "a named barrier" : "__syncthreads", nullptr);
}

void collective(const char* name, uint32_t mask, void* operand, void (*finish)(void* const operands[32], uint32_t mask)) {
  const unsigned me = fiber->index % 32, warp = fiber->index / 32;
  if (!(mask >> me & 1)) fail("a lane calls a warp operation whose mask it is not in");
  WarpOperation& operation = block->warps[warp][unsigned(__builtin_ctz(mask))];
  if (operation.arrived && operation.name != name) fail("lanes of a warp meet in different operations");
  operation.name = name;
  operation.arrived |= 1u << me;
  operation.operands[me] = operand;
  if (operation.arrived != mask) return sleep(name, nullptr);
  finish(operation.operands.data(), mask);
  operation = {};
  for (unsigned i = 0; i < 32; ++i)
    if ((mask >> i & 1) && i != me) wake(block->fibers[warp * 32 + i]);
}

void wait_until(const char* what, const std::function<bool()>& done) {
  if (!done()) sleep(what, &done);
}

void asynchronously(std::function<void()> copy) {
  if (schedule().late_copies) block->copies.push_back(std::move(copy));
  else copy();
}

void fail(const char* message) { throw std::runtime_error(message); }

}  // namespace emulated
