#!/usr/bin/env bash
# Our steps and the best tuned peers' on the same card, one after the other (about 5 minutes).
# Usage: tests/bench/compare_peers.sh BENCH PEERS WHEELS [FILE.tok]
#   BENCH   switchyard-bench
#   PEERS   folder with driver.py and liger_prewarm.py
#   WHEELS  folder with the wheels that the machine lacks: nemo-automodel 0.7.0, liger-kernel 0.8.5,
#           cut-cross-entropy 25.1.1
#   FILE    packed chat rows (tests/gpu/gsm8k.py): real tokens per second, packed and padded
# SY_SECTIONS chooses parts: "ours liger automodel" (the default).
set -u
here=$(cd "$(dirname "$0")" && pwd)
bench=$1 peers=$2 wheels=$3 data=${4:-}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
for wheel in "$wheels"/*.whl; do python3 -m zipfile -e "$wheel" "$site"; done
export PYTHONPATH=$site PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false TRITON_CACHE_AUTOTUNING=1
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.max.sm --format=csv,noheader
run() { # seconds, command...
  local limit=$1 start=$SECONDS
  shift
  echo "## $*"
  timeout "$limit" "$@" 2>&1 | grep -E '^\{|^#|^ *mbs|^ *[0-9]|rror|WRONG' | cut -c1-420
  echo "# exit ${PIPESTATUS[0]}, $((SECONDS - start)) s"
}
for section in ${SY_SECTIONS:-ours liger automodel}; do
  case $section in
    ours)
      run 40 "$bench" step
      run 40 "$bench" step --layout exact
      run 30 "$bench" step --micro-batch 8 --activation-memory full_recompute
      run 30 "$bench" step --micro-batch 8 --activation-memory offload
      [ -n "$data" ] && run 30 "$bench" step --micro-batch 1,4,8 --data "$data"
      ;;
    liger)
      # Its Triton kernels compile for a minute when cold: in parallel, before the clock runs.
      for i in $(seq 0 13); do
        timeout 100 python3 "$peers/liger_prewarm.py" "$i" 14 >/dev/null 2>&1 &
      done
      wait
      echo "# liger is compiled after $SECONDS s"
      run 110 python3 "$here/peers.py" "$peers" liger ${data:+--data "$data"}
      ;;
    automodel)
      run 90 python3 "$here/peers.py" "$peers" automodel --micro-batch 8 ${data:+--data "$data"}
      ;;
  esac
done
