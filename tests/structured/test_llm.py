"""Every text keeps to its form: by a random model and by the shipped one, whatever the engine does meanwhile."""

import json
import re
import threading
from unittest import mock

import jsonschema
import pytest

from quire import LLM, SamplingParams
from quire.base.errors import EngineError, RequestError
from quire.engine import grammar_worker, grammars
from quire.messages.structured import StructuredOutputsParams
from quire.structured.llguidance import LLBackend
from tests.waiting import wait_for

pytestmark = pytest.mark.torch

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "pet": {"anyOf": [{"type": "null"}, {"enum": ["cat", "dog", "Ωmega"]}]},
        "scores": {"type": "array", "items": {"type": "number", "enum": [0.5, 1, -2e3]}, "maxItems": 3},
    },
    "required": ["name", "age", "pet"],
    "additionalProperties": False,
}
EXPRESSION = r"(\+49|0)[1-9][0-9]{2,4} [0-9]{3,8}"
CHOICE = ["yes", "no", "yes, but", "vielleicht 🎉"]
SUMS = 'root ::= term ("+" term){0,4}\nterm ::= [1-9] [0-9]? | "(" [1-9] "-" [1-9] ")"'


def is_person(text: str) -> bool:
    jsonschema.validate(json.loads(text), PERSON)
    return True


FORMS = {
    "json": (StructuredOutputsParams(json=PERSON), is_person),
    "text of a schema": (StructuredOutputsParams(json=json.dumps(PERSON), disable_any_whitespace=True), is_person),
    "regex": (StructuredOutputsParams(regex=EXPRESSION), lambda text: re.fullmatch(EXPRESSION, text)),
    "choice": (StructuredOutputsParams(choice=CHOICE), CHOICE.__contains__),
    "grammar": (StructuredOutputsParams(grammar=SUMS), lambda text: re.fullmatch(r"[-+()0-9]+", text) and eval(text)),
}
ENGINES = {
    "random": {"load_format": "dummy", "max_model_len": 512},
    "shipped, overlapped": {"async_scheduling": True, "max_num_seqs": 24},
    "random, preempting": {
        "load_format": "dummy",
        "async_scheduling": True,
        "max_num_seqs": 24,
        "num_gpu_blocks_override": 40,
        "max_model_len": 500,
    },
}
PROMPTS = ["It was a dark night.", "It was a dark night, and", "My name is"]


@pytest.fixture(scope="module", params=ENGINES)
def llm(request):
    with LLM(**ENGINES[request.param]) as made:
        yield made


@pytest.fixture(scope="module")
def shipped():
    with LLM(num_gpu_blocks_override=300, dtype="float32") as made:
        yield made


def sampled(seed: int, wanted: StructuredOutputsParams, **more) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 200, "temperature": 1.2, "seed": seed, "structured_outputs": wanted, **more})


@pytest.mark.parametrize("form", FORMS)
def test_every_sample_keeps_to_its_form(llm, form):
    wanted, fits = FORMS[form]
    params = [sampled(seed, wanted, n=6) for seed in range(len(PROMPTS))]
    outputs = llm.generate(PROMPTS, params)
    answers = [completion for output in outputs for completion in output.outputs]
    assert len(answers) == 18
    assert all(answer.finish_reason == "stop" and fits(answer.text) for answer in answers), answers


def test_overlap_preemption_and_company_change_no_token():
    def texts(**settings) -> list[str]:
        with LLM(load_format="dummy", dtype="float32", block_size=4, **settings) as llm:
            params = [sampled(seed, FORMS["json"][0], max_tokens=60) for seed in range(3)]
            free = SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True)
            outputs = llm.generate([*PROMPTS, *PROMPTS], [*params, free, free, free])
            preempted = llm._core.scheduler.counters.preemptions
            assert bool(preempted) == ("num_gpu_blocks_override" in settings)
            return [output.outputs[0].text for output in outputs]

    plain = texts()
    assert texts(async_scheduling=True) == plain
    assert texts(num_gpu_blocks_override=28, max_model_len=100, async_scheduling=True) == plain


def test_free_requests_beside_stay_as_they_are(shipped):
    free = SamplingParams(max_tokens=20, temperature=0.0, logprobs=1)
    alone = shipped.generate(PROMPTS[0], free)[0].outputs[0]
    beside = shipped.generate([PROMPTS[0]] * 3, [sampled(1, FORMS["json"][0]), free, sampled(2, FORMS["regex"][0])])
    assert beside[1].outputs[0].token_ids == alone.token_ids


