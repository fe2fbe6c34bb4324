// Sampling in one pass over the logits (ops.h: Sample; sample/sampler.h has the meaning, step by step).
//
//   y = (penalties, bias, bans, mask)(logits);  w(i) = e^((y(i) - max y) / temperature), cut off by top-k, top-p and min-p;
//   the token is the first i with w(0) + .. + w(i) > u sum(w), u = Philox(seed, choice, position)
//
// Bytes: the logits once, 4 vocab a row; a mask adds 1/32 of that. 64 rows of 151,936: 38.9 MB.
// Launch: a cluster of `parts` blocks of 512 threads for each row. A block keeps its part of the row in shared memory (76 KB
//   of 608 KB with 8 parts), where everything after the first read happens; two blocks fit on a multiprocessor, so one
//   loads while the other decides.
//   - Greedy rows: maximum and its token, one exchange between the parts.
//   - top-k and top-p: the cutoff is found ten bits of the weight at a time (three histograms at most, each gathered in the
//     first part's shared memory), ties by id. No sorting, and no limit on k.
//   - The draw: sums of 512 tokens, then inside one of them.
// Counts and masses of a bucket are exact integers, sums over buckets and chunks run in double in a fixed order, so the
// token depends on nothing but the row; it differs from the CPU's only where u falls within rounding (1e-15) of a boundary.
//
// Sources of ideas: cutoff by radix select over float bits: RadiK (arXiv:2501.14336), Qrita (arXiv:2602.01518).
#include "ops/cuda/sampling_parts.cuh"
#include "sample/philox.h"

