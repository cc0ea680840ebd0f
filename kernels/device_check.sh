#!/usr/bin/env bash
# Builds the kernels, runs their tests, then the benchmarks; the tables come last. For a machine with one
# H100, nvcc 13 and CMake. Usage: kernels/device_check.sh [build folder] [name ...]: names choose
# kernels, all by default.
#   SY_CUTLASS_DIR  CUTLASS headers (default .bundle/cutlass)
#   SY_GTEST_DIR    GoogleTest sources, built here when the machine has no package (default .bundle/googletest)
#   SY_SANITIZER=1  also runs the tests under compute-sanitizer memcheck
set -uo pipefail
cd "$(dirname "$0")/.."
build=${1:-/tmp/kernels_build}
shift || true
jobs=$(nproc)
cutlass=${SY_CUTLASS_DIR:-$PWD/.bundle/cutlass}
gtest=${SY_GTEST_DIR:-$PWD/.bundle/googletest}
prefix=$build/gtest
if [[ -d $gtest && ! -d $prefix/lib ]]; then
  cmake -S "$gtest" -B "$build/gtest_build" -DCMAKE_BUILD_TYPE=Release -DBUILD_GMOCK=OFF \
    -DCMAKE_INSTALL_PREFIX="$prefix" -DCMAKE_INSTALL_LIBDIR=lib >/dev/null &&
    cmake --build "$build/gtest_build" -j "$jobs" --target install >/dev/null || exit 1
fi
cmake -S kernels -B "$build" -DCMAKE_CUDA_FLAGS="-Xptxas -v" -DSY_CUTLASS_DIR="$cutlass" -DCMAKE_PREFIX_PATH="$prefix" >"$build.log" 2>&1 ||
  { cat "$build.log"; exit 1; }
cmake --build "$build" -j "$jobs" -- -k >>"$build.log" 2>&1
built=$?
grep -E 'error|warning|C75[0-9]+|[1-9][0-9]* bytes spill' "$build.log" | head -40
status=$built
names=("$@")
wanted() {
  [[ ${#names[@]} -eq 0 ]] && return 0
  local name
  for name in "${names[@]}"; do [[ $1 == *"$name"* ]] && return 0; done
  return 1
}
for test in "$build"/kernels_*_test; do
  wanted "$test" || continue
  timeout 120 "$test" --gtest_brief=1 2>&1 | tail -40
  code=${PIPESTATUS[0]}
  echo "$(basename "$test"): exit $code"
  [[ $code -eq 0 ]] || status=1
  if [[ ${SY_SANITIZER:-0} == 1 ]]; then
    timeout 240 compute-sanitizer --tool memcheck "$test" --gtest_brief=1 2>&1 | tail -5
  fi
done
timeout 300 "$build/kernels_bench" "${names[@]}" || status=1
exit $status
