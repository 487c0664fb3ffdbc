"""What a checkpoint gives instead of text: vectors, scores of labels; and how tokens become one vector.

Reads the architecture of config.json and the files of sentence-transformers (`modules.json`, `1_Pooling/config.json`,
`config_sentence_transformers.json`, `sentence_bert_config.json`). Knows no tensor.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from quire.base.errors import CheckpointError, RequestError
from quire.checkpoint.headers import read_headers

T = TypeVar("T", bound=msgspec.Struct)

Runner = Literal["auto", "generate", "pooling"]
Method = Literal["cls", "last", "mean"]
Head = Literal["none", "sequence", "token", "reward"]
Activation = Literal["none", "sigmoid", "softmax"]

ENCODERS = frozenset({
    "bert", "camembert", "gte", "modernbert", "nomic_bert", "roberta", "xlm-roberta",
    # Through transformers:
    "albert", "data2vec-text", "distilbert", "electra", "ernie", "eurobert", "roberta-prelayernorm",
    "xlm-roberta-xl", "xmod",
})  # fmt: skip
"""Model types whose attention looks both ways: they read a text as a whole and generate none."""
OFFSET = frozenset({
    "camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
})  # fmt: skip
"""Those whose positions count from the padding token's id on."""

MODES: dict[str, Method] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
NAMES: dict[str, Method] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
COLBERT = ("HF_ColBERT", "ColBERT")
"""Architectures of checkpoints whose texts are compared token by token."""
MODULES = ("Transformer", "Pooling", "Normalize", "Dense")
Frame = tuple[str, str, str, str]
"""What stands before two texts that are read at once, right before the first, between them, and behind."""
QWEN3_FRAME: Frame = (
    (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    ),
    "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n<Query>: ",
    "\n<Document>: ",
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
)
"""How Qwen3-Reranker wants to be asked."""
IDENTITIES = ("Identity", "activation.Identity")


class Projection(msgspec.Struct, frozen=True):
    """A product that vectors go through behind the model.

    Attributes:
        name: of its module; those of sentence-transformers begin with their folder.
        folder: whose model.safetensors holds it; "" is the model's own.
        inputs, outputs: values of a vector, before and after.
        bias, tanh: whether it has a bias, and goes through tanh.
    """

    name: str
    folder: str
    inputs: int
    outputs: int
    bias: bool = False
    tanh: bool = False


class PoolerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """How a checkpoint is pooled.

    Attributes:
        tasks: what it serves.
        whole: texts are read as a whole, attention looks both ways; else from left to right, in any chunks.
        method: how the tokens of a text become one vector: its first, its last, their mean.
        normalize: whether vectors are made 1 long unless a request says otherwise.
        dimension: values of a vector.
        dimensions: lengths to which vectors may be cut (Matryoshka); any where it is empty.
        head: none, one that scores labels for a text, or for each token; or that of a reward model, for each token.
        labels: their names.
        activation: what makes probabilities of scores.
        prompts: texts to put before an input, by name; default_prompt is the name of the one that is always put there.
        max_tokens: longest text, where it is shorter than what the model was made for.
        projections: products behind the model, in order.
        late: whether a text is the vectors of its tokens, and two are compared token by token (ColBERT).
        sides: what goes before queries and before documents, where texts are compared so.
        tokens: of a generating model whose logits make the score: with two that of the second less that of the first.
        frame: around two texts that are read at once; None is the tokenizer's way. Only what stands before and behind
            both may spell special tokens.
    """

    tasks: list[str]
    whole: bool
    method: Method
    normalize: bool
    dimension: int
    dimensions: list[int] = []
    head: Head = "none"
    labels: list[str] = []
    activation: Activation = "none"
    prompts: dict[str, str] = {}
    default_prompt: str | None = None
    max_tokens: int | None = None
    projections: list[Projection] = []
    late: bool = False
    sides: tuple[str, str] = ("", "")
    tokens: list[int] = []
    frame: Frame | None = None

    def prompt_of(self, name: str | None) -> str:
        """What goes before an input: the prompt called `name`, or without one that which always does.

        Raises RequestError for a name that the checkpoint does not have.
        """
        chosen = name or self.default_prompt
        if chosen is None:
            return ""
        if chosen not in self.prompts:
            have = ", ".join(self.prompts) or "none"
            raise RequestError(f"This model has no prompt of that name; it has: {have}.", "prompt_name")
        return self.prompts[chosen]


class _Pooling(msgspec.Struct, frozen=True):
    """What `1_Pooling/config.json` says beside the modes."""

    include_prompt: bool = True
    pooling_mode: str | None = None


class _Sentences(msgspec.Struct, frozen=True):
    """config_sentence_transformers.json."""

    prompts: dict[str, str] | None = None
    default_prompt_name: str | None = None
    query_prefix: str = ""
    document_prefix: str = ""