namespace sluice::cuda {
namespace sampling {

// A block's view of its part of the row.
struct Part {
  float* values;         // [n], token begin + i
  Shared& shared;
  int begin, n, parts, rank;
  int logit;
  __device__ __forceinline__ bool leads() const { return rank == 0; }
  __device__ __forceinline__ Shared& of(int r) const { return r == rank ? shared : *ptx::cluster_map(&shared, r); }
};

// Elements of the part, four at a time: f(values, first token, how many of them are the row's).
template <class F>
__device__ __forceinline__ void look(const Part& p, F f) {
  for (int i = threadIdx.x * 4; i < p.n; i += kThreads * 4) {
    const float4 quad = *reinterpret_cast<const float4*>(p.values + i);
    const float v[4] = {quad.x, quad.y, quad.z, quad.w};
    f(v, p.begin + i, min(4, p.n - i));
  }
}
template <class F>
__device__ __forceinline__ void change(const Part& p, F f) {
  for (int i = threadIdx.x * 4; i < p.n; i += kThreads * 4) {
    float4& quad = *reinterpret_cast<float4*>(p.values + i);
    float v[4] = {quad.x, quad.y, quad.z, quad.w};
    f(v, p.begin + i, min(4, p.n - i));
    quad = {v[0], v[1], v[2], v[3]};
  }
}

// The largest key of the raw logits below `limit`, over this thread's elements.
__device__ __forceinline__ uint64_t best_below(const Part& p, uint64_t limit) {
  uint64_t best = 0;
  look(p, [&](const float (&v)[4], int token, int n) {
    for (int j = 0; j < n; ++j) {
      const uint64_t key = rank_key(v[j], token + j);
      if (key < limit) best = max(best, key);
    }
  });
  return best;
}

// Penalties, bias and bans: few tokens, wherever they are.
__device__ void edit(const Part& p, const SampleArgs& a, int row, const SamplingRow& params) {
  auto mine = [&](Token token) { return token >= p.begin && token < p.begin + p.n; };
  if (a.seen && (params.repetition_penalty != 1 || params.presence_penalty != 0 || params.frequency_penalty != 0)) {
    for (int i = threadIdx.x; i < a.n_seen[row]; i += kThreads) {
      const SeenToken s = a.seen[int64_t(row) * a.seen_capacity + i];
      if (!mine(s.token)) continue;
      float& y = p.values[s.token - p.begin];
      y = y > 0 ? __fdiv_rn(y, params.repetition_penalty) : __fmul_rn(y, params.repetition_penalty);
      if (s.in_output > 0)
        y = __fsub_rn(y, __fadd_rn(params.presence_penalty, __fmul_rn(params.frequency_penalty, float(s.in_output))));
    }
    __syncthreads();
  }
  if (a.bias_offsets) {
    for (int i = a.bias_offsets[row] + threadIdx.x; i < a.bias_offsets[row + 1]; i += kThreads)
      if (mine(a.bias_tokens[i])) p.values[a.bias_tokens[i] - p.begin] += a.bias_values[i];
    __syncthreads();
  }
  if (a.banned_offsets) {
    for (int i = a.banned_offsets[p.logit] + threadIdx.x; i < a.banned_offsets[p.logit + 1]; i += kThreads)
      if (mine(a.banned_tokens[i])) p.values[a.banned_tokens[i] - p.begin] = -INFINITY;
    __syncthreads();
  }
}

// One level of a search: in which bucket the tokens, most likely first, reach `count` in number or `mass` in weight. Only
// weights whose bits above `shift` + 10 are those of `prefix`. In: what lies above them all.
__device__ Found descend(const Part& p, const Cutoff& within, float floor, uint32_t prefix, int shift, uint64_t count, double mass, const Found& above) {
  Histogram& mine = p.shared.histogram;
  const int prefix_shift = shift + 10;
  look(p, [&](const float (&v)[4], int token, int n) {
    for (int j = 0; j < n; ++j) {
      const uint32_t b = __float_as_uint(v[j]);
      if (b == 0 || v[j] < floor || (prefix_shift < 30 && b >> prefix_shift != prefix) || !within.keeps(v[j], token + j)) continue;
      const int bucket = b >> shift & (kBuckets - 1);
      atomicAdd(&mine.counts[bucket], 1u);
      atomicAdd(&mine.low[bucket], mantissa(b) & 0xfff);
      atomicAdd(&mine.high[bucket], mantissa(b) >> 12);
    }
  });
  __syncthreads();
  if (!p.leads()) {
    Histogram& all = p.of(0).histogram;
    for (int i = threadIdx.x; i < kBuckets; i += kThreads)
      if (mine.counts[i]) {
        atomicAdd(&all.counts[i], mine.counts[i]);
        atomicAdd(&all.low[i], mine.low[i]);
        atomicAdd(&all.high[i], mine.high[i]);
        mine.counts[i] = mine.low[i] = mine.high[i] = 0;
      }
  }
  ptx::cluster_sync();
  if (p.leads()) {
    // Two buckets a thread, from the largest weights down.
    const int high = kBuckets - 1 - 2 * int(threadIdx.x);
    uint32_t counts[2];
    double masses[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int bucket = high - i;
      counts[i] = mine.counts[bucket];
      const uint32_t bits = (prefix_shift < 30 ? prefix << prefix_shift : 0) | uint32_t(bucket) << shift;
      masses[i] = (double(mine.high[bucket]) * 4096 + mine.low[bucket]) * mantissa_unit(bits);
      mine.counts[bucket] = mine.low[bucket] = mine.high[bucket] = 0;
    }
    if (threadIdx.x == 0) p.shared.first = INT32_MAX;
    uint64_t kept = above.kept + block_before(counts[0] + counts[1], p.shared.numbers);
    double sum = above.mass + block_before(masses[0] + masses[1], p.shared.sums);
    // Below the first level the bucket that the cut runs through is known to hold it, so the last one will do.
    const int last = block_max(counts[1] ? int(2 * threadIdx.x + 1) : counts[0] ? int(2 * threadIdx.x) : -1, reinterpret_cast<int*>(p.shared.keys));
    int crossing = INT32_MAX;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint64_t kept_with = kept + (i ? counts[0] + counts[1] : counts[0]);
      const double sum_with = sum + (i ? masses[0] + masses[1] : masses[0]);
      if (crossing == INT32_MAX && counts[i] && (kept_with >= count || sum_with >= mass)) crossing = 2 * threadIdx.x + i;
    }
    if (crossing != INT32_MAX) atomicMin(&p.shared.first, crossing);
    __syncthreads();
    int at = p.shared.first;
    if (at == INT32_MAX && prefix_shift < 30) at = last;
    if (at == INT32_MAX) {
      if (threadIdx.x == 0) p.shared.found = {-1, 0, 0.0, 0};
    } else if (at / 2 == int(threadIdx.x)) {
      const int i = at % 2;
      p.shared.found = {kBuckets - 1 - at, kept + (i ? counts[0] : 0), sum + (i ? masses[0] : 0.0), counts[i]};
    }
  }
  ptx::cluster_sync();
  return p.of(0).found;
}

// The id of the n-th (from 1) token, by id, of those that weigh exactly `weight`.
__device__ int nth_equal(const Part& p, uint32_t weight, uint64_t n) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int share = (p.n + kWarps - 1) / kWarps, from = warp * share, to = min(p.n, from + share);
  uint32_t found = 0;
  for (int i = from; i < to; i += 32) found += __popc(__ballot_sync(~0u, i + lane < to && __float_as_uint(p.values[i + lane]) == weight));
  __syncthreads();
  if (lane == 0) p.shared.numbers[warp] = found;
  __syncthreads();
  uint32_t all = 0, before = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) before += p.shared.numbers[w];
    all += p.shared.numbers[w];
  }
  if (threadIdx.x == 0) p.shared.equals = all;
  ptx::cluster_sync();
  uint64_t earlier = before;
  for (int r = 0; r < p.rank; ++r) earlier += p.of(r).equals;
  if (n > earlier && n <= earlier + found) {
    uint32_t left = uint32_t(n - earlier);
    for (int i = from; i < to; i += 32) {
      const bool equal = i + lane < to && __float_as_uint(p.values[i + lane]) == weight;
      const uint32_t votes = __ballot_sync(~0u, equal), here = __popc(votes);
      if (left > here) {
        left -= here;
        continue;
      }
      if (equal && __popc(votes & ((2u << lane) - 1)) == int(left)) p.of(0).cutoff_token = p.begin + i + lane;
      break;
    }
  }
  ptx::cluster_sync();
  return p.of(0).cutoff_token;
}

