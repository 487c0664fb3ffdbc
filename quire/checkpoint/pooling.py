"""What a checkpoint gives instead of text: vectors, scores of labels; and how tokens become one vector.

Reads the architecture of config.json and asks `sentences.py` for the files of sentence-transformers. Knows no tensor.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from quire.base.errors import CheckpointError, RequestError
from quire.checkpoint.headers import read_headers
from quire.checkpoint.late_interaction import LateInteraction, read_late, vocabulary
from quire.checkpoint.sentences import (
    Method,
    Projection,
    read_dense,
    read_max_tokens,
    read_method,
    read_modules,
    read_sides,
)

Runner = Literal["auto", "generate", "pooling"]
Head = Literal["none", "sequence", "token", "reward"]
Activation = Literal["none", "sigmoid", "softmax"]

ENCODERS = frozenset({
    "bert", "camembert", "gte", "modernbert", "nomic_bert", "roberta", "xlm-roberta",
    # Through transformers:
    "albert", "convbert", "data2vec-text", "deberta-v2", "distilbert", "electra", "ernie", "eurobert",
    "jina_embeddings_v3", "mpnet", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta-xl", "xmod",
})  # fmt: skip
"""Model types whose attention looks both ways: they read a text as a whole and generate none."""
MASKED = "ForMaskedLM"
"""How architectures end that do so, whatever their model type."""
OFFSET = frozenset({
    "camembert", "data2vec-text", "ibert", "lilt", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
})  # fmt: skip
"""Those whose positions count from the padding token's id on."""

COLBERT = ("HF_ColBERT", "ColBERT")
"""Architectures of checkpoints whose texts are compared token by token."""
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
        late: how texts are read where each is the vectors of its tokens, and two are compared token by token (ColBERT).
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
    late: LateInteraction | None = None
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


class _Said(msgspec.Struct, frozen=True):
    """Fields of config.json."""

    architectures: list[str | None] | None = None
    id2label: dict[str, Any] | None = None
    num_labels: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] | None = None
    matryoshka_dimensions: list[Annotated[int, msgspec.Meta(ge=1)]] | None = None

    @property
    def architecture(self) -> str:
        """The class whose checkpoint it is; "" where it is not said."""
        return (self.architectures or [""])[0] or ""

    def labels(self, usual: int) -> list[str]:
        """Names of labels, `usual` many where nothing is said. Raises CheckpointError."""
        names = self.id2label or {str(i): f"LABEL_{i}" for i in range(self.num_labels or usual)}
        if not all(key.isdecimal() for key in names):
            raise CheckpointError(f"config.json: id2label has the keys {', '.join(names)}; they must be numbers")
        return [str(names[key]) for key in sorted(names, key=int)]


def _said(config: dict[str, Any]) -> _Said:
    try:
        return msgspec.convert(config, _Said)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"config.json: {error}") from None


def is_encoder(config: dict[str, Any]) -> bool:
    """Whether the model of `config` reads both ways. Raises CheckpointError."""
    return config.get("model_type") in ENCODERS or _said(config).architecture.endswith(MASKED)


def position_offset(config: dict[str, Any]) -> int:
    """Entries of a table of learned positions that come before that of the first token. Raises CheckpointError."""
    if config.get("model_type") not in OFFSET:
        return 0
    padding = config.get("pad_token_id", 1)
    if type(padding) is not int or padding < 0:
        raise CheckpointError(
            f"config.json: pad_token_id is {padding!r}; positions count from it, so it must be a token"
        )
    return padding + 1


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
    said = _said(config)
    architecture, modules = said.architecture, read_modules(folder)
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
        return _classifier(config, said, head, method)
    return _vectors(folder, config, modules, method)


def _vectors(
    folder: Path, config: dict[str, Any], modules: list[tuple[str, str]], method: Method | None
) -> PoolerFacts:
    """How a checkpoint without a head of scores is pooled. Raises CheckpointError."""
    said, encoder = _said(config), is_encoder(config)
    found, sentences = read_method(folder, modules), read_sides(folder)
    default: Method = "mean" if encoder else "last"
    projections = [read_dense(folder, path) for kind, path in modules if kind == "Dense"]
    late = said.architecture in COLBERT or (found is None and bool(projections))
    if said.architecture in COLBERT and not projections:
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
        late=read_late(folder, encoder) if late else None,
        dimensions=sorted(said.matryoshka_dimensions or []),
        prompts=sentences.prompts or {},
        default_prompt=sentences.default_prompt_name,
        max_tokens=read_max_tokens(folder),
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
        tokens=_token_ids(folder, names),
        frame=said.pair_frame or (QWEN3_FRAME if said.model_type == "qwen3" else None),
    )


def _token_ids(folder: Path, names: list[str]) -> list[int]:
    """The ids of tokens by their text. Raises CheckpointError."""
    known = vocabulary(folder)
    missing = ", ".join(repr(name) for name in names if name not in known)
    if missing:
        raise CheckpointError(f"{folder / 'tokenizer.json'}: classifier_from_token: there is no token {missing}")
    return [known[name] for name in names]


def _classifier(config: dict[str, Any], said: _Said, head: Head, method: Method | None) -> PoolerFacts:
    usual = 1 if head == "reward" and "Process" not in said.architecture else 2
    labels, encoder = said.labels(usual), is_encoder(config)
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


def _colbert(folder: Path, inputs: int) -> Projection:
    """The product that ColBERT's own checkpoints hold beside the encoder. Raises CheckpointError."""
    entry = read_headers(folder).get("linear.weight")
    if entry is None or len(entry.shape) != 2:
        raise CheckpointError(f"{folder}: a ColBERT checkpoint must have a matrix linear.weight")
    return Projection("linear", "", inputs, entry.shape[0])


def _size(config: dict[str, Any]) -> int:
    size = config.get("hidden_size")
    if not isinstance(size, int) or size < 1:
        raise CheckpointError(f"config.json: hidden_size is {size!r}; it must be a positive number")
    return size
