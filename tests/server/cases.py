"""Bad and odd inputs with the answer that each must get. Every entry is one thing that a client got wrong somewhere."""

import json
from dataclasses import dataclass, field
from typing import Any

MODEL = "org/fake-model"
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HI = {"role": "user", "content": "hi"}


@dataclass(frozen=True)
class Case:
    """A body for `path`; what it must be answered with. `param` and `code` are not looked at where they are ""."""

    name: str
    path: str
    raw: bytes
    status: int = 400
    param: str | None = ""
    code: str = ""
    headers: dict[str, str] = field(default_factory=dict)


def chat(name: str, param: str | None = "", status: int = 400, code: str = "", **fields: Any) -> Case:
    """A chat that is right but for `fields`; `...` leaves a field out."""
    body = {"model": MODEL, "messages": [HI], "max_tokens": 4, **fields}
    raw = json.dumps({key: value for key, value in body.items() if value is not ...}).encode()
    return Case(name, CHAT, raw, status, param, code)


def complete(name: str, param: str | None = "", status: int = 400, code: str = "", **fields: Any) -> Case:
    """A completion that is right but for `fields`."""
    body = {"model": MODEL, "prompt": "hi", "max_tokens": 4, **fields}
    raw = json.dumps({key: value for key, value in body.items() if value is not ...}).encode()
    return Case(name, COMPLETIONS, raw, status, param, code)


def raw(name: str, body: bytes, param: str | None = "", status: int = 400, code: str = "", **headers: str) -> Case:
    """Any bytes as the body of a chat."""
    given = {key.replace("_", "-"): value for key, value in headers.items()}
    return Case(name, CHAT, body, status, param, code, given)


def with_text(text: bytes) -> bytes:
    """A chat around the JSON text of the user's message."""
    return b'{"model": "org/fake-model", "max_tokens": 2, "messages": [{"role": "user", "content": "%b"}]}' % text


BODIES = [
    raw("empty body", b"", None, code="empty_body"),
    raw("blank body", b" \n ", None, code="empty_body"),
    raw("truncated", b"{", None, code="invalid_json"),
    *[raw(f"top level {body!r}", body, None, code="invalid_json") for body in (b"[]", b'"x"', b"1", b"null", b"true")],
    raw("100,000 brackets", b"[" * 100_000, None, code="json_too_deep"),
    raw("deep object", b'{"a":' * 65 + b"1" + b"}" * 65, None, code="json_too_deep"),
    *[
        raw(f"{n.decode()}", b'{"temperature": %b}' % n, code="invalid_json")
        for n in (b"NaN", b"Infinity", b"-Infinity")
    ],
    raw("float beyond float64", b'{"temperature": 1e999}', "temperature"),
    *[raw(f"{name} 1e999", b'{"%b": 1e999}' % name.encode(), name) for name in ("top_p", "repetition_penalty")],
    raw("deep float beyond float64", b'{"messages": [{"content": [1, -1e999]}]}', "messages[0].content[1]"),
    raw("5,000 digits", b'{"seed": ' + b"9" * 5000 + b"}", None, code="invalid_json"),
    raw("duplicate key", b'{"model": "a", "model": "b"}', "model", code="duplicate_key"),
    raw("duplicate key below", b'{"messages": [{"role": "user", "role": "system"}]}', "role", code="duplicate_key"),
    raw("byte order mark", b"\xef\xbb\xbf{}", None, code="invalid_json"),
    raw("UTF-16", '{"model": "a"}'.encode("utf-16"), None),
    raw("not UTF-8", with_text(b"\xff\xfe"), None, code="invalid_utf8"),
    raw("overlong UTF-8", with_text(b"\xc0\x80"), None, code="invalid_utf8"),
    raw("lone surrogate", with_text(rb"\ud800"), "messages[0].content", code="invalid_unicode"),
    raw("surrogate as key", rb'{"\udfff": 1}', code="invalid_unicode"),
    raw("surrogate pair", with_text(rb"\ud83d\ude00"), status=200),
    raw("escaped backslash and u", with_text(rb"\\ud800"), status=200),
    raw("NUL", with_text(rb"\u0000"), status=200),
    raw("raw control character", with_text(b"\x01"), None, code="invalid_json"),
    raw("2,000,000 commas in a text", with_text(b"," * 2_000_000), status=400, code="context_length_exceeded"),
    raw("text/plain", b"{}", None, 415, "unsupported_content_type", content_type="text/plain"),
    raw("no content type", b"{}", None, 415, "unsupported_content_type", content_type=""),
    raw("form", b"a=b", None, 415, "unsupported_content_type", content_type="application/x-www-form-urlencoded"),
    raw("with charset", with_text(b"hi"), status=200, content_type="Application/JSON; charset=utf-8"),
    raw("gzip", b"\x1f\x8b", None, 415, "unsupported_content_encoding", content_encoding="gzip"),
]