// Sampler::cutoff_at; `floor`: a weight that the cutoff is known not to lie below; `mass_kept`: what is left.
__device__ Cutoff search(const Part& p, const Cutoff& within, float floor, uint64_t count, double mass, double* mass_kept) {
  Found found{0, 0, 0.0, 0};
  uint32_t prefix = 0;
  for (int shift = 20; shift >= 0; shift -= 10) {
    found = descend(p, within, floor, prefix, shift, count, mass, found);
    if (found.bucket < 0) return within;  // everything is kept
    prefix = prefix << 10 | uint32_t(found.bucket);
  }
  const double weight = __uint_as_float(prefix);
  uint64_t taken = count - found.kept;
  if (mass < INFINITY) taken = min(taken, uint64_t(max(1.0, ceil((mass - found.mass) / weight))));
  taken = min(max(taken, uint64_t(1)), uint64_t(found.count));
  *mass_kept = found.mass + double(taken) * weight;
  Cutoff cutoff;
  cutoff.weight = prefix;
  cutoff.token = taken == found.count ? (prefix == within.weight ? within.token : INT32_MAX) : nth_equal(p, prefix, taken);
  return cutoff;
}

// What lane `lane` of a warp adds of a chunk: tokens 16 lane .. 16 lane + 15. It begins elsewhere in each lane, so that
// lanes meet in few banks.
__device__ __forceinline__ double lane_sum(const float* chunk, int n) {
  const int lane = threadIdx.x % 32;
  double sum = 0;
  for (int j = 0; j < 16; ++j) {
    const int i = lane * 16 + (j + lane) % 16;
    if (i < n) sum += chunk[i];
  }
  return sum;
}
__device__ __forceinline__ double warp_before(double v, double* total) {
  const int lane = threadIdx.x % 32;
  double scan = v;
#pragma unroll
  for (int d = 1; d < 32; d <<= 1) {
    const double other = __shfl_up_sync(~0u, scan, d);
    if (lane >= d) scan += other;
  }
  *total = __shfl_sync(~0u, scan, 31);
  const double before = __shfl_up_sync(~0u, scan, 1);
  return lane ? before : 0.0;
}