class _Dense(msgspec.Struct, frozen=True):
    """`N_Dense/config.json`."""

    in_features: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
    out_features: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
    bias: bool = True
    activation_function: str = "Tanh"


def is_encoder(config: dict[str, Any]) -> bool:
    """Whether the model of `config` reads both ways."""
    return config.get("model_type") in ENCODERS


def position_offset(config: dict[str, Any]) -> int:
    """Entries of a table of learned positions that come before that of the first token."""
    return int(config.get("pad_token_id") or 0) + 1 if config.get("model_type") in OFFSET else 0


def pooler_facts(
    folder: Path, config: dict[str, Any], runner: Runner = "auto", method: Method | None = None
) -> PoolerFacts | None:
    """How the checkpoint in `folder` is pooled, or None if it generates text.

    Args:
        config: config.json.
        runner: what the user wants; auto goes by the architecture and by modules.json.
        method: instead of the checkpoint's.

    Raises CheckpointError for files of sentence-transformers that ask for what is not served.
    """
    names = config.get("architectures") or [""]
    architecture = str(names[0])
    modules = _modules(folder)
    encoder = is_encoder(config)
    if runner == "generate" and encoder:
        raise CheckpointError(
            f"{folder}: {config['model_type']} reads both ways and generates no text; use runner=pooling"
        )
    head: Head = "sequence" if "classifier_from_token" in config else _head(architecture)
    bare = architecture.endswith("Model") and not architecture.endswith("LMHeadModel")
    pools = runner == "pooling" or encoder or head != "none" or bare or bool(modules)
    if runner == "generate" or not pools:
        return None
    if "classifier_from_token" in config:
        return _from_tokens(folder, config, method)
    if head != "none":
        return _classifier(config, head, method, encoder)
    found = _from_modules(folder, modules)
    sentences = _read(folder / "config_sentence_transformers.json", _Sentences)
    default: Method = "mean" if encoder else "last"
    projections = [_dense(folder, path) for kind, path in modules if kind == "Dense"]
    late = architecture in COLBERT or (found is None and bool(projections))
    if architecture in COLBERT and not projections:
        projections = [_colbert(folder, _size(config))]
    for given, one in zip([_size(config), *(one.outputs for one in projections)], projections, strict=False):
        if one.inputs != given:
            raise CheckpointError(f"{folder}: {one.name} takes {one.inputs} values and gets {given}")
    return PoolerFacts(
        tasks=["token_embed", "score"] if late else ["embed", "token_embed", "score"],
        whole=encoder,
        method=method or found or default,
        normalize=late or not modules or any(kind == "Normalize" for kind, _ in modules),
        dimension=projections[-1].outputs if projections else _size(config),
        projections=projections,
        late=late,
        sides=(sentences.query_prefix, sentences.document_prefix) if late else ("", ""),
        dimensions=sorted(config.get("matryoshka_dimensions") or []),
        prompts=sentences.prompts or {},
        default_prompt=sentences.default_prompt_name,
        max_tokens=_json(folder / "sentence_bert_config.json").get("max_seq_length"),
    )


def _head(architecture: str) -> Head:
    if architecture.endswith("ForSequenceClassification"):
        return "sequence"
    if architecture.endswith(("ForRewardModel", "ForProcessRewardModel")):
        return "reward"
    return "token" if architecture.endswith("ForTokenClassification") else "none"


class _Judge(msgspec.Struct, frozen=True):
    """What a config says of scores from logits, mostly by overrides; the names are vLLM's, and `pair_frame`."""

    model_type: str
    classifier_from_token: Annotated[list[str], msgspec.Meta(min_length=1)]
    pair_frame: Frame | None = None


def _from_tokens(folder: Path, config: dict[str, Any], method: Method | None) -> PoolerFacts:
    """How a generating model is pooled whose logits of some tokens are the scores. Raises CheckpointError."""
    try:
        said = msgspec.convert(config, _Judge)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"config.json: {error}") from None
    names = said.classifier_from_token
    labels = names[1:] if len(names) == 2 else names
    return PoolerFacts(
        tasks=["classify", "score"] if len(labels) == 1 else ["classify"],
        whole=False,
        method=method or "last",
        normalize=False,
        dimension=len(labels),
        head="sequence",
        labels=labels,
        activation="sigmoid" if len(labels) == 1 else "softmax",
        tokens=_token_ids(folder / "tokenizer.json", names),
        frame=said.pair_frame or (QWEN3_FRAME if said.model_type == "qwen3" else None),
    )


