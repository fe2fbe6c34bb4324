// What the emulator must catch: kernels that are wrong in the ways that kernels go wrong.
#include <numeric>

#include "check.h"
#include "ops/cuda/ptx.cuh"

namespace {

namespace ptx = sluice::cuda::ptx;

template <class... P, class... A>
void launch(unsigned blocks, unsigned threads, size_t shared, unsigned cluster, void (*kernel)(P...), A... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = cluster;
  cudaLaunchConfig_t config{dim3(blocks), dim3(threads), shared, nullptr, &attribute, 1};
  cudaLaunchKernelEx(&config, kernel, arguments...);
}

// Runs under every schedule, and restores the one that was.
template <class F>
void under_all_schedules(F f) {
  const emulated::Schedule before = emulated::schedule();
  for (auto order : {emulated::Order::ascending, emulated::Order::descending, emulated::Order::shuffled})
    for (bool late : {false, true}) {
      emulated::schedule() = {order, late, 7};
      f();
    }
  emulated::schedule() = before;
}

void reverse(const int* in, int* out, bool forgetful) {
  __shared__ int staged[96];
  staged[threadIdx.x] = in[blockIdx.x * 96 + threadIdx.x];
  if (!forgetful) __syncthreads();
  out[blockIdx.x * 96 + threadIdx.x] = staged[95 - threadIdx.x];
}

TEST(threads_of_a_block_meet_at_a_barrier_whatever_their_order) {
  std::vector<int> in(5 * 96), out(in.size());
  std::iota(in.begin(), in.end(), 0);
  under_all_schedules([&] {
    std::fill(out.begin(), out.end(), -1);
    launch(5, 96, 0, 1, reverse, static_cast<const int*>(in.data()), out.data(), false);
    for (int i = 0; i < 96 * 5; ++i)
      if (out[i] != i / 96 * 96 + 95 - i % 96) CHECK_EQ(out[i], i / 96 * 96 + 95 - i % 96);
    CHECK(out[0] == 95);
  });
}

TEST(a_forgotten_barrier_shows_in_some_order) {
  std::vector<int> in(2 * 96), out(in.size());
  std::iota(in.begin(), in.end(), 1);
  int wrong = 0;
  under_all_schedules([&] {
    launch(2, 96, 0, 1, reverse, static_cast<const int*>(in.data()), out.data(), true);
    for (int i = 0; i < 96 * 2; ++i) wrong += out[i] != in[i / 96 * 96 + 95 - i % 96];
  });
  CHECK(wrong > 0);
}

void some_skip_a_named_barrier(int* out) {
  if (threadIdx.x < 64 && threadIdx.x != 5) ptx::named_barrier(1, 64);
  out[threadIdx.x] = 1;
}
TEST(a_barrier_that_not_all_reach_is_a_deadlock_with_a_description) {
  std::vector<int> out(96);
  CHECK_THROWS(launch(1, 96, 0, 1, some_skip_a_named_barrier, out.data()), "wait for a named barrier");
}

void half_a_warp_shuffles(int* out) {
  int v = int(threadIdx.x);
  if (threadIdx.x < 16) v = __shfl_xor_sync(~0u, v, 1);
  out[threadIdx.x] = v;
}
TEST(a_warp_operation_that_lanes_do_not_reach_is_a_deadlock) {
  std::vector<int> out(32);
  CHECK_THROWS(launch(1, 32, 0, 1, half_a_warp_shuffles, out.data()), "__shfl_xor_sync");
}

void lanes_differ(int* out) { out[threadIdx.x] = threadIdx.x % 2 ? __shfl_sync(~0u, 1, 0) : int(__ballot_sync(~0u, 1)); }
TEST(lanes_that_meet_in_different_operations_are_refused) {
  std::vector<int> out(32);
  CHECK_THROWS(launch(1, 32, 0, 1, lanes_differ, out.data()), "different operations");
}

// Two stages, one producer warp, one consumer warp. `hasty`: the consumer does not wait; `greedy`: the producer does not.
void ring(const int* in, int* out, int n, bool hasty, bool greedy) {
  uint8_t* shared = ptx::dynamic_shared();
  auto* full = reinterpret_cast<uint64_t*>(shared + 256);
  uint64_t* empty = full + 2;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) ptx::mbarrier_init(&full[i], 1), ptx::mbarrier_init(&empty[i], 1);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  for (int i = 0; i < n; ++i) {
    const int stage = i % 2;
    const uint32_t parity = i / 2 % 2;
    if (threadIdx.x == 32) {
      if (!greedy) ptx::mbarrier_wait(&empty[stage], parity ^ 1);
      ptx::mbarrier_arrive_expect_tx(&full[stage], 128);
      ptx::bulk_load(shared + stage * 128, in + i * 32, 128, &full[stage]);
    } else if (threadIdx.x < 32) {
      if (!hasty) ptx::mbarrier_wait(&full[stage], parity);
      out[i * 32 + threadIdx.x] = reinterpret_cast<int*>(shared + stage * 128)[threadIdx.x];
      __syncwarp();
      if (threadIdx.x == 0) ptx::mbarrier_arrive(&empty[stage]);
    }
  }
}
TEST(a_ring_of_bulk_copies_delivers_under_every_schedule) {
  std::vector<int> in(7 * 32), out(in.size());
  std::iota(in.begin(), in.end(), 0);
  under_all_schedules([&] {
    std::fill(out.begin(), out.end(), -1);
    launch(1, 64, 512, 1, ring, static_cast<const int*>(in.data()), out.data(), 7, false, false);
    CHECK(in == out);
  });
}
TEST(a_ring_without_its_waits_fails_under_some_schedule) {
  std::vector<int> in(7 * 32), out(in.size());
  std::iota(in.begin(), in.end(), 0);
  for (bool hasty : {false, true}) {
    int wrong = 0;
    under_all_schedules([&] {
      std::fill(out.begin(), out.end(), -1);
      try {
        launch(1, 64, 512, 1, ring, static_cast<const int*>(in.data()), out.data(), 7, hasty, !hasty);
        wrong += in != out;
      } catch (const std::runtime_error&) {
        ++wrong;
      }
    });
    CHECK(wrong > 0);
  }
}