// Inverse of the cumulative distribution in the order of ids. All blocks call; the leader's first warp returns the token.
__device__ Token draw(const Part& p, int vocab, int part_size, double uniform) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int c = warp; c * kChunk < p.n; c += kWarps) {
    double total;
    warp_before(lane_sum(p.values + c * kChunk, min(kChunk, p.n - c * kChunk)), &total);
    if (lane == 0) p.of(0).chunk_sums[p.begin / kChunk + c] = total;
  }
  ptx::cluster_sync();
  if (!p.leads() || warp != 0) return 0;
  const int n_chunks = (vocab + kChunk - 1) / kChunk, share = (n_chunks + 31) / 32;
  double mine = 0, total;
  for (int c = lane * share; c < min(n_chunks, (lane + 1) * share); ++c) mine += p.shared.chunk_sums[c];
  const double before = warp_before(mine, &total);
  const double target = uniform * total;
  // The chunk that holds the target; where rounding carries it past the last weight, the last chunk with one.
  int chunk = -1;
  double left = 0, sum = before;
  for (int c = lane * share; c < min(n_chunks, (lane + 1) * share); ++c) {
    const double w = p.shared.chunk_sums[c];
    if (chunk < 0 && w > 0 && target < sum + w) chunk = c, left = target - sum;
    sum += w;
  }
  const uint32_t holders = __ballot_sync(~0u, chunk >= 0);
  if (holders) {
    chunk = __shfl_sync(~0u, chunk, __ffs(holders) - 1), left = __shfl_sync(~0u, left, __ffs(holders) - 1);
  } else {
    for (int c = lane * share; c < min(n_chunks, (lane + 1) * share); ++c)
      if (p.shared.chunk_sums[c] > 0) chunk = c;
    chunk = __reduce_max_sync(~0u, chunk), left = INFINITY;
  }
  const int owner = chunk * kChunk / part_size;
  const float* values = owner == p.rank ? p.values : ptx::cluster_map(p.values, owner);
  const float* weights = values + (chunk * kChunk - owner * part_size);
  const int n = min(kChunk, vocab - chunk * kChunk);
  double whole;
  const double ahead = warp_before(lane_sum(weights, n), &whole);
  int token = -1, last = -1;
  double running = ahead;
  for (int i = lane * 16; i < min(n, lane * 16 + 16); ++i) {
    if (weights[i] == 0) continue;
    last = i;
    running += weights[i];
    if (token < 0 && left < running) token = i;
  }
  const uint32_t found = __ballot_sync(~0u, token >= 0);
  token = found ? __shfl_sync(~0u, token, __ffs(found) - 1) : __reduce_max_sync(~0u, last);
  return chunk * kChunk + token;
}

