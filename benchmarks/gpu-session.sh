#!/usr/bin/env bash
# All that a GPU is needed for, in one go: checks first, then the kernels, then the table. Stops at the first failed check.
#   benchmarks/gpu-session.sh [OUT [SECONDS_FOR_THE_TABLE]]      logs and figures go to OUT (default: benchmarks/ledger)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:-benchmarks/ledger} budget=${2:-240}
export PYTHONPATH=${PYTHONPATH:+$PYTHONPATH:}$PWD
mkdir -p "$out"
nvidia-smi -L
python3 -m pytest -m gpu tests -q 2>&1 | tee "$out/gpu-tests.log"
python3 benchmarks/attention.py check time 2>&1 | tee "$out/attention.log"
python3 benchmarks/dense.py chain 2>&1 | tee "$out/dense.log"
python3 benchmarks/gpu.py --budget-s "$budget" --repeat 2 --profile --ledger "$out/gpu.jsonl" 2>&1 | tee "$out/gpu.log"