TYPES = [
    chat("stream as text", "stream", stream="yes"),
    *[chat(f"n {n!r}", "n", n=n) for n in ("3", 3.5, True)],
    chat("temperature as text", "temperature", temperature="1"),
    chat("stop as number", "stop", stop=5),
    chat("stop of numbers", "stop[0]", stop=[5]),
    chat("logit_bias as list", "logit_bias", logit_bias=[1]),
    chat("stream_options as text", "stream_options", stream_options="x"),
    chat("chat_template_kwargs as list", "chat_template_kwargs", chat_template_kwargs=[1]),
    chat("12,000 wrong entries", "stop[0]", stop=[1] * 12_000),
    chat("unknown field", status=200, foo=1),
    chat("user and metadata", status=200, user="u", metadata={"a": 1}, store=True, service_tier="auto"),
]

SAMPLING = [
    *[chat(f"temperature {t}", "temperature", temperature=t) for t in (-0.1, 2.0001, 10**300)],
    *[
        chat(f"{name} null", status=200, **{name: None})
        for name in ("temperature", "top_p", "n", "stop", "seed", "top_k")
    ],
    *[chat(f"top_p {p}", "top_p", top_p=p) for p in (0, -1, 1.0000001)],
    chat("top_k -2", "top_k", top_k=-2),
    *[chat(f"top_k {k}", status=200, top_k=k) for k in (-1, 0, 1, 2**31)],
    chat("presence_penalty", "presence_penalty", presence_penalty=2.1),
    chat("frequency_penalty", "frequency_penalty", frequency_penalty=-2.1),
    *[chat(f"repetition_penalty {p}", "repetition_penalty", repetition_penalty=p) for p in (0, -1)],
    *[chat(f"max_tokens {m}", "max_tokens", max_tokens=m) for m in (0, -1)],
    chat("max_tokens beyond the context", status=200, max_tokens=10**9),
    chat("max_completion_tokens 0", "max_tokens", max_completion_tokens=0),
    chat("min_tokens over max_tokens", "min_tokens", min_tokens=5),
    chat("min_tokens beyond the context", "min_tokens", min_tokens=2**31 - 1, max_tokens=...),
    *[chat(f"n {n}", "n", n=n) for n in (0, -1, 129, 10**8)],
    *[chat(f"seed {s}", "seed", seed=s) for s in (2**63, -(2**63) - 1, 2**64)],
    *[chat(f"seed {s}", status=200, seed=s) for s in (2**63 - 1, -(2**63), 0)],
    chat("best_of below n", "best_of", best_of=1, n=2),
    complete("best_of huge", "best_of", best_of=10**6),
    chat("top_logprobs 21", "top_logprobs", logprobs=True, top_logprobs=21),
    chat("top_logprobs -1", "top_logprobs", logprobs=True, top_logprobs=-1),
    chat("top_logprobs alone", "top_logprobs", top_logprobs=5),
    chat("no top_logprobs, alone", status=200, top_logprobs=0),
    complete("logprobs 21", "logprobs", logprobs=21),
    chat("prompt_logprobs 21", "prompt_logprobs", prompt_logprobs=21),
    chat("prompt_logprobs streamed", "prompt_logprobs", prompt_logprobs=1, stream=True),
    *[chat(f"stop {s!r}", "stop", stop=s) for s in ("", [""], ["a", ""])],
    chat("stop []", status=200, stop=[]),
    chat("stop of 5", status=200, stop=list("abcde")),
    chat("stop of 17", "stop", stop=["a"] * 17),
    chat("stop of 10,000", "stop", stop=["a" * 1024] * 10_000),
    chat("stop too long", "stop", stop="a" * 4097),
    *[chat(f"logit_bias {b}", "logit_bias", logit_bias=b) for b in ({"5": 101}, {"-1": 1}, {"abc": 1}, {"300": 1})],
    *[chat(f"logit_bias {b}", "logit_bias", logit_bias=b) for b in ({str(2**40): 1}, {"": 1}, {"１": 1}, {" 1": 1})],
    chat("logit_bias of 1,025", "logit_bias", logit_bias={str(i): 1 for i in range(1025)}),
    chat("logit_bias bans all", status=200, logit_bias={str(i): -100 for i in range(300)}),
    chat("one-hot four times", status=200, temperature=0, top_p=0.1, top_k=1, min_p=1),
    chat("stream_options alone without usage", "stream_options", stream_options={"continuous_usage_stats": True}),
    chat("stream_options alone", "stream_options", stream_options={"include_usage": True}),
]

