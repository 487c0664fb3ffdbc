"""Whether every text keeps to its form: thousands of samples of the shipped model and of one with random weights.

    python benchmarks/validity.py [SAMPLES [shipped|random]]

SAMPLES (3,000) per model over JSON schemas, expressions, choices, grammars, structural tags, and calls of tools as six
families write them. A text that ended must be valid; one that was cut for lack of room is counted apart. Prints the
counts and appends them to benchmarks/ledger/structured.jsonl. Ends with 1 if any text was not valid.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import jsonschema
from lib import ledger

from quire import LLM, SamplingParams
from quire.chat.events import fold
from quire.chat.formats.recognise import tool_format
from quire.chat.grammar import Rules, Tool
from quire.chat.splitter import StreamSplitter
from quire.messages.structured import StructuredOutputsParams

PLACE = {
    "type": "object",
    "properties": {"lat": {"type": "number"}, "lon": {"type": "number"}},
    "required": ["lat", "lon"],
    "additionalProperties": False,
}
SCHEMAS: list[dict[str, Any]] = [
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "pet": {"anyOf": [{"type": "null"}, {"enum": ["cat", "dog", "Ωmega"]}]},
        },
        "required": ["name", "age", "pet"],
        "additionalProperties": False,
    },
    {"type": "array", "items": {"$ref": "#/$defs/place"}, "minItems": 1, "maxItems": 3, "$defs": {"place": PLACE}},
    {"type": "object", "properties": {"when": {"type": "string", "format": "date"}}, "required": ["when"]},
    {"oneOf": [{"type": "boolean"}, {"type": "string", "pattern": "^[a-f]{2,6}$"}]},
]
TOOL_SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Rome", "Oslo"]},
        "days": {"type": "integer", "maximum": 9},
        "sure": {"type": "boolean"},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
FORMATS = ("hermes", "qwen3_coder", "pythonic", "llama3_json", "deepseek", "gemma4")
Valid = Callable[[str], object]


def schema_holds(schema: dict[str, Any]) -> Valid:
    """Whether a text is JSON of a schema."""
    return lambda text: jsonschema.validate(json.loads(text), schema) is None


def tag_holds(text: str) -> bool:
    """Whether every tag in a text is closed and holds what it must."""
    found = re.findall(r"<f=x>(.*?)</f>", text, re.DOTALL)
    assert text.count("<f=") == len(found)
    return all(schema_holds(PLACE)(one) for one in found)


def calls_hold(name: str) -> Valid:
    """Whether a text is nothing but calls of the tool."""

    def holds(text: str) -> bool:
        splitter = StreamSplitter(tool_format(name, ""), None, {"weather": TOOL_SCHEMA})
        parsed = fold([*splitter.push(text), *splitter.finish()])
        for call in parsed.calls:
            assert call.name == "weather"
            jsonschema.validate(json.loads(call.arguments), TOOL_SCHEMA)
        return bool(parsed.calls) and not parsed.content

    return holds


def required(name: str) -> StructuredOutputsParams:
    """The grammar of `tool_choice: required`."""
    format = tool_format(name, "")
    assert format is not None and format.calls is not None
    rules = Rules(lambda marker: None, format.markers)
    return StructuredOutputsParams(
        grammar=rules.source(format.calls(rules, [Tool("weather", TOOL_SCHEMA, True)], True))
    )


def forms() -> dict[str, tuple[StructuredOutputsParams, Valid]]:
    """Every form with its judge."""
    phone, choice = r"(\+49|0)[1-9][0-9]{2,4} [0-9]{3,8}", ["yes", "no", "yes, but", "vielleicht 🎉"]
    sums = 'root ::= term ("+" term){0,4}\nterm ::= [1-9] [0-9]? | "(" [1-9] "-" [1-9] ")"'
    tag = {"structures": [{"begin": "<f=x>", "schema": PLACE, "end": "</f>"}], "triggers": ["<f="]}
    made: dict[str, tuple[StructuredOutputsParams, Valid]] = {
        f"schema {number}": (StructuredOutputsParams(json=schema), schema_holds(schema))
        for number, schema in enumerate(SCHEMAS)
    }
    made["json object"] = StructuredOutputsParams(json_object=True), schema_holds({"type": "object"})
    made["regex"] = StructuredOutputsParams(regex=phone), lambda text: re.fullmatch(phone, text)
    made["choice"] = StructuredOutputsParams(choice=choice), choice.__contains__
    made["grammar"] = StructuredOutputsParams(grammar=sums), lambda text: re.fullmatch(r"[-+()0-9]+", text)
    made["structural tag"] = StructuredOutputsParams(structural_tag=json.dumps(tag)), tag_holds
    for name in FORMATS:
        made[f"calls {name}"] = required(name), calls_hold(name)
    return made


def sample(samples: int, **engine: Any) -> tuple[Counter[str], list[tuple[str, str]]]:
    """Count texts of every form by how they ended; and those that are not valid."""
    counts: Counter[str] = Counter()
    bad: list[tuple[str, str]] = []
    judged = forms()
    each = -(-samples // len(judged))
    with LLM(max_num_seqs=64, max_model_len=512, **engine) as llm:
        for name, (wanted, valid) in judged.items():
            params = [
                SamplingParams(temperature=1.0, seed=seed, max_tokens=200, structured_outputs=wanted)
                for seed in range(each)
            ]
            for output in llm.generate([f"{name}, number {seed}:" for seed in range(each)], params, use_tqdm=False):
                (completion,) = output.outputs
                end = completion.finish_reason or "none"
                try:
                    ok = end == "length" or (end == "stop" and bool(valid(completion.text)))
                except (AssertionError, ValueError, jsonschema.ValidationError):
                    ok = False
                counts["cut" if end == "length" else "valid" if ok else "invalid"] += 1
                if not ok:
                    bad.append((name, completion.text))
    return counts, bad


MODELS: dict[str, dict[str, Any]] = {"shipped": {}, "random": {"load_format": "dummy"}}


def main(samples: str = "3000", *models: str) -> int:
    """Sample the models, print, record."""
    failed = False
    for model in models or MODELS:
        counts, bad = sample(int(samples), **MODELS[model])
        failed = failed or bool(bad)
        print(model, dict(counts), bad[:3])
        ledger.append(
            ledger.LEDGER / "structured.jsonl",
            {
                "commit": ledger.commit(),
                "machine": ledger.machine(),
                "model": model,
                "metric": f"texts that keep to their form, over {len(forms())} forms",
                **{kind: counts[kind] for kind in ("valid", "cut", "invalid")},
            },
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
