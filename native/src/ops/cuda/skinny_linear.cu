// Linear layers for 1 to 16 rows of activations.
//
//   y[m][r] = sum_c x[m][c] W[r][c] (* scale[r]) (+ bias[r])
//
// Bytes: the weights, once: 21 MB for the q, k, v of Qwen3-30B (5120 x 2048) in bf16; x and y are small beside them.
// Launch: a block of 8 warps for each kTiles row tiles of 16; the warps deal the columns out among them (unit u of 64 columns
//   goes to warp u mod 8) and their sums are added in the order of the warps. All blocks of a small matrix are resident at
//   once with equal bytes under way, so they end together, whichever multiprocessor has more of them.
//   A warp reads units straight into registers, kDepth at a time (512 coalesced bytes a load), as the 16-row operand of
//   mma.m16n8k16; the rows of x are its columns, so a row's bits do not depend on the others. The first weights are read
//   before the wait on the previous kernel.
#include "ops/cuda/launch.h"
#include "ops/cuda/layers.h"
#include "ops/cuda/moe_formats.cuh"

namespace sluice::cuda {
namespace {

constexpr int kWarps = 8;

// kTokens: tiles of 8 rows of x.
template <WeightFormat format, int kTiles, int kTokens>
__global__ __launch_bounds__(kWarps * 32) void skinny_linear_kernel(const __grid_constant__ SkinnyLinearArgs p) {
  using Reader = UnitReader<format>;
  constexpr int kUnitBytes = moe_unit_bytes(format), kValueBytes = kUnitBytes / 512 * 512, kLoads = kValueBytes / 512;
  constexpr int kDepth = 4 / kTiles, kUnitSlot = (kUnitBytes + 127) / 128 * 128;
  constexpr bool kStaged = format != WeightFormat::bf16;
  // Formats that are unpacked pass through shared memory, a unit a tile, where moe_formats.cuh reads them.
  uint8_t* shared = ptx::dynamic_shared();
  float* partial = reinterpret_cast<float*>(shared);  // [kWarps][kTiles][16][8 kTokens], when the sums are there
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int units = p.cols / 64, tiles = p.rows / 16, tile0 = blockIdx.x * kTiles;
  uint8_t* mine = shared + warp * kTiles * kUnitSlot;

  struct Loaded {
    uint4 values[kLoads];
    uint4 rest;  // scales that lie behind the values: the first lanes'
  };
  Loaded w[kDepth][kTiles];
  auto load = [&](int first) {
#pragma unroll
    for (int d = 0; d < kDepth; ++d)
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        // Units past the end and tiles past the last repeat one that is there, and count for nothing.
        const int64_t unit = int64_t(min(tile0 + i, tiles - 1)) * units + min(first + d * kWarps, units - 1);
        const auto* from = reinterpret_cast<const uint4*>(p.weight + unit * kUnitBytes);
#pragma unroll
        for (int j = 0; j < kLoads; ++j) w[d][i].values[j] = __ldcs(from + j * 32 + lane);
        if (kUnitBytes > kValueBytes && lane < (kUnitBytes - kValueBytes) / 16) w[d][i].rest = __ldcs(from + kLoads * 32 + lane);
      }
  };
  load(warp);
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const int m = *p.m;
  float c[kTiles][kTokens][4] = {}, d2[kTiles][kTokens][4] = {};
  for (int first = warp; first < units; first += kDepth * kWarps) {
    uint4 x[kDepth][kTokens][2];
#pragma unroll
    for (int d = 0; d < kDepth; ++d)
#pragma unroll
      for (int n = 0; n < kTokens; ++n) {
        const int unit = first + d * kWarps;
        const bool real = n * 8 + g < m && unit < units;
        const auto* from = reinterpret_cast<const uint4*>(p.x + int64_t(real ? n * 8 + g : 0) * p.cols + (real ? unit : 0) * 64 + 8 * t);
        x[d][n][0] = real ? *from : uint4{};
        x[d][n][1] = real ? from[4] : uint4{};
      }
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      uint32_t a[kTiles][4][4];
      [[maybe_unused]] float2 s[kTiles][2];
      if constexpr (kStaged) {
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
          auto* to = reinterpret_cast<uint4*>(mine + i * kUnitSlot);
#pragma unroll
          for (int j = 0; j < kLoads; ++j) to[j * 32 + lane] = w[d][i].values[j];
          if (kUnitBytes > kValueBytes && lane < (kUnitBytes - kValueBytes) / 16) to[kLoads * 32 + lane] = w[d][i].rest;
        }
        __syncwarp();
      }
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        if constexpr (kStaged) {
          const uint32_t unit = ptx::shared_address(mine + i * kUnitSlot);
          Reader::read(unit, lane, a[i]);
          if constexpr (Reader::kSums == Sums::unit_scaled) s[i][0] = Reader::scales(unit, lane);
          if constexpr (Reader::kSums == Sums::half_scaled) Reader::half_scales(unit, lane, s[i]);
        } else {
#pragma unroll
          for (int j = 0; j < 4; ++j) a[i][j][0] = w[d][i].values[j].x, a[i][j][1] = w[d][i].values[j].y, a[i][j][2] = w[d][i].values[j].z, a[i][j][3] = w[d][i].values[j].w;
        }
      }
      if constexpr (kStaged) __syncwarp();
#pragma unroll
      for (int i = 0; i < kTiles; ++i)
#pragma unroll
        for (int n = 0; n < kTokens; ++n) {
          const uint4 b0 = x[d][n][0], b1 = x[d][n][1];
          if constexpr (Reader::kSums == Sums::plain) {
            ptx::mma_bf16(c[i][n], a[i][0], b0.x, b0.y);
            ptx::mma_bf16(d2[i][n], a[i][1], b0.z, b0.w);
            ptx::mma_bf16(c[i][n], a[i][2], b1.x, b1.y);
            ptx::mma_bf16(d2[i][n], a[i][3], b1.z, b1.w);
          } else {
            constexpr bool kHalves = Reader::kSums == Sums::half_scaled;
            float e[4] = {}, f[4] = {};
            ptx::mma_bf16(e, a[i][0], b0.x, b0.y);
            ptx::mma_bf16(kHalves ? e : f, a[i][1], b0.z, b0.w);
            ptx::mma_bf16(kHalves ? f : e, a[i][2], b1.x, b1.y);
            ptx::mma_bf16(f, a[i][3], b1.z, b1.w);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              const float low = j < 2 ? s[i][0].x : s[i][0].y;
              if constexpr (kHalves) c[i][n][j] = fmaf(e[j], low, c[i][n][j]), d2[i][n][j] = fmaf(f[j], j < 2 ? s[i][1].x : s[i][1].y, d2[i][n][j]);
              else c[i][n][j] = fmaf(e[j] + f[j], low, c[i][n][j]);
            }
          }
        }
    }
    if (first + kDepth * kWarps < units) load(first + kDepth * kWarps);
  }
  __syncthreads();  // the staging area becomes the sums'
  constexpr int kColumns = 8 * kTokens;