__global__ __launch_bounds__(kThreads, 2) void sample_kernel(const __grid_constant__ SampleArgs a, const int parts, const int part_size) {
  uint8_t* memory = ptx::dynamic_shared();
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const int rank = parts > 1 ? int(ptx::cluster_rank()) : 0, logit = blockIdx.x / parts;
  Part p{reinterpret_cast<float*>(memory + (sizeof(Shared) + 127) / 128 * 128), shared, rank * part_size, 0, parts, rank, logit};
  p.n = max(0, min(part_size, a.vocab - p.begin));
  if (threadIdx.x == 0) {
    for (int i = 0; i < kPieces; ++i) ptx::mbarrier_init(&shared.arrived[i], ptx::stage_arrivals(1));
    ptx::fence_mbarrier_init();
  }
  for (int i = threadIdx.x; i < kBuckets; i += kThreads) shared.histogram.counts[i] = shared.histogram.low[i] = shared.histogram.high[i] = 0;
  __syncthreads();
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  if (logit >= a.counts->n_logits) return;

  const float* logits = a.logits + logit * a.stride;
  const int piece = ((p.n + kPieces - 1) / kPieces + 3) / 4 * 4;  // elements
  if (threadIdx.x == 0)
    for (int i = 0; i < kPieces && i * piece < p.n; ++i) {
      const uint32_t bytes = (min(piece, p.n - i * piece) + 3) / 4 * 16;
      ptx::stage_begin(&shared.arrived[i], bytes);
      ptx::stage_copy(p.values + i * piece, logits + p.begin + i * piece, bytes, &shared.arrived[i]);
    }
  const int token_index = a.logit_tokens[logit], row = a.rows[a.token_rows[token_index]].row;
  const uint32_t position = uint32_t(a.positions[token_index] + 1);
  const SamplingRow params = a.params[row];
  const int mask_id = a.mask_ids ? a.mask_ids[logit] : -1;
  const uint32_t* mask = mask_id >= 0 ? a.masks + int64_t(mask_id) * ((a.vocab + 31) / 32) : nullptr;

  // Raw logits: the largest, NaN, and what log probabilities need.
  uint64_t raw_best = 0;
  bool bad = false;
  for (int i = 0; i < kPieces && i * piece < p.n; ++i) {
    ptx::mbarrier_wait(&shared.arrived[i], 0);
    const int end = min(piece, p.n - i * piece);
    for (int j = threadIdx.x * 4; j < end; j += kThreads * 4)
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float v = p.values[i * piece + j + k];
        if (j + k >= end) break;
        bad |= v != v;
        raw_best = max(raw_best, rank_key(v, p.begin + i * piece + j + k));
      }
  }
  const bool any_bad = block_max(int(bad), reinterpret_cast<int*>(shared.sums)) != 0;
  raw_best = block_max(raw_best, shared.keys);
  const int n_logprobs = min(params.n_logprobs, a.max_logprobs);
  double exp_sum = 0;
  if (n_logprobs >= 0 && !any_bad) {
    const float largest = key_value(raw_best);
    look(p, [&](const float (&v)[4], int, int n) {
      for (int j = 0; j < n; ++j) exp_sum += exp_nonpositive(__fsub_rn(v[j], largest));
    });
    exp_sum = block_sum(exp_sum, shared.sums);
    uint64_t candidate = n_logprobs > 0 ? best_below(p, ~uint64_t{0}) : 0;
    for (int i = 0; i < n_logprobs; ++i) {
      const uint64_t winner = block_max(candidate, shared.keys);
      if (threadIdx.x == 0) shared.top[i] = winner;
      if (candidate == winner && winner) candidate = best_below(p, winner);
    }
  }
  __syncthreads();

  edit(p, a, row, params);
  uint64_t best = 0;
  change(p, [&](float (&v)[4], int token, int n) {
    const uint32_t allowed = mask ? __ldg(mask + token / 32) >> token % 32 : ~0u;
    for (int j = 0; j < n; ++j) {
      if (!(allowed >> j & 1)) v[j] = -INFINITY;
      best = max(best, rank_key(v[j], token + j));
    }
  });
  best = block_max(best, shared.keys);
  if (threadIdx.x == 0) shared.summary = {any_bad ? 0 : raw_best, best, exp_sum};
  ptx::cluster_sync();

  // The same in all parts from here on, so all reach the same barriers.
  bool invalid = false;
  raw_best = 0, best = 0;
  const int used = (a.vocab + part_size - 1) / part_size;  // parts with tokens
  for (int r = 0; r < used; ++r) {
    const PartSummary& s = p.of(r).summary;
    invalid |= s.raw_best == 0;
    raw_best = max(raw_best, s.raw_best), best = max(best, s.best);
  }
  const float max_raw = key_value(raw_best), max_y = key_value(best);
  double log_total = 0;
  if (n_logprobs >= 0 && p.leads()) {
    for (int r = 0; r < used; ++r) log_total += p.of(r).summary.exp_sum * exp(double(key_value(p.of(r).summary.raw_best)) - max_raw);
    log_total = log(log_total) + max_raw;
  }
  invalid |= !(fabsf(max_raw) < INFINITY);
  const bool nothing = !invalid && max_y == -INFINITY;
  Token token = invalid ? kInvalidLogits : nothing ? kNothingAllowed : key_token(best);
  if (!invalid && !nothing && params.temperature != 0) {
    const float scale = __fdiv_rn(1.0f, params.temperature);
    change(p, [&](float (&v)[4], int, int n) {
      for (int j = 0; j < 4; ++j) v[j] = j < n ? exp_nonpositive(__fmul_rn(__fsub_rn(v[j], max_y), scale)) : 0.0f;
    });
    __syncthreads();
    const bool limits_count = params.top_k > 0 && params.top_k < a.vocab;
    Cutoff cutoff;
    double mass = -1;  // of what is kept; not known yet
    if (limits_count) cutoff = search(p, cutoff, 0.0f, params.top_k, INFINITY, &mass);
    if (params.top_p < 1) {
      float floor = 0;
      if (mass < 0) {
        double mine = 0;
        look(p, [&](const float (&v)[4], int, int n) {
          for (int j = 0; j < n; ++j) mine += v[j];
        });
        mine = block_sum(mine, shared.sums);
        if (threadIdx.x == 0) shared.weight_sum = mine;
        ptx::cluster_sync();
        mass = 0;
        for (int r = 0; r < used; ++r) mass += p.of(r).weight_sum;
        // All tokens below this weight together hold less than 1 - top_p.
        floor = float((1.0 - double(params.top_p)) * mass / a.vocab) * 0.999f;
      }
      double rest;
      cutoff = search(p, cutoff, floor, uint64_t(a.vocab), double(params.top_p) * mass, &rest);
    }
    // The most likely token weighs 1.
    if (__float_as_uint(params.min_p) > cutoff.weight) cutoff.weight = __float_as_uint(params.min_p), cutoff.token = INT32_MAX;
    if (cutoff.weight) {
      change(p, [&](float (&v)[4], int id, int n) {
        for (int j = 0; j < n; ++j)
          if (!cutoff.keeps(v[j], id + j)) v[j] = 0.0f;
      });
      __syncthreads();
    }
    token = draw(p, a.vocab, part_size, uniform_draw(params.seed, params.choice, position));
  }
  if (p.leads()) {
    if (threadIdx.x == 0) a.tokens[logit] = token;
    if (n_logprobs >= 0 && !invalid) {
      const int n = used * n_logprobs;
      for (int i = threadIdx.x; i < n; i += kThreads) shared.candidates[i] = p.of(i / n_logprobs).top[i % n_logprobs];
      __syncthreads();
      float* out = a.logprobs + int64_t(logit) * (1 + a.max_logprobs);
      if (threadIdx.x == 0 && token >= 0) out[0] = float(logits[token] - log_total);
      for (int i = threadIdx.x; i < n; i += kThreads) {
        const uint64_t key = shared.candidates[i];
        int place = 0;
        for (int j = 0; j < n; ++j) place += shared.candidates[j] > key;
        if (key && place < n_logprobs) {
          out[1 + place] = float(key_value(key) - log_total);
          a.logprob_tokens[int64_t(logit) * a.max_logprobs + place] = key_token(key);
        }
      }
    }
  }
  ptx::cluster_sync();  // the leader has read what it needs of the others
}

}  // namespace sampling