def test_greedy_with_logprobs_stop_and_penalties(shipped):
    wanted = StructuredOutputsParams(regex="[a-z]{30}")
    (output,) = shipped.generate(PROMPTS[0], sampled(0, wanted, temperature=0.0, logprobs=2, repetition_penalty=1.2))
    answer = output.outputs[0]
    assert re.fullmatch("[a-z]{30}", answer.text) and len(answer.logprobs) == len(answer.token_ids)
    (cut,) = shipped.generate(PROMPTS[0], sampled(0, wanted, temperature=0.0, max_tokens=3))
    assert cut.outputs[0].finish_reason == "length" and re.fullmatch("[a-z]{3,30}", cut.outputs[0].text)


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_an_open_end_stops_by_eos(shipped, ignore_eos):
    wanted = StructuredOutputsParams(regex="[ab]*")
    params = sampled(5, wanted, n=6, logit_bias={0: 3.0, 2: 3.0}, ignore_eos=ignore_eos)
    (output,) = shipped.generate(PROMPTS[0], params)
    assert all(re.fullmatch("[ab]*", answer.text) for answer in output.outputs)
    assert {answer.finish_reason for answer in output.outputs} == {"stop"}


def test_a_grammar_without_a_way_on_ends_its_request_only(shipped):
    one = shipped.get_tokenizer().encode("a", add_special_tokens=False)
    dead = sampled(0, StructuredOutputsParams(regex="a{3}b"), allowed_token_ids=one)
    free = SamplingParams(max_tokens=8, temperature=0.0)
    outputs = shipped.generate([PROMPTS[0]] * 2, [dead, free])
    assert outputs[0].outputs[0].finish_reason == "error" and "no token is left" in outputs[0].error
    assert outputs[1].outputs[0].finish_reason == "length"


def test_a_bad_grammar_is_refused_before_anything_runs(shipped):
    for _ in range(2):  # the second time it is remembered
        with pytest.raises(RequestError) as caught:
            shipped.generate(PROMPTS, sampled(0, StructuredOutputsParams(json={"type": "strng"})))
        assert caught.value.code == "invalid_schema"
    assert not shipped._core.scheduler.has_work


def test_a_fault_on_the_grammar_of_one_call_harms_no_other_call(shipped, monkeypatch):
    core = shipped._core
    monkeypatch.setattr(core.grammars, "most", 0)
    held = shipped._submit(PROMPTS[:1], [sampled(0, StructuredOutputsParams(regex="held"))], [0])
    monkeypatch.setattr(core.grammars, "most", 1)
    monkeypatch.setattr(LLBackend, "compile", mock.Mock(side_effect=OSError("no memory")))
    (free,) = shipped.generate(PROMPTS[0], SamplingParams(max_tokens=30, ignore_eos=True))
    assert len(free.outputs[0].token_ids) == 30
    with pytest.raises(EngineError, match="could not be compiled"):
        list(shipped._outputs(held))
    assert not core.scheduler.has_work and not shipped._refused


def test_few_of_many_schemas_are_compiled_at_a_time_and_fewer_are_kept_after_them(shipped, monkeypatch):
    store, steps, compiled, most = shipped._core.executor.runner.grammars, threading.current_thread(), [], []
    compile = LLBackend.compile

    def noted(self, wanted):
        compiled.append(threading.current_thread())
        most.append(len(store) + 1)
        return compile(self, wanted)

    monkeypatch.setattr(LLBackend, "compile", noted)
    monkeypatch.setattr(grammars, "KEPT", 2)
    monkeypatch.setattr(grammar_worker, "QUIET_S", 0.1)
    monkeypatch.setattr(shipped._core.grammars, "most", 8)
    count = 30
    params = [
        SamplingParams(max_tokens=40, structured_outputs=StructuredOutputsParams(json={"const": f"c{number}"}))
        for number in range(count)
    ]
    texts = [output.outputs[0].text for output in shipped.generate(["x"] * count, params)]
    assert texts == [f'"c{number}"' for number in range(count)]
    assert len(compiled) == count and steps not in compiled  # none while others wait for their next token
    assert max(most) <= 8
    assert not shipped._core.scheduler.roster.grammars.pending and not shipped._core.grammars.busy
    wait_for(lambda: len(store) <= 2)  # by itself, whether anybody comes or not
