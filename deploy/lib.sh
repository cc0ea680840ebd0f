# Shared by the scripts in deploy/: messages, errors with advice, build. Sourced from the checkout's
# root; expects `set -euo pipefail`.

SY_BUILD_DIR=${SY_BUILD_DIR:-$PWD/build/release}
SY_DEPS_DIR=${SY_DEPS_DIR:-$PWD/build/deps}
mkdir -p "$PWD/build/logs" "$SY_DEPS_DIR"
SY_DEPS_DIR=$(cd "$SY_DEPS_DIR" && pwd)
export SY_BUILD_DIR SY_DEPS_DIR

say() { echo "[$(basename "$0")] $*"; }

# die WHAT ADVICE
die() {
  echo "[$(basename "$0")] error: $1" >&2
  echo "[$(basename "$0")] what to do: $2" >&2
  exit 1
}

log_file() { echo "$PWD/build/logs/$1.log"; }

# die_with_log NAME WHAT ADVICE: with the end of the step's log.
die_with_log() {
  tail -n 25 "$(log_file "$1")" >&2
  die "$2 (whole log: $(log_file "$1"))" "$3"
}

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo --preserve-env=DEBIAN_FRONTEND "$@"
  else
    die "'$*' needs root, and there is no sudo" "run it as root once, then run this script again"
  fi
}

# version_at_least HAVE WANT: compares dotted numbers; an empty HAVE is less than any.
version_at_least() { [ -n "$1" ] && [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# Whether an NVIDIA GPU is here (its driver, not its toolkit).
has_gpu() { [ -e /dev/nvidia0 ]; }

# build TARGET...: configures when needed and builds; the full output goes to build/logs.
build() {
  local start=$SECONDS jobs
  jobs=${SY_JOBS:-$(nproc)}
  # A compile takes up to 2 GB: fewer jobs where memory is short.
  local memory_jobs=$(($(awk '/MemAvailable/{print $2}' /proc/meminfo) / 2000000))
  [ "$jobs" -gt "$memory_jobs" ] && jobs=$((memory_jobs > 1 ? memory_jobs : 1))
  local cuda=OFF
  "$SY_DEPS_DIR"/venv/bin/python -c 'import cutlass_library' 2>/dev/null && cuda=ON
  say "building in $SY_BUILD_DIR ($jobs jobs, CUDA $cuda)"
  cmake -S . -B "$SY_BUILD_DIR" -G Ninja -DSY_DEPS_DIR="$SY_DEPS_DIR" -DSY_CUDA=$cuda ${SY_CMAKE_FLAGS:-} \
    >"$(log_file configure)" 2>&1 ||
    die_with_log configure "cmake could not configure" \
      "the message above names what was not found; deploy/setup installs it; after an upgrade remove $SY_BUILD_DIR"
  cmake --build "$SY_BUILD_DIR" -j "$jobs" --target "$@" >"$(log_file build)" 2>&1 &
  local pid=$!
  trap "kill $pid 2>/dev/null; exit 130" INT TERM
  while kill -0 $pid 2>/dev/null; do
    [ -t 1 ] && printf '\r[%s] %s ' "$(basename "$0")" "$(grep -o '^\[[0-9]*/[0-9]*\]' "$(log_file build)" | tail -n 1)"
    sleep 1
  done
  [ -t 1 ] && echo
  trap - INT TERM
  wait $pid || {
    grep -m 3 -A 12 '^FAILED:' "$(log_file build)" >&2 || true
    die_with_log build "the build failed" "see the first 'FAILED:' in the log"
  }
  say "built in $((SECONDS - start)) s"
}
