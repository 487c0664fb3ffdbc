"""Writes docs/quantization.md: what quantized weights are accepted, and what computes with them on which device.

    python tools/make_quantization_docs.py

The tables come from the files of `quire/quantization/formats`, from the providers' own refusals and from what
`tools/measure_quantization.py` measured; a test compares the document with `render()`.
"""

import importlib
import json
import pkgutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from quire.checkpoint.gguf_families import FAMILIES
from quire.ops.stored import StoredSpec, WeightSpec, arranged, offered, stored_linear
from quire.platforms import native
from quire.quantization import formats
from quire.quantization.checkpoint import ONLINE
from quire.quantization.scaled import Form, Scaled
from quire.quantization.storage import Storage

DOCUMENT = Path(__file__).parent.parent / "docs" / "quantization.md"
LEDGER = Path(__file__).parent.parent / "benchmarks" / "ledger" / "quantization.json"
PROVIDERS = ("cpu", "torch_native", "triton")
"""Those that the table speaks of; --deterministic has more."""
DEVICES = {"CPU": "cpu", "NVIDIA": "cuda:0", "AMD": "cuda:0", "Intel GPU": "xpu:0"}

HEAD = """# Quantized weights

<!-- Made by tools/make_quantization_docs.py. Do not edit. -->

A quantized checkpoint is loaded as it is: nothing need be said. Its tensors are believed before its metadata: a module
is quantized if it has scales or packed values, whatever config.json lists. What the metadata calls quantized and the
files have in full precision is quantized while it is read, and a warning says so. Tensors that no format explains are
named in an error. Weights stay packed in memory, on every device; where no kernel reads a form, a product turns tiles
of a few million values back at a time, so every format runs everywhere, also with `--kernels reference`.

All formats become one form (`quire/quantization/scaled.py`): codes of a small type, scales of groups of inputs or
blocks of rows, and where a format has them zero points, a factor for each row, an order of columns, a number for each
column. Parts of a fused matrix that differ are stored side by side. Each rank reads its share; where a rank's rows cut
blocks of scales, every row gets its own. Two ranks hold what one does, also of weights that are quantized while they
load: for scales of whole rows each reads them whole. Only groups that ranks cut get other scales there.

Names of tensors may be those of a language model within a larger one; the other parts are left out. Metadata then
lists modules by their names in the whole. Stacks of experts (Llama 4) may be taken apart, a matrix for each.

One GGUF file is enough to start, of the architectures that `quire/checkpoint/gguf_families.py` lists:
{families}.
Of a file that was split (`-00001-of-00003.gguf`) name the first part; the others lie beside it.
Texts are cut as the file's `tokenizer.ggml.pre` says; one that is not known is refused, as i-quants are, by name. An
answer ends with the tokens that the file names (`eos`, `eot`, `eom`) and with those of its own whose text says so.

With `--kv-cache-dtype fp8`, scales of keys and values that the checkpoint brings (`k_scale`, `v_scale`, wherever
exporters put them) are used; wide pages need none.

Static scales of activations (`input_scale`) are accepted and not used. Where activations are rounded to 8 bits they get
a scale for each token, or each group of values (on GPUs 128, on CPUs as many as share one of the weights'); elsewhere
(one row on a GPU, other cards) they are not rounded at all.
Engines that use static scales give other logits, by what rounding activations costs. Ours lose no more: a token's own
scale is never larger than a static one that covers it, and cuts off nothing that a calibration has not seen. Nor does
it cost a pass, since rounding reads each row anyway.

## Formats of checkpoints

| format | `quant_method` (the first, or vLLM's name, also for `--quantization`) | what it holds |
|---|---|---|
"""
ONLINE_HEAD = """
## While they load

`--quantization NAME` quantizes weights of full precision while they stream in; heads keep 8 bits. At its peak this
takes what is left of the weights and no more than one shard (`tests/quantization/test_memory.py` measures it). Bits are
those of 4,096 inputs, scales included.

| name | values | scales | bits a weight |
|---|---|---|---|
| `int8` | int8 | float32, one a row | 8.01 |
| `int4` | int4 | float32, one per 128 inputs | 4.25 |
"""
FORMS = {
    "int8, a scale a row": Form("int8", None),
    "int8, groups of 16 to 256 (q8_0)": Form("int8", 32, "float16"),
    "int4, groups of 16 to 256 (q4_0)": Form("uint4b8", 128),
    "int4 with zero points": Form("uint4", 128, "float16", zeros=True),
    "int4 with shifts (q4_k, torchao's Int4Tensor)": Form("uint4", 32, shifted=True),
    "int4 in order of activation": Form("uint4b8", 128, "float16", ordered=True),
    "int2, int3, int5 to int7": Form("uint3b4", 128, "float16"),
    "fp8, a scale a row or matrix": Form("fp8_e4m3", None),
    "fp8, blocks of 128 x 128": Form("fp8_e4m3", 128, row_block=128),
    "nvfp4": ONLINE["nvfp4"],
    "mxfp4": ONLINE["mxfp4"],
    "mxfp8": Form("fp8_e4m3", 32, "e8m0"),
    "nf4": Form("nf4", 64),
}
TABLE = """
## What computes

The provider that serves products with each form, of those that this version has; *values* is the reference, which
turns tiles back into values first.

| form | {devices} |
|---|{rules}|
"""
GPUS = """
On GPUs, Triton's kernels (`quire/kernels/triton/dense/quantized`) read one order of codes, words of 16 bits whose
parts belong to inputs 32 apart (`quire/quantization/words.py`), which weights are brought into as they are loaded.
One row is a kernel that streams weights; inputs in an order of activation are put in that order first. Of more rows,
fp8 with a scale a row meets activations rounded to fp8, one scale a token, in cuBLAS, and in blocks of 128 x 128
(Hopper, CUDA 12.9) activations with one for 128 inputs; other forms keep their values on the matrix units up to 128
rows. Above, int8 meets activations rounded to int8, and all others become values once for all rows, some rows of
weights at a time. Rows of inputs end with a whole run of 128 (4 bits) or 64 (8 bits); those that would grow by more
than an eighth are left to the reference.

Experts in the same forms are multiplied by one kernel (`quire/kernels/triton/moe/stored.py`), whatever their gate,
biases and choice: tokens are sorted by expert, and weights become values on their way to the matrix units.

Codes of types that kernels do not read are stored as those of one that has the same values (int2 and int3 as 4 bits,
int5 to int7 and fp6 as 8), and take the memory of that: on GPUs int3 in groups of 128 is 0.258 of bfloat16, as int4 is.
nf4 and bitsandbytes' fp4 are looked up in a register, for 8 instructions a weight of one row
where int4 takes 2; not where activations are float32, since what is looked up is float16.

ggml's k-quants, q4_1 and q5_1 become codes with a float32 scale, and a shift, for 16 or 32 inputs as they are loaded on
GPUs: the same values to the bit, in 6 bits a weight where the file has 3.4 (q3_k), 4.5 (q4_k) or 5 (q4_1), and in 10
where it has 5.5 to 6.6; the log says how many bytes became how many. Tables that are only looked up stay as they are.
What shifts add is a product of its own, of each group's sum of activations. Activations are multiplied with the numbers
of AWQ's columns (`pre_quant_scale`) beforehand.

On CPUs kernels of our own (`quire/kernels/cpu/groups.py`) read codes of 4, 6 and 8 bits in groups of 16 to 256 inputs,
each with a scale and, where a format has them, a shift or a zero point; experts, too. k-quants keep ggml's scales of a
few bits beside a unit for 256 inputs, so they take 4.6 bits a weight (q3_k, q4_k), 5.1 (q2_k) or 6.6 (q5_k, q6_k).
Types of 32 values take 4.5 (q4_0), 5 (q4_1), 6.5 (q5_0), 7 (q5_1) and 8.5 (q8_0), GPTQ and AWQ in groups of 128 4.1 to
4.5. Integers of 2 and 3 bits take 4, of 5 6, of 7 8. Activations are rounded to 8 bits, with a scale for each group.

What no kernel reads becomes values by tiles in every product, also in recorded steps, so that every token is as dear as
reading the weights several times: what ranks cut in the middle of a group or block, or in an order of activation. On
GPUs q2_k, and experts with shifts, numbers of columns or an order of activation, which cannot be recorded, either. On
CPUs floats of 4 to 8 bits, nf4, orders of activation, numbers of columns, and zero points beside float32 scales.

One H200, Llama 3.1 8B's shape, random weights, tokens a second (`benchmarks/ledger/gpu.jsonl`, the kernels alone by
`benchmarks/quantized.py`); vLLM's were reported to us for the same kind of card, no log of theirs is here:

| | decode-1 | decode-64 | prefill | mixed |
|---|---|---|---|---|
| bfloat16 | 245 | 4,884 | 43,202 | 10,218 |
| `--quantization fp8` | 421 | 6,494 | 73,240 | 14,862 |
| `--quantization int4` | 504 | | | |
| `--quantization nvfp4` | 435 | | | |
| a checkpoint of GPTQ (groups of 128, head in bfloat16) | 572 | | | |
| a checkpoint of AWQ (groups of 128, zero points, head in bfloat16) | 557 | | | |
| a checkpoint of NVFP4 (head in bfloat16) | 416 | | | |
| vLLM 0.24, fp8 | 285 | 6,417 | 66,600 | 13,817 |

The experts of one layer of Qwen3-30B-A3B on an H200, choice and sum included, microseconds by tokens; mxfp4 is one of
gpt-oss-20b (`benchmarks/ledger/moe.jsonl`, `benchmarks/quantized_experts.py`):

| | 1 | 16 | 64 | 512 | 4,096 |
|---|---|---|---|---|---|
| bfloat16 | 24 | 193 | 297 | 326 | 660 |
| int4 | 27 | 98 | 141 | 213 | 906 |
| nvfp4 | 32 | 113 | 161 | 274 | 994 |
| fp8 | 28 | 115 | 162 | 228 | 869 |
| mxfp4 | 72 | 218 | 258 | 646 | 2,566 |
"""
LOST = """
## What is lost

Perplexity of the shipped model on a text that it was not trained on, and the bytes that its parameters have allocated,
beside those of bfloat16: of the layers' matrices, and of the whole model, whose head keeps 8 bits
(`tools/measure_quantization.py`, on a CPU). Values are rounded to the nearest; checkpoints that were calibrated lose
less. The model is small, so a row's own factor or scale counts more than in large ones: with rows of 4,096 inputs nvfp4
takes 0.282 of bfloat16.

| form | perplexity | lost | matrices / bfloat16 | model / bfloat16 |
|---|---|---|---|---|
"""
PLOT = """
![Perplexity lost over bits a weight](images/quantization.png)
"""


