#!/usr/bin/env bash
# All that a GPU is needed for, in parts; figures and logs go to OUT, each as soon as it is known.
#   benchmarks/gpu-session.sh OUT [SECONDS [PART...]]       SECONDS in all, for parts that can be cut short [3600]
# table     every cell of the table: three models, 8-bit pages, loading; those most worth knowing first; 450 s on an H200
# tests     the tests that need a GPU, several at a time; then those that watch its memory, alone
# memcheck  attention and experts under compute-sanitizer
# kernels   sampling, attention and products, checked and timed
# soak      an engine kept full, as long as there is time, ten minutes at most; only where it is asked for
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:?folder for what is found} deadline=$((SECONDS + ${2:-3600}))
parts=("${@:3}")
[ ${#parts[@]} -gt 0 ] || parts=(table tests memcheck kernels)
export PYTHONPATH=${PYTHONPATH:+$PYTHONPATH:}$PWD PYTHONUNBUFFERED=1
mkdir -p "$out"
failed=()

logged() { # FILE COMMAND...: run it, keep what it says, remember if it fails
    local file=$1
    shift
    echo "== $SECONDS s: $*" | tee -a "$out/$file.log"
    "$@" 2>&1 | tee -a "$out/$file.log" || failed+=("$*")
}

gpu() { # ARGUMENTS of gpu.py, within the time that is left
    local left=$((deadline - SECONDS))
    [ $left -lt 20 ] && echo "no time left for $*" && return
    logged gpu timeout $((left + 5)) python3 benchmarks/gpu.py --ledger "$out/gpu.jsonl" --budget-s $left "$@"
}

table() {
    gpu --models qwen3-0.6b --repeat 2
    gpu --models qwen3-0.6b --workloads mixed --repeat 1 --set kv_cache_dtype=fp8
    gpu --models qwen3-30b-a3b --repeat 1
    gpu --models llama-8b --repeat 1
    gpu --models llama-8b --workloads mixed --repeat 1 --set kv_cache_dtype=fp8
    [ $((deadline - SECONDS)) -gt 40 ] && logged gpu python3 benchmarks/loading.py --runs 2 --ledger "$out/gpu.jsonl"
}

tests() {
    local alone=(
        tests/gpu/test_restart.py "tests/gpu/test_compiled.py::test_memory_is_enough_with_every_row_and_page_in_use"
        tests/gpu/test_smoke.py::test_pages_are_sized_from_measured_memory_and_given_back
    )
    local many=()
    python3 -c 'import xdist' 2>/dev/null && many=(-n 10)
    logged tests python3 -m pytest -q -m gpu -p no:benchmark "${many[@]}" tests/gpu "${alone[@]/#/--deselect=}"
    logged tests python3 -m pytest -q -m gpu -p no:benchmark "${alone[@]}"
}

memcheck() {
    # One case of each kernel, whose code the tests have left in the cache: an access takes a thousand times as long.
    local every=(
        "tests/gpu/test_attention.py::test_providers_equal_the_reference[triton-(4, 2, 96)-window-bfloat16-16]"
        "tests/gpu/test_attention.py::test_providers_equal_the_reference[triton-(16, 8, 128)-plain-bfloat16-64]"
        "tests/gpu/test_narrow.py::test_attention_equals_the_reference[triton-(8, 8, 80)-window-bfloat16-float8_e4m3fn]"
        "tests/gpu/test_shared_pages.py::test_equals_the_reference[(16, 8, 128)-plain-bfloat16-64]"
        "tests/gpu/test_moe.py::test_routing_is_exact" "tests/gpu/test_moe.py::test_a_row_depends_on_itself_alone"
        "tests/gpu/test_stored_moe.py::test_a_row_depends_on_itself_alone"
    )
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 logged memcheck compute-sanitizer --tool memcheck --error-exitcode 1 \
        python3 -m pytest -m gpu -q "${every[@]}"
}

kernels() {
    logged kernels python3 benchmarks/sampling.py check
    logged kernels python3 benchmarks/attention.py check time
    logged kernels python3 benchmarks/dense.py chain
}

soak() {
    local left=$((deadline - SECONDS - 60))
    [ $left -lt 60 ] && echo "no time left to soak" && return
    [ $left -gt 600 ] && left=600
    logged soak timeout $((left + 90)) python3 benchmarks/gpu_soak.py --minutes "$((left / 60)).$((left % 60 * 10 / 60))" \
        --ledger "$out/gpu_soak.jsonl"
}

nvidia-smi -L
for part in "${parts[@]}"; do
    "$part"
done
[ ${#failed[@]} -eq 0 ] && exit
printf 'failed: %s\n' "${failed[@]}"
exit 1
