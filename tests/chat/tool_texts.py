"""Answers of every family of models, and what they say; written for these tests after the families' own templates."""

from dataclasses import dataclass, field
from typing import Any

TOOLS = {
    "get_weather": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    "write": {"type": "object", "properties": {"path": {"type": "string"}, "lines": {"type": "array"}}},
    "now": {"type": "object", "properties": {}},
}


@dataclass(frozen=True)
class Answer:
    """A text of `format`, and what it must turn out to be."""

    format: str
    text: str
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    content: str = ""


WEATHER = ("get_weather", {"city": "São Paulo \"]}{'", "days": 2})
WRITE: tuple[str, dict[str, Any]] = (
    "write",
    {"path": "a\nb\\", "lines": [1, -2.5e3, None, True, [], {"x": {"y": "</tool_call>;"}}]},
)
NOW: tuple[str, dict[str, Any]] = ("now", {})

_W = '{"city": "São Paulo \\"]}{\'", "days": 2}'
_L = '{"path": "a\\nb\\\\", "lines": [1, -2.5e3, null, true, [], {"x": {"y": "</tool_call>;"}}]}'

HERMES = f"""I look.

<tool_call>
{{"name": "get_weather", "arguments": {_W}}}
</tool_call>
<tool_call>
{{"arguments": {_L}, "name": "write"}}
</tool_call><tool_call>{{"name": "now"}}</tool_call>
"""

CODER = """Sure.
<tool_call>
<function=get_weather>
<parameter=city>
São Paulo "]}{'
</parameter>
<parameter=days>
2
</parameter>
</function>
</tool_call>
<function=write>
<parameter=path>
a
b\\
</parameter>
<parameter=lines>[1, -2.5e3, null, True, [], {"x": {"y": "</tool_call>;"}}]</parameter></function>
<tool_call><function=now></function></tool_call>"""

GLM = """
<tool_call>get_weather
<arg_key>city</arg_key>
<arg_value>São Paulo "]}{'</arg_value>
<arg_key>days</arg_key>
<arg_value>2</arg_value>
</tool_call>
<tool_call>now
</tool_call>"""

DEEPSEEK3 = (
    "Hm.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
    + _W
    + "\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>write\n```json\n"
    + _L
    + "\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
DEEPSEEK31 = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
    + _W
    + "<｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
KIMI = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
    + _W
    + "<|tool_call_end|><|tool_call_begin|>functions.write:1<|tool_call_argument_begin|>"
    + _L
    + "<|tool_call_end|><|tool_calls_section_end|>"
)
PYTHONIC = (
    "[get_weather(city='São Paulo \"]}{\\'', days=2), "
    'write(path="a\\nb\\\\", lines=[1, -2.5e3, None, True, [], {"x": {\'y\': "</tool_call>;"}}]), now()]'
)

GRANITE = f'<|tool_call|>[{{"name": "get_weather", "arguments": {_W}}}, {{"name": "write", "arguments": {_L}}}]'
M2 = """So.

<minimax:tool_call>
<invoke name="get_weather">
<parameter name="city">São Paulo "]}{'</parameter>
<parameter name="days">2</parameter>
</invoke>
<invoke name="now">
</invoke>
</minimax:tool_call>"""
M1 = f"""<tool_calls>
{{"name": "get_weather", "arguments": {_W}}}
{{"name": "write", "arguments": {_L}}}
</tool_calls>"""


def gemma(start: str, end: str, quote: str) -> str:
    """The same calls by either Gemma."""
    lines = f"[1, -2.5e3,null,true,[],{{x:{{y:{quote}</tool_call>;{quote}}}}}]"
    weather = f"city:{quote}São Paulo \"]}}{{'{quote},days:2"
    write = f"path:{quote}a\nb\\{quote}, lines:{lines}"
    calls = [f"{start}call:{name}{{{given}}}{end}" for name, given in zip(TOOLS, (weather, write, ""), strict=True)]
    return "Well. " + "".join(calls)


def harmony(name: str, arguments: str) -> str:
    """A call on the commentary channel, as the beginning of an answer."""
    return f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}<|call|>"


HARMONY = (
    f"<|channel|>commentary<|message|>I <|look.<|end|><|start|>assistant{harmony('get_weather', _W)}"
    f"<|start|>assistant to=functions.write<|channel|>commentary json<|message|>{_L}<|call|>"
)

