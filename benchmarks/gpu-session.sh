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
if command -v compute-sanitizer >/dev/null; then
    # A few: under the sanitizer every access takes a thousand times as long.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 1 \
        python3 -m pytest -m gpu tests/gpu/test_attention.py tests/gpu/test_moe.py -q -k "96 or routing" 2>&1 | tee "$out/memcheck.log"
fi
python3 benchmarks/sampling.py check 2>&1 | tee "$out/sampling.log"
python3 benchmarks/attention.py check time 2>&1 | tee "$out/attention.log"
python3 benchmarks/dense.py chain 2>&1 | tee "$out/dense.log"
python3 benchmarks/loading.py --ledger "$out/loading.jsonl" 2>&1 | tee "$out/loading.log"
python3 benchmarks/gpu.py --budget-s "$budget" --repeat 2 --profile --ledger "$out/gpu.jsonl" 2>&1 | tee "$out/gpu.log"
python3 benchmarks/gpu.py --models qwen3-0.6b,llama-8b --workloads mixed --set kv_cache_dtype=fp8 --steps \
    --budget-s "$budget" --ledger "$out/gpu.jsonl" 2>&1 | tee "$out/gpu-fp8.log"
