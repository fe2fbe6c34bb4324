// Who attends to what: the plan kernel and the attention kernels agree through these functions.
#pragma once

#include "ops/cuda/attention.h"
#include "ops/cuda/ptx.cuh"

namespace sluice::cuda {

// The KV blocks that one query sees, and their division into units.
struct KeyRange {
  int first_key, last_key;  // inclusive
  int first_block, n_blocks;
  int unit_blocks, n_units;
};
__device__ __forceinline__ KeyRange key_range(int position, int window, AttentionSplits splits) {
  KeyRange r;
  r.last_key = position;
  r.first_key = window > 0 ? max(0, position + 1 - window) : 0;
  r.first_block = r.first_key / kBlockTokens;
  r.n_blocks = r.last_key / kBlockTokens + 1 - r.first_block;
  r.unit_blocks = kAttentionUnitBlocks;
  if (splits == AttentionSplits::fixed) {
    r.unit_blocks = kAttentionFixedBlocks;
    while (r.unit_blocks * kAttentionMaxPieces < r.n_blocks) r.unit_blocks *= 2;
  }
  r.n_units = (r.n_blocks + r.unit_blocks - 1) / r.unit_blocks;
  return r;
}

// Units are numbered through (token, head group, unit); block b of the grid has those from start_of(b).
__device__ __forceinline__ int start_of(int block, int n_units, int n_blocks) {
  return int(int64_t(block) * n_units / n_blocks);
}
__device__ __forceinline__ int owner_of(int unit, int n_units, int n_blocks) {
  return int((int64_t(unit + 1) * n_blocks - 1) / n_units);
}

// Consecutive keys of one (token, head group) that one block works on.
struct Run {
  int token, head;            // head: group of query heads
  int first_block, n_blocks;  // KV blocks
  int first_key, last_key;    // the query's, inclusive
  int first_unit;             // number of the (token, head)'s first unit
  int slot, pieces, piece;    // of partial results; pieces 1: the run is all there is
};

// Walks a block's runs. All warps of the block do it, each for itself.
struct RunWalk {
  const AttentionStep& step;
  const AttentionPlan& plan;
  int window, n_groups;
  AttentionSplits splits;
  AttentionStart at;
  bool first = true;

  __device__ __forceinline__ RunWalk(const AttentionStep& step, const AttentionPlan& plan, int window, int n_groups, AttentionSplits splits)
      : step(step), plan(plan), window(window), n_groups(n_groups), splits(splits) {
    const bool works = int(blockIdx.x) < plan.n_blocks;
    at = works ? plan.starts[blockIdx.x] : AttentionStart{0, 0, 0, 0};
  }
  __device__ __forceinline__ bool next(Run& run) {
    if (at.n_units == 0) return false;
    const KeyRange r = key_range(step.positions[at.token], window, splits);
    const int units = splits == AttentionSplits::fixed ? 1 : min(at.n_units, r.n_units - at.unit);
    run.token = at.token, run.head = at.head;
    run.first_key = r.first_key, run.last_key = r.last_key;
    run.first_block = r.first_block + at.unit * r.unit_blocks;
    run.n_blocks = min(units * r.unit_blocks, r.n_blocks - at.unit * r.unit_blocks);
    run.first_unit = plan.before()[at.token] + at.head * r.n_units;
    if (splits == AttentionSplits::fixed) {
      run.pieces = r.n_units, run.piece = at.unit;
      run.slot = (at.token * n_groups + at.head) * kAttentionMaxPieces + at.unit;
    } else {
      const int begin = owner_of(run.first_unit, plan.n_units, plan.n_blocks);
      const int end = owner_of(run.first_unit + r.n_units - 1, plan.n_units, plan.n_blocks);
      run.pieces = end - begin + 1, run.piece = int(blockIdx.x) - begin;
      run.slot = 2 * blockIdx.x + (first ? 0 : 1);
    }
    first = false;
    at.n_units -= units, at.unit += units;
    if (at.unit == r.n_units) {
      at.unit = 0;
      if (++at.head == n_groups) at.head = 0, ++at.token;
    }
    return true;
  }
  // Where piece i of a run's (token, head) lies.
  __device__ __forceinline__ int slot_of(const Run& run, int i) const {
    if (splits == AttentionSplits::fixed) return run.slot - run.piece + i;
    const int begin = int(blockIdx.x) - run.piece;
    // The first piece is its block's last run, unless that block begins with it.
    if (i == 0) return 2 * begin + (start_of(begin, plan.n_units, plan.n_blocks) == run.first_unit ? 0 : 1);
    return 2 * (begin + i);
  }
};

}  // namespace sluice::cuda
