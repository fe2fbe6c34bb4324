#!/bin/bash
# Builds the CUDA operations, their tests and their benchmarks with nvcc alone (13.0 or later):
#   [JOBS=n] [ARCH=90a] bench/gpu/build.sh [output folder, default native/build-cuda]
# The programs need nothing but a driver. One file at a time unless JOBS says otherwise (each takes up to 2 GB).
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-native/build-cuda}
arch=${ARCH:-90a}
flags="-gencode=arch=compute_$arch,code=sm_$arch -O3 -std=c++20 --expt-relaxed-constexpr -cudart static -Inative/src -Inative/include -Inative/tests/cuda -Ibench/gpu"
mkdir -p "$out"
# One line a file that is older than itself or any header of ours: source, object.
pending() {
  for source in native/src/ops/cuda/*.c[uc] native/src/sample/*.cc native/tests/cuda/test_*.cu bench/gpu/*.cu; do
    object=$out/$(basename "${source%.*}").o
    newer=$(find "$source" native/src/ops bench/gpu native/tests/cuda \( -path "$source" -o -name '*.h' -o -name '*.cuh' \) -newer "$object" -print -quit 2>/dev/null || true)
    [[ -e $object && -z $newer ]] || echo "$source $object"
  done
}
pending | xargs -r -L 1 -P "${JOBS:-1}" sh -c 'echo "$1"; exec nvcc '"$flags"' -c "$1" -o "$2"' sh
rm -f "$out/libsluice_cuda_ops.a"
objects=()
for source in native/src/ops/cuda/*.c[uc] native/src/sample/*.cc; do objects+=("$out/$(basename "${source%.*}").o"); done
ar rcs "$out/libsluice_cuda_ops.a" "${objects[@]}"
for source in native/tests/cuda/test_*.cu bench/gpu/*.cu; do
  name=$(basename "${source%.*}")
  nvcc $flags "$out/$name.o" "$out/libsluice_cuda_ops.a" -o "$out/$name"
done