#pragma unroll
  for (int i = 0; i < kTiles; ++i)
#pragma unroll
    for (int n = 0; n < kTokens; ++n)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        partial[((warp * kTiles + i) * 16 + g + j / 2 * 8) * kColumns + n * 8 + 2 * t + j % 2] = c[i][n][j] + d2[i][n][j];
  __syncthreads();
  for (int i = threadIdx.x; i < kTiles * 16 * kColumns; i += kWarps * 32) {
    // Neighbouring threads write neighbouring rows of W, which are neighbours in y.
    const int token = i / (kTiles * 16), local = i % (kTiles * 16), row = tile0 * 16 + local;
    if (token >= m || row >= p.real_rows) continue;
    float sum = 0;
#pragma unroll
    for (int w2 = 0; w2 < kWarps; ++w2) sum += partial[(w2 * kTiles * 16 + local) * kColumns + token];
    sum = sum * (p.row_scale ? p.row_scale[row] : 1.0f) + (p.bias ? p.bias[row] : 0.0f);
    if (p.y_fp32) static_cast<float*>(p.y)[int64_t(token) * p.real_rows + row] = sum;
    else static_cast<__nv_bfloat16*>(p.y)[int64_t(token) * p.real_rows + row] = __float2bfloat16(sum);
  }
}

template <WeightFormat format, int kTiles, int kTokens>
cudaError_t launch_shape(const SkinnyLinearArgs& args, bool overlap, cudaStream_t stream) {
  constexpr int kUnitSlot = (moe_unit_bytes(format) + 127) / 128 * 128;
  constexpr size_t staged = format == WeightFormat::bf16 ? 0 : size_t(kWarps) * kTiles * kUnitSlot;
  constexpr size_t sums = size_t(kWarps) * kTiles * 16 * 8 * kTokens * sizeof(float);
  static_assert(staged <= 48 * 1024 && sums <= 48 * 1024);
  const int tiles = args.rows / 16;
  return launch_kernel(skinny_linear_kernel<format, kTiles, kTokens>, dim3((tiles + kTiles - 1) / kTiles), dim3(kWarps * 32),
                       staged > sums ? staged : sums, overlap, stream, args);
}

template <WeightFormat format>
cudaError_t launch_format(const SkinnyLinearArgs& args, int max_m, bool overlap, cudaStream_t stream) {
  // Two row tiles share what is read of x; with one row of x there is little to share.
  if (max_m <= 2) return launch_shape<format, 1, 1>(args, overlap, stream);
  if (max_m <= 8) return launch_shape<format, 2, 1>(args, overlap, stream);
  return launch_shape<format, 2, 2>(args, overlap, stream);
}

}  // namespace

cudaError_t skinny_linear(WeightFormat format, const SkinnyLinearArgs& args, int max_m, bool overlap, cudaStream_t stream) {
  if (max_m < 1 || max_m > kSkinnyMaxRows || args.rows < 16 || args.rows % 16 || args.cols < 64 || args.cols % 64 || args.real_rows > args.rows)
    return cudaErrorInvalidValue;
  switch (format) {
    case WeightFormat::bf16: return launch_format<WeightFormat::bf16>(args, max_m, overlap, stream);
    case WeightFormat::fp8_e4m3: return launch_format<WeightFormat::fp8_e4m3>(args, max_m, overlap, stream);
    case WeightFormat::int8: return launch_format<WeightFormat::int8>(args, max_m, overlap, stream);
    case WeightFormat::int4: return launch_format<WeightFormat::int4>(args, max_m, overlap, stream);
    default: return cudaErrorInvalidValue;  // mxfp4 wants activations multiplied by 2^100 (moe_formats.cuh)
  }
}

}  // namespace sluice::cuda
