"""Writes docs/models.md from the files of `quire/models` and the cases of `tests/models` and `tests/pooling`.

    python tools/make_models_doc.py

A family is described by the first sentence of its file: what it is called, a colon, what it does differently. Nothing
is imported, so neither torch nor transformers is needed. A test compares the document with `render()`.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "models.md"
MODELS, TESTS = ROOT / "quire" / "models", (ROOT / "tests" / "models", ROOT / "tests" / "pooling")
TABLES = ("FAMILY", "EXPERTS", "HYBRIDS", "ENCODERS")
"""Names of the tables of tiny checkpoints, all of which run on two ranks."""
NO_FAMILIES = ("__init__", "toy")
OTHERS = {"OTHER_DECODERS": "Decoders", "OTHER_ENCODERS": "Encoders"}
"""Tables of tiny checkpoints that run through transformers."""

HEAD = """# Models

<!-- Made by tools/make_models_doc.py from quire/models and tests/models. Do not edit. -->

A checkpoint is served if its `config.json` names one of these model types. Each is one file in `quire/models/`, which
says only what the family does differently; [Add a model](add-a-model.md) tells how it is written.

*Features*: "TP" is tensor parallelism, "prefix" the prefix cache (layers with a window have it, too), "int8, int4" what
`--quantization` does to its matrices while they load. All have chunked prefill and overlapped steps. Rotary embeddings
may be stretched in every known way: linear, dynamic, ntk, llama3, yarn, longrope.

*Proof* counts the cases that are compared with transformers: tiny random checkpoints, a ragged batch of chunked
prompts, late arrivals, decoding and shared pages, with the reference kernels and with torch's: greedy tokens equal in
float32, logits within 1e-4. Encoders read a ragged batch of whole texts: states and scores within 1e-4. "TP 2": two
processes over gloo give the same as one.
"""


FOOT = """## Models without a file

What has no file here runs through the library transformers, if it is installed (`pip install "quire[transformers]"`):
`quire/models/transformers/` takes its modules, gives them our attention over pages and our products, and leaves
scheduling, prefix cache, loading and serving to the engine. `--model-impl quire` forbids that, `--model-impl
transformers` asks for it also where there is a file, such as to tell whose mistake it is.

Most models call the library's interface of attention: all texts of a step run side by side, with our attention. Models
with attention of their own (GPT-J, BLOOM, MPT, DeBERTa, MPNet, ...) read texts by themselves, those together that are
equally far and long: encoders as they are, decoders with the library's own cache lying in our pages. That is slower,
needs pages of full precision, and has chunks, preemption and prefix hits like all others.

Tensor parallelism needs no plan for the model: every linear module's outputs are cut over the ranks and gathered,
heads and their pages are cut at attention (whole on every rank where attention is the model's own), and whatever
happens in between is computed by every rank. Experts that are down(silu(gate) * up) without biases, which most are,
are computed by our op for mixtures, with its kernels and `--quantization`, each cut over the ranks; others are dealt
out among the ranks and not quantized. Embeddings, tied heads and other matrices are whole on every rank. Linear
modules are quantized, by the checkpoint or while they load; a checkpoint whose experts are quantized is refused.
Steps are recorded as graphs where attention is ours and nothing in the model's code waits for the GPU, which is tried
when the model is made. float32 is float32 in convolutions on GPUs, too, where torch alone takes TF32: that is set while
a step runs, and put back behind it.

When a model is made and again when its weights are there, it is asked what it does, and refused with the reason if
pages cannot serve it: recurrent state, which no two of its models keep alike; decoders without a cache of the
library's; positions counted within a batch, heads that need more than a state, rope that turns with the longest text
of a batch. Code that came with the checkpoint runs with `--trust-remote-code` only; `--hf-overrides` reach its
config, too.

Proven in the same way as families, with torch's kernels, on one rank (`tests/models/test_others.py`) and on two
(`tests/models/test_tensor_parallel.py`):
"""


def render() -> str:
    """The whole document."""
    cases, ranks = _cases(), set(_tables())
    rows = [_row(file, cases.get(file.stem, 0), file.stem in ranks) for file in families()]
    table = [
        "| model_type | checkpoints | what is different | tasks | features | proof |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
    others = [f"{kind}: {', '.join(f'`{name}`' for name in _keys(table))}." for table, kind in OTHERS.items()]
    return "\n".join([HEAD, *table, "", FOOT, *others, ""])


def families() -> list[Path]:
    """The files of the families."""
    return [file for file in sorted(MODELS.glob("*.py")) if file.stem not in NO_FAMILIES]


def unproven() -> list[str]:
    """Model types without a case against transformers or without a run on two ranks."""
    cases, ranks = _cases(), set(_tables())
    return [file.stem for file in families() if not cases.get(file.stem) or file.stem not in ranks]


def listed_twice() -> list[str]:
    """Model types that have a file and stand among those without one, too."""
    others = {name.replace("-", "_") for table in OTHERS for name in _keys(table)}
    return [file.stem for file in families() if file.stem in others]


def _row(file: Path, cases: int, ranks: bool) -> str:
    module = ast.parse(file.read_text(encoding="utf-8"))
    first = (ast.get_docstring(module) or "").split("\n\n")[0].replace("\n", " ")
    name, _, different = first.partition(": ")
    tasks = _tasks(module)
    proof = [f"{cases} case{'s' * (cases > 1)}"] if cases else []
    proof += ["TP 2"] if ranks else []
    cells = (
        f"[`{file.stem}`](../quire/models/{file.name})",
        name.rstrip("."),
        different.rstrip("."),
        ", ".join(tasks),
        ", ".join([*["TP"][:ranks], *["prefix"][: "generate" in tasks], "int8", "int4"]),
        ", ".join(proof),
    )
    return f"| {' | '.join(cells)} |"


def _tasks(module: ast.Module) -> list[str]:
    """What the file's `TASKS` says; without one it generates text."""
    for node in module.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "TASKS" for t in node.targets):
            return [str(task) for task in ast.literal_eval(node.value)]
    return ["generate"]


def _cases() -> dict[str, int]:
    """Model type to the number of its `Case(name, model_type, ...)` in the tests."""
    found: dict[str, int] = {}
    for node in _nodes("test_*.py"):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Case":
            family = node.args[1]
            if isinstance(family, ast.Constant):
                name = str(family.value).replace("-", "_")
                found[name] = found.get(name, 0) + 1
    return found


def _tables() -> Iterator[str]:
    """The model types that have a tiny checkpoint."""
    for table in TABLES:
        yield from (name.replace("-", "_") for name in _keys(table))


def _keys(table: str) -> list[str]:
    """The model types in a table of the tests."""
    for node in _nodes("*.py"):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == table:
            assert isinstance(node.value, ast.Dict)
            return [str(key.value) for key in node.value.keys if isinstance(key, ast.Constant)]
    raise KeyError(table)


def _nodes(pattern: str) -> Iterator[ast.AST]:
    for file in sorted(file for folder in TESTS for file in folder.glob(pattern)):
        yield from ast.walk(ast.parse(file.read_text(encoding="utf-8")))


if __name__ == "__main__":
    DOCUMENT.write_text(render(), encoding="utf-8")
    print(f"wrote {DOCUMENT}")