TOKENS = [
    *[
        complete(f"prompt {p!r}", "prompt", prompt=p)
        for p in ([], [[]], [-1], [300], [1.5], [True], ["a", 1], [[1], "a"])
    ],
    *[complete(f"prompt {p!r}", "prompt", prompt=p) for p in (5, {}, [None], [[1], [2.0]], [[[1]]], "", None, ...)],
    complete("prompt past the tokenizer, inside the embedding", status=200, prompt=[299]),
    complete("1,025 prompts", "prompt", code="too_many_prompts", prompt=["a"] * 1025),
    complete("9 prompts, 128 times", "n", code="too_many_choices", prompt=["a"] * 9, n=128),
    complete("max_tokens 0", "max_tokens", max_tokens=0),
    complete("max_tokens 0 with echo", status=200, max_tokens=0, echo=True),
    chat("stop_token_ids", "stop_token_ids", stop_token_ids=[300], min_tokens=1),
    *[chat(f"allowed_token_ids {ids}", "allowed_token_ids", allowed_token_ids=ids) for ids in ([], [305], [-1])],
    chat("bad_words empty", "bad_words", bad_words=[""]),
    *[
        complete(f"{n} tokens for a context of 256", "prompt", code="context_length_exceeded", prompt=[1] * n)
        for n in (256, 257, 100_000)
    ],
    complete("255 tokens for a context of 256", status=200, prompt=[1] * 255),
    complete("prompt_logprobs of all the context", status=200, prompt=[1] * 255, prompt_logprobs=20),
    chat("cache_salt long", "cache_salt", cache_salt="x" * 129),
    chat("cache_salt huge", "cache_salt", cache_salt="x" * (1 << 20)),
    chat("cache_salt empty", "cache_salt", cache_salt=""),
    chat("cache_salt", status=200, cache_salt="a/b"),
    chat("priority huge", "priority", priority=2**31),
    chat("request_id with spaces", "request_id", request_id="a b"),
    chat("request_id long", "request_id", request_id="a" * 65),
    *[chat(f"truncate {t}", "truncate_prompt_tokens", truncate_prompt_tokens=t) for t in (0, -2, 257)],
]

