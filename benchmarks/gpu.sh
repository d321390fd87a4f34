#!/usr/bin/env bash
# Everything that is to be known of uftlab on a GPU, in nine minutes: is it right, how fast is it, the paper's grid, the
# study of sixteen seeds, and a real model if its files are there.
#
#   OUT=build/gpu bash benchmarks/gpu.sh              on a machine with a GPU
#   OUT=build/gpu bash benchmarks/gpu.sh --dry-run    the same parts and files, small, on a CPU; never to be published
#   bash benchmarks/gpu.sh --parts "right fast"       some of the parts
#   UFTLAB_REAL_MODEL=dir UFTLAB_REAL_DATA=dir ...    the real model, and demonstrations.jsonl, feedback.jsonl
#
# Each part has its own time limit and its own file, so a fault in one loses no other. Needs the packages that training
# needs (torch, transformers, datasets, peft, pydantic, platformdirs), no Jupyter, no plots and no network.
# `python benchmarks/gpu_results.py build/gpu` turns the files into results.
set -u
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
export CUBLAS_WORKSPACE_CONFIG=:4096:8  # what torch asks for where it is to be deterministic
OUT=${OUT:-build/gpu}
PYTHON=${PYTHON:-python3}
dry="" parts="right fast grid study real"
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=--dry-run ;;
    --parts) parts=$2; shift ;;
    *) sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 2 ;;
  esac
  shift
done
limit() { case $1 in right) echo 90 ;; fast) echo 180 ;; grid) echo 60 ;; study) echo 120 ;; *) echo 90 ;; esac; }

mkdir -p "$OUT"
failed=0
for part in $parts; do
  started=$(date +%s)
  timeout "$(limit "$part")" "$PYTHON" benchmarks/gpu.py "$part" --out "$OUT" $dry 2>&1 | tee -a "$OUT/log.txt"
  code=${PIPESTATUS[0]}
  [ "$code" = 0 ] || failed=1
  echo "== $part: exit $code after $(($(date +%s) - started)) s" | tee -a "$OUT/log.txt"
done
exit $failed
