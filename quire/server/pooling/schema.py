"""The fields of requests to endpoints that pool, typed. Names are OpenAI's, vLLM's, Jina's and Cohere's."""

import msgspec

Text = str
Texts = str | list[str]


class Pooled(msgspec.Struct, kw_only=True):
    """Fields that all of them share; null always means the default."""

    model: str
    truncate_prompt_tokens: int | None = None
    priority: int | None = None
    cache_salt: str | None = None
    request_id: str | None = None


class EmbeddingRequest(Pooled, kw_only=True):
    """POST /v1/embeddings. `input` is a text, token ids, or a list of those."""

    input: object
    encoding_format: str | None = None
    dimensions: int | None = None
    normalize: bool | None = None
    add_special_tokens: bool | None = None
    prompt_name: str | None = None


class ClassificationRequest(Pooled, kw_only=True):
    """POST /classify."""

    input: object
    add_special_tokens: bool | None = None
    use_activation: bool | None = None


class PoolingRequest(EmbeddingRequest, kw_only=True):
    """POST /pooling: any task of the model."""

    task: str | None = None
    use_activation: bool | None = None


class ScoreRequest(Pooled, kw_only=True):
    """POST /score: `text_1` is one text or as many as `text_2`; newer names are `queries` and `documents`."""

    text_1: Texts | None = None
    text_2: Texts | None = None
    queries: Texts | None = None
    documents: Texts | None = None
    use_activation: bool | None = None


class Document(msgspec.Struct):
    """A document as an object."""

    text: str


class RerankRequest(Pooled, kw_only=True):
    """POST /rerank, as Jina and Cohere have it."""

    query: str
    documents: list[str | Document]
    top_n: int | None = None
    return_documents: bool | None = None
    use_activation: bool | None = None