MESSAGES = [
    chat("no messages", "messages", messages=[]),
    chat("messages left out", "messages", messages=...),
    *[chat(f"messages {m!r}", "messages", messages=m) for m in (None, {}, "hi")],
    chat("message as text", "messages[0]", messages=["hi"]),
    *[
        chat(f"role {role!r}", "messages[0].role", messages=[{"role": role, "content": "hi"}])
        for role in ("robot", 5, None, [], "x" * 10_000)
    ],
    chat("role left out", "messages[0].role", messages=[{"content": "hi"}]),
    chat("content null", "messages[0].content", messages=[{"role": "user", "content": None}]),
    chat("content left out", "messages[0].content", messages=[{"role": "user"}]),
    chat(
        "content a number",
        "messages[1].content",
        messages=[{"role": "user", "content": ""}, {"role": "user", "content": 5}],
    ),
    *[
        chat(f"part {part!r}", "messages[0].content[0].type", messages=[{"role": "user", "content": part}])
        for part in ([{}], [{"type": "nope"}], [{"type": ["text"]}], [{"type": "image_url"}])
    ],
    chat("no parts", "messages[0].content", messages=[{"role": "user", "content": []}]),
    chat("part as text", "messages[0].content[0]", messages=[{"role": "user", "content": ["text"]}]),
    chat(
        "part without text", "messages[0].content[0].text", messages=[{"role": "user", "content": [{"type": "text"}]}]
    ),
    chat("content empty", status=200, messages=[{"role": "user", "content": ""}]),
    chat("4,097 messages", "messages", messages=[{"role": "user", "content": "a"}] * 4097),
    chat("100,000 messages", "messages", messages=[{"role": "user", "content": "a"}] * 100_000),
    chat("a tool's answer to no call", status=200, messages=[{"role": "tool", "content": "x", "tool_call_id": "none"}]),
    chat("special tokens spelled", status=200, messages=[{"role": "user", "content": "<eos><|im_end|><|image_pad|>"}]),
    chat("role function", "messages[0].role", messages=[{"role": "function", "content": "x", "name": "f"}]),
    chat("tool calls said before", status=200, messages=[{"role": "assistant", "content": None, "tool_calls": [{}]}]),
    chat("name a number", "messages[0].name", messages=[{"role": "user", "content": "a", "name": 5}]),
    chat("name with spaces", status=200, messages=[{"role": "user", "content": "a", "name": "a b " * 16}]),
    chat("continue and generate", "continue_final_message", continue_final_message=True, add_generation_prompt=True),
    chat("reserved template argument", "chat_template_kwargs", chat_template_kwargs={"messages": []}),
    chat("chat_template", "chat_template", code="chat_template_not_allowed", chat_template="{{ 1 }}"),
    chat("chat_template null", status=200, chat_template=None),
]

MODELS = [
    chat("model left out", "model", model=...),
    chat("model null", "model", model=None),
    chat("model a number", "model", model=5),
    chat("model empty", "model", 404, "model_not_found", model=""),
    chat("model unknown", "model", 404, "model_not_found", model="x"),
    chat("model of 10 MB", "model", 404, "model_not_found", model="x" * 10_000_000),
    chat("model with quotes and breaks", "model", 404, "model_not_found", model='"\r\n{}'),
]

MEDIA_URLS = [
    *(
        "http://127.0.0.1:9/",
        "http://[::1]/",
        "http://0/",
        "http://2130706433/",
        "http://169.254.169.254/latest/meta-data",
    ),
    *("http://[::ffff:169.254.169.254]/", "http://100.100.100.200/", "file:///etc/passwd", "ftp://x/", "gopher://x/"),
    *("unix:/run/x", "data:image/png;base64,%%%", "data:,", "data:image/png;base64,iVBORw0KGgo="),
    *("data:video/jpeg;base64,AAAA", "data:audio/ogg;base64,AAAA"),
]
MEDIA_MESSAGES = [
    {
        "role": "user",
        "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "http://x/"}}],
    }
]
MEDIA = [
    chat(
        f"media {kind} {url}",
        "messages[0].content[1].type",
        messages=[{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": kind, kind: {"url": url}}]}],
    )
    for url in MEDIA_URLS
    for kind in ("image_url", "video_url", "audio_url", "input_audio", "file")
] + [
    chat(
        "1,000 images",
        "messages[0].content[0].type",
        messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}] * 1000}],
    )
]

UNSUPPORTED: list[tuple[str, Any]] = [
    ("functions", [{"name": "f"}]),
    ("function_call", "auto"),
    ("guided_json", {"type": "object"}),
    ("guided_regex", "a+"),
    ("guided_choice", ["a"]),
    ("guided_grammar", "x"),
    ("grammar", "x"),
    ("regex", "a"),
    ("logits_processors", ["x"]),
    ("use_beam_search", True),
    ("prompt_embeds", "x"),
    ("documents", [{}]),
    ("modalities", ["audio"]),
    ("truncation_side", "right"),
    ("kv_transfer_params", {"a": 1}),
    ("kv_transfer_params", {}),
    ("kv_transfer_params", {"tp_size": 10**9, "remote_host": "evil"}),
    ("mm_processor_kwargs", {"a": 1}),
]