ANSWERS = [
    Answer("granite", GRANITE, [WEATHER, WRITE]),
    Answer("granite", 'Sure: <tool_call> [{"name": "now"}]', [NOW], "Sure:"),
    Answer("minimax_m2", M2, [WEATHER, NOW], "So."),
    Answer("minimax", M1, [WEATHER, WRITE]),
    Answer("gemma4", gemma("<|tool_call>", "<tool_call|>", '<|"|>'), [WEATHER, WRITE, NOW], "Well."),
    Answer(
        "functiongemma",
        gemma("<start_function_call>", "<end_function_call>", "<escape>"),
        [WEATHER, WRITE, NOW],
        "Well.",
    ),
    Answer("harmony", HARMONY, [WEATHER, WRITE], "I <|look."),
    Answer("harmony", harmony("now", "{}"), [NOW]),
    Answer("hermes", HERMES, [WEATHER, WRITE, NOW], "I look."),
    Answer("hermes", '<tool_call>{"name": "now", "arguments": "{}", "id": 3}', [NOW]),
    Answer("hermes", f'<tool_call>{{"name": "write", "parameters": {_L}}}</tool_call> and so on', [WRITE], "and so on"),
    Answer("qwen3_coder", CODER, [WEATHER, WRITE, NOW], "Sure."),
    Answer("glm45", GLM, [WEATHER, NOW]),
    Answer("deepseek", DEEPSEEK3, [WEATHER, WRITE], "Hm."),
    Answer("deepseek", DEEPSEEK31, [WEATHER, NOW]),
    Answer("kimi_k2", KIMI, [WEATHER, WRITE]),
    Answer("mistral", f'[TOOL_CALLS][{{"name": "get_weather", "arguments": {_W}}}, {{"name": "now"}}]', [WEATHER, NOW]),
    Answer("mistral", f"Ok.[TOOL_CALLS]get_weather{_W}[TOOL_CALLS]write{_L}", [WEATHER, WRITE], "Ok."),
    Answer("mistral", f"[TOOL_CALLS]get_weather[CALL_ID]abcdef123[ARGS]{_W}", [WEATHER]),
    Answer("llama3_json", f'{{"name": "get_weather", "parameters": {_W}}}', [WEATHER]),
    Answer(
        "llama3_json",
        f'<|python_tag|>{{"name": "get_weather", "parameters": {_W}}}; {{"name": "write", "parameters": {_L}}}',
        [WEATHER, WRITE],
    ),
    Answer("pythonic", PYTHONIC, [WEATHER, WRITE, NOW]),
    Answer("pythonic", "<|python_start|>[now()]<|python_end|>", [NOW]),
]

CONTENT = [
    Answer("granite", "<|tool_call|>{}"),
    Answer("minimax_m2", "<minimax:tool_call><invoke name='f'><parameter>"),
    Answer("minimax_m2", "<minimax:tool_call>\nno"),
    Answer("minimax", '<tool_calls>\n{"name": 5}'),
    Answer("gemma4", "<|tool_call>call:f(1)<tool_call|>"),
    Answer("gemma4", "<|tool_call>call:f{a:[1}<tool_call|>"),
    Answer("functiongemma", "<start_function_call>call:f{a:" + "[" * 99),
    Answer("harmony", "<|channel|>commentary to=functions.now<|message|>no"),
    Answer("harmony", "<|start|>assistant<|message|>no channel"),
    Answer("harmony", "a <|channel b"),
    *[
        Answer(name, "No tools: a < b, [1], {} \n")
        for name in ("hermes", "mistral", "pythonic", "llama3_json", "glm45")
    ],
    Answer("hermes", "<tool_call>\nno json</tool_call>"),
    Answer("hermes", '<tool_call>{"name": "f", "arguments": {"a": ]}}</tool_call>'),
    Answer("hermes", '  <tool_call>{"name": "f", "arguments": [1]}</tool_call>  '),
    Answer("hermes", '<tool_call>{"name": "f", "argum'),
    Answer("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1'),
    Answer("hermes", '<tool_call>{"name": "f", "arguments": {"a": ' + "[" * 99),
    Answer("hermes", '<tool_call>{"name": "f", "arguments": {"a": ' + "9" * 500 + "}}</tool_call>"),
    Answer("qwen3_coder", "<tool_call><function=f><parameter=a>1</function>"),
    Answer("qwen3_coder", "<tool_call>{}</tool_call>"),
    Answer("glm45", "<tool_call>f<b>"),
    Answer("deepseek", "<｜tool▁calls▁begin｜>no"),
    Answer("kimi_k2", "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>no"),
    Answer("mistral", "[TOOL_CALLS]"),
    Answer("mistral", "[TOOL_CALLS]not a call"),
    Answer("llama3_json", '{"name": "Alice", "parameters": {}}'),
    Answer("llama3_json", '{"answer": 42}'),
    Answer("pythonic", "[print(1)]"),
    Answer("pythonic", "[now(__import__('os'))]"),
    Answer("pythonic", "[now(a=__import__('os'))]"),
    Answer("pythonic", "[1, 2, 3]"),
]
"""Texts that are no calls, and must come out as they went in."""