def render() -> str:
    """The document."""
    for name in PROVIDERS:
        importlib.import_module(f"quire.kernels.{name}")
    families = textwrap.fill(", ".join(f"`{name}`" for name in FAMILIES), 119)
    rows = map(_format_row, sorted(module.name for module in pkgutil.iter_modules(formats.__path__)))
    text = HEAD.replace("{families}", families) + "".join(rows)
    text += ONLINE_HEAD
    for name, form in ONLINE.items():
        bits = Scaled.of(4096, 4096, form, "bfloat16", "cpu").nbytes * 8 / 4096**2
        scales = f"{form.scale}, one {'a row' if form.group is None else f'per {form.group} inputs'}"
        factor = ", a factor a row" if form.factor else ""
        text += f"| `{name}` | {form.element} | {scales}{factor} | {bits:.2f} |\n"
    text += TABLE.format(devices=" | ".join(DEVICES), rules="|".join("---" for _ in DEVICES))
    for title, form in FORMS.items():
        cells = (_served(form, name, device) for name, device in DEVICES.items())
        text += f"| {title} | {' | '.join(cells)} |\n"
    return text + GPUS + LOST + "".join(_lost_rows()) + PLOT


def _lost_rows() -> Iterator[str]:
    rows = json.loads(LEDGER.read_text(encoding="utf-8"))
    for row in rows:
        lost = row["perplexity"] / rows[0]["perplexity"] - 1
        yield (
            f"| {row['title']} | {row['perplexity']:.2f} | {100 * lost:+.2f} % | {row['quantized'] / 2:.3f} "
            f"| {row['model'] / 2:.3f} |\n"
        )