REFUSED_FIELDS = [
    make(f"{name} {str(value)[:20]}", name, code="unsupported_parameter", **{name: value})
    for name, value in UNSUPPORTED
    for make in (chat, complete)
]

F = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": ["string", "null"]}}}}
TOOL = {"type": "function", "function": F}


def named(name: str) -> dict[str, Any]:
    """A tool_choice."""
    return {"type": "function", "function": {"name": name}}


def with_parameters(parameters: Any) -> list[dict[str, Any]]:
    """Tools, one, with these parameters."""
    return [{"type": "function", "function": {"name": "f", "parameters": parameters}}]


TOOLS = [
    chat("tools", status=200, tools=[TOOL]),
    chat("tools null", status=200, tools=None, tool_choice=None),
    chat("tools empty", "tools", tools=[]),
    *[chat(f"tools {tools!r}", "tools", tools=tools, code="invalid_type") for tools in ({}, "f", True)],
    *[chat(f"tool {tool!r}", "tools[0]", tools=[tool]) for tool in (None, "f", 1)],
    *[
        chat(f"tool of {t!r}", "tools[0].type", tools=[{**TOOL, "type": t}])
        for t in (None, "retrieval", 5, ["function"])
    ],
    chat("tool without function", "tools[0].function", tools=[{"type": "function"}]),
    *[
        chat(
            f"function called {name!r:.20}",
            "tools[1].function.name",
            tools=[TOOL, {**TOOL, "function": {"name": name}}],
        )
        for name in ("", "a" * 65, "a b", "f", None, 5, "ü", "a\n")
    ],
    chat("128 tools", status=200, tools=[{**TOOL, "function": {"name": f"f{i}"}} for i in range(128)]),
    chat("129 tools", "tools", tools=[{**TOOL, "function": {"name": f"f{i}"}} for i in range(129)]),
    chat(
        "description a number", "tools[0].function.description", tools=[{**TOOL, "function": {**F, "description": 5}}]
    ),
    chat("strict a text", "tools[0].function.strict", tools=[{**TOOL, "function": {**F, "strict": "yes"}}]),
    *[
        chat(
            f"parameters {p!r}", f"tools[0].function.parameters{path}", code="invalid_schema", tools=with_parameters(p)
        )
        for p, path in (
            ([], ""),
            ("x", ""),
            ({"type": "stsring"}, ".type"),
            ({"type": [{}]}, ".type"),
            ({"properties": []}, ".properties"),
            ({"properties": {"a": {"items": {"type": 5}}}}, ".properties.a.items.type"),
            ({"anyOf": {}}, ".anyOf"),
            ({"pattern": "("}, ".pattern"),
            ({"properties": {"a": {"pattern": "a**"}}}, ".properties.a.pattern"),
            ({"pattern": "[a"}, ".pattern"),
            ({"pattern": "a\\"}, ".pattern"),
            ({"pattern": 5}, ".pattern"),
            ({"$ref": "#/$defs/nowhere"}, ".$ref"),
            ({"$ref": "http://127.0.0.1:9/schema"}, ".$ref"),
            ({"$defs": {"x": {"$ref": 5}}}, ".$defs.x.$ref"),
        )
    ],
    *[
        chat(f"parameters {p!r}", status=200, tools=with_parameters(p))
        for p in (
            {
                "properties": {"a": {"$ref": "#/$defs/x"}},
                "$defs": {"x": {"pattern": r"^(?=a)[^\]]+\d{2,}?|(?<n>b)\/$"}},
            },
            {"$ref": "#"},
            {"pattern": "[)(]+"},
        )
    ],
    chat("a property called type", status=200, tools=with_parameters({"properties": {"type": {"type": "string"}}})),
    chat("tool_choice auto alone", "tool_choice", tool_choice="auto"),
    chat("tool_choice none alone", status=200, tool_choice="none"),
    chat("tool_choice none", status=200, tool_choice="none", tools=[TOOL]),
    chat("tool_choice auto", status=200, tool_choice="auto", tools=[TOOL]),
    *[
        chat(f"tool_choice {choice!r}", "tool_choice", tool_choice=choice, tools=[TOOL], code="invalid_value")
        for choice in ("any", 5, {}, [], named("g"), {"type": "function"}, {"type": "allowed_tools"})
    ],
    *[chat(f"tool_choice {c!r}", status=200, tool_choice=c, tools=[TOOL]) for c in ("required", named("f"))],
    chat("tool_choice required alone", "tool_choice", tool_choice="required"),
    chat("tools and json", status=200, tools=[TOOL], response_format={"type": "json_object"}),
    chat("tools and a grammar", status=200, tools=[TOOL], structured_outputs={"grammar": 'start: "a"'}),
    chat("reasoning_effort", "reasoning_effort", code="unsupported_parameter", reasoning_effort="high"),
    chat("reasoning_effort of another word", "reasoning_effort", reasoning_effort="huge"),
    chat("reasoning_effort none", status=200, reasoning_effort="none"),
    chat("enable_thinking", "enable_thinking", code="unsupported_parameter", enable_thinking=True),
    chat("enable_thinking false", status=200, enable_thinking=False),
    chat("a budget", "thinking_token_budget", code="unsupported_parameter", thinking_token_budget=5),
    chat("a negative budget", "thinking_token_budget", thinking_token_budget=-1),
    complete("thoughts in a completion", "reasoning_effort", code="unsupported_parameter", reasoning_effort="high"),
    chat(
        "a schema beyond 64 bits",
        "response_format",
        code="invalid_schema",
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": 10**30}}},
    ),
    complete("too many words for too many prompts", "bad_words", prompt=["a"] * 1024, bad_words=["b"] * 9),
    complete("long bad words", "bad_words", bad_words=["b" * 4000] * 17),
    chat("a template's own self", "chat_template_kwargs", chat_template_kwargs={"self": 1}),
    chat("a frame of one's own", "structured_outputs", structured_outputs={"grammar": "x", "frame": "y"}),
    chat("parallel_tool_calls a text", "parallel_tool_calls", parallel_tool_calls="no"),
    chat("parallel_tool_calls", status=200, parallel_tool_calls=False),
    complete("tools in a completion", "tools", code="unsupported_parameter", tools=[TOOL]),
    complete("tool_choice in a completion", "tool_choice", code="unsupported_parameter", tool_choice="auto"),
]