def _token_ids(file: Path, names: list[str]) -> list[int]:
    """The ids of tokens by their text. Raises CheckpointError."""
    told = _json(file)
    model = told.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    known = dict(vocabulary) if isinstance(vocabulary, dict) else {}
    missing = [name for name in names if type(known.get(name)) is not int]
    if missing:
        raise CheckpointError(f"{file}: classifier_from_token: there is no token {', '.join(map(repr, missing))}")
    return [known[name] for name in names]


def _classifier(config: dict[str, Any], head: Head, method: Method | None, encoder: bool) -> PoolerFacts:
    usual = 1 if head == "reward" and "Process" not in config["architectures"][0] else 2
    names = config.get("id2label") or {str(i): f"LABEL_{i}" for i in range(config.get("num_labels") or usual)}
    labels = [str(names[key]) for key in sorted(names, key=int)]
    own: Method = "mean" if config.get("classifier_pooling") == "mean" else "cls"
    if head in ("token", "reward"):
        tasks = ["token_classify"]
    else:
        tasks = ["classify", "score"] if len(labels) == 1 else ["classify"]
    return PoolerFacts(
        tasks=tasks,
        whole=encoder,
        method=method or (own if encoder else "last"),
        normalize=False,
        dimension=len(labels),
        head=head,
        labels=labels,
        activation=_activation(config, head, len(labels)),
    )


def _activation(config: dict[str, Any], head: Head, labels: int) -> Activation:
    """How scores become probabilities, as sentence-transformers and vLLM read it."""
    sentence = config.get("sentence_transformers")
    given = sentence.get("activation_fn") if isinstance(sentence, dict) else None
    given = given or config.get("sbert_ce_default_activation_function")
    if isinstance(given, str):
        return "none" if given.endswith(IDENTITIES) else "sigmoid"
    kind = config.get("problem_type")
    if kind == "regression" or (head == "reward" and labels == 1):
        return "none"
    return "sigmoid" if labels == 1 or kind == "multi_label_classification" else "softmax"


def _modules(folder: Path) -> list[tuple[str, str]]:
    """The modules of sentence-transformers: kind and folder, in order."""
    file = folder / "modules.json"
    if not file.is_file():
        return []
    try:
        listed = msgspec.json.decode(file.read_bytes(), type=list[dict[str, Any]])
        return [(str(entry["type"]).rpartition(".")[2], str(entry["path"])) for entry in listed]
    except (msgspec.DecodeError, KeyError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); download it again") from None


def _from_modules(folder: Path, modules: list[tuple[str, str]]) -> Method | None:
    method: Method | None = None
    for kind, path in modules:
        if kind == "Pooling":
            method = _mode(folder / path / "config.json")
        elif kind not in MODULES:
            raise CheckpointError(
                f"{folder / 'modules.json'}: the module {kind} is not supported; known: {', '.join(MODULES)}"
            )
    return method


def _dense(folder: Path, path: str) -> Projection:
    """A module of sentence-transformers behind the model. Raises CheckpointError."""
    file = folder / path / "config.json"
    said = _read(file, _Dense)
    activation = said.activation_function.rpartition(".")[2]
    if activation not in ("Identity", "Tanh"):
        raise CheckpointError(f"{file}: activation_function {activation} is not supported; known: Identity, Tanh")
    return Projection(f"{path}.linear", path, said.in_features, said.out_features, said.bias, activation == "Tanh")


def _colbert(folder: Path, inputs: int) -> Projection:
    """The product that ColBERT's own checkpoints hold beside the encoder. Raises CheckpointError."""
    entry = read_headers(folder).get("linear.weight")
    if entry is None or len(entry.shape) != 2:
        raise CheckpointError(f"{folder}: a ColBERT checkpoint must have a matrix linear.weight")
    return Projection("linear", "", inputs, entry.shape[0])


def _mode(file: Path) -> Method:
    values, typed = _json(file), _read(file, _Pooling)
    chosen = [name for name, value in values.items() if name.startswith("pooling_mode_") and value is True]
    if typed.pooling_mode is not None:
        chosen = [typed.pooling_mode]
    known = {**MODES, **NAMES}
    if len(chosen) != 1 or chosen[0] not in known:
        raise CheckpointError(
            f"{file}: pooling by {' and '.join(chosen) or 'nothing'} is not supported; known: {', '.join(NAMES)}"
        )
    if not typed.include_prompt:
        raise CheckpointError(f"{file}: include_prompt: false is not supported")
    return known[chosen[0]]


def _size(config: dict[str, Any]) -> int:
    size = config.get("hidden_size")
    if not isinstance(size, int) or size < 1:
        raise CheckpointError(f"config.json: hidden_size is {size!r}; it must be a positive number")
    return size


def _json(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no file."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}; download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} must hold a JSON object, not {type(value).__name__}")
    return value


def _read(file: Path, kind: type[T]) -> T:
    try:
        return msgspec.convert(_json(file), kind)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{file}: {error}") from None