cudaError_t sample(const SampleArgs& args, const SampleLaunch& launch, cudaStream_t stream) {
  using namespace sampling;
  if (args.vocab < 1 || args.vocab > kSampleMaxVocab || args.stride < args.vocab || args.stride % 4 ||
      args.max_logprobs < 0 || args.max_logprobs > kSampleMaxLogprobs || launch.max_logits < 1 ||
      (launch.parts != 1 && launch.parts != 2 && launch.parts != 4 && launch.parts != 8))
    return cudaErrorInvalidValue;
  const int chunks = (args.vocab + kChunk - 1) / kChunk, part_size = (chunks + launch.parts - 1) / launch.parts * kChunk;
  const size_t bytes = (sizeof(Shared) + 127) / 128 * 128 + size_t(part_size) * 4;
  if (bytes > 227 * 1024) return cudaErrorInvalidConfiguration;
  if (cudaError_t error = cudaFuncSetAttribute(sample_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)); error != cudaSuccess) return error;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(launch.parts * launch.max_logits);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = launch.parts, attributes[0].val.clusterDim.y = 1, attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  config.attrs = attributes;
  config.numAttrs = launch.overlap ? 2 : 1;
  return cudaLaunchKernelEx(&config, sample_kernel, args, launch.parts, part_size);
}

}  // namespace sluice::cuda