AUXILIARY = [
    Case(
        "tokenize an image",
        "/tokenize",
        json.dumps({"messages": MEDIA_MESSAGES}).encode(),
        param="messages[0].content[1].type",
    ),
    Case(
        "embeddings", "/v1/embeddings", b'{"input": null, "encoding_format": "foo"}', 400, "model", "unsupported_task"
    ),
    *[
        Case(
            f"an adapter to {act}",
            f"/v1/{act}_lora_adapter",
            b'{"lora_name": "a", "lora_path": "../x"}',
            404,
            None,
            "not_found",
        )
        for act in ("load", "unload")
    ],
    Case("tokenize nothing", "/tokenize", b"{}", param="prompt"),
    Case("tokenize both", "/tokenize", b'{"prompt": "a", "messages": []}', param="prompt"),
    Case("tokenize 10 MB", "/tokenize", json.dumps({"prompt": "a" * 10_000_000}).encode(), param="prompt"),
    Case("tokenize another model", "/tokenize", b'{"prompt": "a", "model": "x"}', 404, "model", "model_not_found"),
    Case("tokenize wrong type", "/tokenize", b'{"prompt": ["a"]}', param="prompt"),
    *[
        Case(f"detokenize {ids}", "/detokenize", b'{"tokens": %b}' % ids.encode(), param=param)
        for ids, param in (("[300]", "tokens"), ("[-1]", "tokens"), ("[1.5]", "tokens[0]"), ('"a"', "tokens"))
    ],
    Case("detokenize nothing", "/detokenize", b"{}", param="tokens"),
    Case("detokenize 600,000 ids", "/detokenize", json.dumps({"tokens": [1] * 600_000}).encode(), param="tokens"),
    Case(
        "detokenize 2,000,000 ids",
        "/detokenize",
        json.dumps({"tokens": [1] * 2_000_000}).encode(),
        param=None,
        code="too_many_values",
    ),
]

ALL = [*BODIES, *TYPES, *SAMPLING, *TOKENS, *MESSAGES, *MODELS, *MEDIA, *REFUSED_FIELDS, *TOOLS, *AUXILIARY]