void uninitialised_barrier() { ptx::mbarrier_arrive(reinterpret_cast<uint64_t*>(ptx::dynamic_shared())); }
TEST(an_mbarrier_must_be_initialised) { CHECK_THROWS(launch(1, 1, 64, 1, uninitialised_barrier), "not initialised"); }

void past_the_end(uint32_t* out) { *out = ptx::load_shared(ptx::shared_address(ptx::dynamic_shared() + 64)); }
TEST(an_address_past_the_end_of_shared_memory_is_refused) {
  uint32_t out = 0;
  CHECK_THROWS(launch(1, 1, 64, 1, past_the_end, &out), "past the end");
}

void neighbours(int* out) {
  int* mine = reinterpret_cast<int*>(ptx::dynamic_shared());
  if (threadIdx.x == 0) *mine = int(blockIdx.x) * 10;
  ptx::cluster_sync();
  if (threadIdx.x == 0) out[blockIdx.x] = *ptx::cluster_map(mine, (ptx::cluster_rank() + 1) % 4);
  ptx::cluster_sync();
}
TEST(blocks_of_a_cluster_see_each_others_shared_memory) {
  under_all_schedules([&] {
    std::vector<int> out(8, -1);
    launch(8, 32, 64, 4, neighbours, out.data());
    CHECK((out == std::vector<int>{10, 20, 30, 0, 50, 60, 70, 40}));
  });
}

void relay(uint32_t* counter, int* out) {
  // Each block waits for the one after it: all must be there at once.
  if (threadIdx.x == 0) {
    ptx::wait_until_equal(counter, gridDim.x - 1 - blockIdx.x);
    out[blockIdx.x] = int(ptx::load_acquire(counter));
    ptx::red_release_add(counter, 1);
  }
}
TEST(blocks_may_wait_for_each_other) {
  uint32_t counter = 0;
  std::vector<int> out(9, -1);
  launch(9, 32, 0, 1, relay, &counter, out.data());
  CHECK((out == std::vector<int>{8, 7, 6, 5, 4, 3, 2, 1, 0}));
}
TEST(a_counter_that_nobody_raises_is_a_deadlock) {
  uint32_t counter = 100;
  std::vector<int> out(3, -1);
  CHECK_THROWS(launch(3, 32, 0, 1, relay, &counter, out.data()), "a counter in device memory");
}

void fragments(const uint16_t* a, const uint16_t* b, float* c) {
  // c[16][8] = a[16][16] b[16][8], as the PTX manual lays the operands out, a by way of ldmatrix.
  uint8_t* shared = ptx::dynamic_shared();
  for (int i = int(threadIdx.x); i < 256; i += 32) reinterpret_cast<uint16_t*>(shared)[i] = a[i];
  __syncwarp();
  const int lane = int(threadIdx.x), g = lane / 4, t = lane % 4;
  uint32_t fa[4];
  ptx::ldmatrix_x4(fa, ptx::shared_address(shared) + uint32_t(lane % 16 * 32 + lane / 16 * 16));
  auto pair = [&](int row, int col) { return uint32_t(b[(row + 1) * 8 + col]) << 16 | b[row * 8 + col]; };
  float fc[4] = {};
  ptx::mma_bf16(fc, fa, pair(2 * t, g), pair(2 * t + 8, g));
  for (int i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = fc[i];
}
TEST(a_matrix_product_by_fragments_is_the_product) {
  std::vector<uint16_t> a(256), b(128);
  std::vector<float> c(128);
  for (int i = 0; i < 256; ++i) a[i] = __float2bfloat16(float(i % 13 - 6)).bits;
  for (int i = 0; i < 128; ++i) b[i] = __float2bfloat16(float(i % 7 - 3)).bits;
  launch(1, 32, 512, 1, fragments, static_cast<const uint16_t*>(a.data()), static_cast<const uint16_t*>(b.data()), c.data());
  for (int row = 0; row < 16; ++row)
    for (int col = 0; col < 8; ++col) {
      float want = 0;
      for (int k = 0; k < 16; ++k) want += float((row * 16 + k) % 13 - 6) * float((k * 8 + col) % 7 - 3);
      CHECK_EQ(c[row * 8 + col], want);
    }
}

}  // namespace
