"""Measures what the shipped model loses in every form of quantized weights, and what memory they take.

    python tools/measure_quantization.py

Perplexity is that of the tests' held-out text; memory is what parameters have allocated. Writes
benchmarks/ledger/quantization.json, of which tools/make_quantization_docs.py makes a table, and
docs/images/quantization.png.
"""

import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import quire
from quire.loading.recipe import Weight
from quire.quantization.checkpoint import ONLINE
from quire.quantization.scaled import Form

ROOT = Path(__file__).parent.parent
TEXT = ROOT / "tests" / "quantization" / "held_out.txt"
LEDGER = ROOT / "benchmarks" / "ledger" / "quantization.json"
PLOT = ROOT / "docs" / "images" / "quantization.png"
TOKENS, CHUNK = 1200, 400
PLACEHOLDER = "mxfp4"
"""The name that forms without one of their own are asked for by."""

FORMS = {
    "full precision (float32)": None,
    "int8": "int8",
    "int8, groups of 128 (W8A16)": Form("uint8b128", 128, "float16"),
    "q8_0": Form("int8", 32, "float16"),
    "fp8": "fp8",
    "mxfp8": Form("fp8_e4m3", 32, "e8m0"),
    "q5_0": Form("uint5b16", 32, "float16"),
    "int4, groups of 128": "int4",
    "int4, groups of 32 (W4A16)": Form("uint4b8", 32, "float32"),
    "q4_0": Form("uint4b8", 32, "float16"),
    "nf4": Form("nf4", 64),
    "nvfp4": "nvfp4",
    "mxfp4": "mxfp4",
    "int3, groups of 128 (GPTQ's)": Form("uint3b4", 128, "float16"),
}
"""Titles to what matrices become: a name of `--quantization`, or a form that checkpoints have."""


@dataclass(frozen=True)
class Row:
    """What was measured.

    Attributes:
        quantized: bytes of the matrices of layers, per value.
        model: bytes of all parameters, per value.
    """

    title: str
    perplexity: float
    quantized: float
    model: float


def measure(title: str, kind: str | Form | None) -> Row:
    """Load the shipped model so, and read the text with it."""
    form = {PLACEHOLDER: kind} if isinstance(kind, Form) else {}
    name = PLACEHOLDER if isinstance(kind, Form) else kind
    settings = {"device": "cpu", "dtype": "float32", "max_model_len": 512, "log_level": "error"}
    with (
        mock.patch.dict(ONLINE, form),
        quire.LLM("default", quantization=name, kv_cache_memory_bytes=1 << 25, **settings) as llm,
    ):
        parameters = list(llm._core.executor.runner.loaded.model.parameters())
        matrices = [p for p in parameters if p.dim() == 2 or p.stored is not None]
        inner = [p for p in matrices if "layers" in p.recipe.parts[0].name]
        sizes = (bytes_of(share) / values_of(share) for share in (inner, parameters))
        return Row(title, perplexity(llm), *sizes)


def bytes_of(parameters: list[Weight]) -> int:
    """What they have allocated."""
    return sum(p.untyped_storage().nbytes() for p in parameters)


def values_of(parameters: list[Weight]) -> int:
    """How many values they stand for."""
    return sum(p.numel() if p.stored is None else p.stored.outputs * p.stored.inputs for p in parameters)


def perplexity(llm: quire.LLM) -> float:
    """Of the held-out text, read in chunks that begin without a past."""
    ids = llm.get_tokenizer().encode(TEXT.read_text())[:TOKENS]
    params = quire.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    lost = []
    for begin in range(0, len(ids), CHUNK):
        chunk = ids[begin : begin + CHUNK]
        (output,) = llm.generate([{"prompt_token_ids": chunk}], params, use_tqdm=False)
        pairs = list(zip(chunk, output.prompt_logprobs or [], strict=True))[1:]
        lost += [-entry[token].logprob for token, entry in pairs if entry is not None]
    return math.exp(sum(lost) / len(lost))


def plot(rows: list[Row]) -> None:
    """Perplexity over the memory of the quantized matrices."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for row, marker in zip(rows[1:], "ov^<>sPpXDd*h", strict=True):
        axes.plot(row.quantized * 8, 100 * (row.perplexity / rows[0].perplexity - 1), marker, label=row.title)
    for bound, bits in ((1, "8-bit"), (6, "4-bit")):
        axes.axhline(bound, color="tab:red", linewidth=0.8, linestyle="--")
        axes.annotate(f"bound of {bits} formats", (6.5, bound), color="tab:red", fontsize=8, va="bottom", ha="center")
    axes.set(xlabel="bits a weight, scales included", ylabel="perplexity lost, %", xlim=(2.5, 11), ylim=(-0.4, 14))
    axes.set_yscale("symlog", linthresh=1)
    axes.legend(fontsize=8, loc="upper right", bbox_to_anchor=(1, 0.82))
    figure.savefig(PLOT, dpi=120)


def main() -> int:
    """Measure all forms."""
    rows = []
    for title, kind in FORMS.items():
        rows.append(measure(title, kind))
        print(rows[-1], flush=True)
    LEDGER.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    plot(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