def _format_row(name: str) -> str:
    module = importlib.import_module(f"{formats.__name__}.{name}")
    first = str(module.__doc__).split("\n\n")[0].replace("\n", " ")
    return f"| {name} | {', '.join(f'`{method}`' for method in module.METHODS)} | {first} |\n"


def _served(form: Form, name: str, device: str) -> str:
    found = []
    whole = Scaled.of(256, 512, form, "bfloat16", device)
    for provider in (stored_linear.providers[known] for known in PROVIDERS if known in stored_linear.providers):
        if (provider.name == "cpu") != (name == "CPU"):
            continue
        storage = arranged(whole, [provider.name]) or _packed(provider.name, form, device) or whole
        if provider.refuses(StoredSpec(storage, dtype="bfloat16", device=device)) is None:
            found.append(provider.name)
    return ", ".join(found) or "values"


def _packed(provider: str, form: Form, device: str) -> Storage | None:
    """A provider's own packing of a form that it can hold exactly."""
    if form != Form("int8", None):
        return None
    return offered(WeightSpec(256, 512, 8, 128, "bfloat16", device), [provider])


if __name__ == "__main__":
    if not native.is_built():
        sys.exit(
            "the tables name the compiled CPU kernels: install a C++ compiler, then python setup.py build_ext --inplace"
        )
    DOCUMENT.write_text(render(), encoding="utf-8")
    print(f"wrote {DOCUMENT}")
