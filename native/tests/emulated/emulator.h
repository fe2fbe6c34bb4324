// Runs CUDA kernels on the CPU, for functional tests on machines without a card. The kernels' own sources are compiled by
// the host compiler; include/ stands in for the CUDA headers and for ops/cuda/ptx.cuh.
//
// A block is an OS thread, so that `__shared__` can be `static thread_local`; its threads are fibers in it. One block runs
// at a time and hands a baton on when all its threads wait, so a run is deterministic and every read and write is atomic.
// What is checked: a barrier or warp operation that not all its threads reach, and waits that nobody ends (both reported as
// a deadlock with what each thread waits for), warp operations mixed up with each other, the protocol of mbarriers; reads
// and writes outside of an allocation in a build with the address sanitizer.
// What is not: memory order, bank conflicts, time. A missing barrier shows when threads run in another order: see Order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace emulated {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};
inline thread_local Index threadIdx, blockIdx, blockDim, gridDim;

// Which of the threads that can run goes next, and when asynchronous copies happen: at once, or as late as a wait for them
// allows. A kernel that is right gives the same bits in all. At first as the environment says: SLUICE_EMULATED_ORDER
// (ascending, descending, shuffled), SLUICE_EMULATED_COPIES (early, late).
enum class Order { ascending, descending, shuffled };
struct Schedule {
  Order order = Order::ascending;
  bool late_copies = false;
  uint64_t seed = 1;
};
Schedule& schedule();

struct Launch {
  Index grid{1, 1, 1}, block{1, 1, 1};
  size_t shared_bytes = 0;
  unsigned cluster = 1;  // blocks of consecutive x
};
// Runs `body` in every thread of the grid. Throws std::runtime_error on a deadlock or when `body` throws.
void run(const Launch& launch, const std::function<void()>& body);

// --- called from kernels ---------------------------------------------------------------------------------------------

unsigned lane();
uint8_t* dynamic_shared();
size_t dynamic_shared_bytes();
// The dynamic shared memory of another block of the cluster.
uint8_t* cluster_shared(unsigned rank);
unsigned cluster_rank();
void cluster_barrier();

// Until `count` threads of the block are here. count 0 = all that have not returned.
void barrier(int id, unsigned count);

// Until every lane of `mask` is here; the last to come calls `finish` with their operands (null where not in the mask).
void collective(const char* name, uint32_t mask, void* operand, void (*finish)(void* const operands[32], uint32_t mask));

// Until `done` is true. It may look at memory that other threads of the grid write.
void wait_until(const char* what, const std::function<bool()>& done);

// A copy that may happen now or any time before a wait for it can end.
void asynchronously(std::function<void()> copy);

[[noreturn]] void fail(const char* message);

}  // namespace emulated
