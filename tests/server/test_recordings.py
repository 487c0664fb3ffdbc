"""What IDE agents send, replayed: long prompts, tools natively and as XML in the prompt, streams, unknown fields,
cancelling in the middle. The exchanges in `recordings/` are written after what these agents send; none was captured.
"""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.fake_engine import EOS, FakeEngine, FakeTemplate, byte_tokenizer
from tests.server.serving import Serving
from tests.waiting import HANG_S, wait_for

pytestmark = pytest.mark.plain

RECORDINGS = [json.loads(path.read_text()) for path in sorted((Path(__file__).parent / "recordings").glob("*.json"))]
FIM = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")


class Told:
    """A stream put together as an agent does it: by the fields that it knows."""

    def __init__(self) -> None:
        self.content = ""
        self.calls: list[list[str]] = []
        self.finish_reason: str | None = None
        self.usage: dict[str, Any] | None = None
        self.events = 0
        self.done = False

    def take(self, line: str) -> None:
        """A line of the stream."""
        if not line.startswith("data: "):
            assert line == "" or line.startswith(":")
            return
        self.done = line == "data: [DONE]"
        if self.done:
            return
        self.events += 1
        chunk = json.loads(line[6:])
        assert "error" not in chunk, chunk
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk["choices"]:
            delta = choice.get("delta", {"content": choice.get("text")})
            self.content += delta.get("content") or ""
            for call in delta.get("tool_calls") or []:
                if call["index"] == len(self.calls):
                    assert call["id"] and call["type"] == "function"
                    self.calls.append([call["function"]["name"], ""])
                self.calls[call["index"]][1] += call["function"].get("arguments") or ""
            self.finish_reason = choice["finish_reason"] or self.finish_reason


class Agent:
    """A server whose model says what the recording has it say, and a client that sends what the agent sends."""

    def __init__(self, recording: dict[str, Any]) -> None:
        self.said = ""
        self.engine = FakeEngine(self._script, max_model_len=20_000)
        self.engine.tokenizer = byte_tokenizer(*FIM)
        template = FakeTemplate(self.engine.tokenizer, "<tool_call>")
        self.serving = Serving(self.engine, template=template)
        self.headers = {**recording["headers"], "authorization": "Bearer none", "accept": "application/json"}

    def _script(self, prompt: list[int], index: int) -> list[int]:
        return [*self.engine.tokenizer.encode(self.said), EOS]

    def play(self, exchange: dict[str, Any]) -> Told:
        """Send one request and hear the answer, or hang up in the middle of it."""
        told = Told()
        self.said = exchange["model_says"]
        self.engine.step_s = 0.002 if "cancel_after_events" in exchange else 0.0
        with (
            httpx.Client(base_url=self.serving.url, headers=self.headers, timeout=HANG_S) as http,
            http.stream("POST", exchange["path"], json=exchange["body"]) as answer,
        ):
            assert answer.status_code == 200, answer.read()
            assert answer.headers["content-type"].startswith("text/event-stream")
            for line in answer.iter_lines():
                told.take(line)
                if told.events == exchange.get("cancel_after_events"):
                    break
        return told


@pytest.mark.parametrize("recording", RECORDINGS, ids=[recording["client"] for recording in RECORDINGS])
def test_an_agent_is_served(recording: dict[str, Any]) -> None:
    agent = Agent(recording)
    with agent.serving:
        for exchange in recording["exchanges"]:
            told = agent.play(exchange)
            if "cancel_after_events" in exchange:
                wait_for(lambda: not agent.engine.open)
                wait_for(lambda: agent.serving.service.admission.open == 0)
                assert not told.done
                continue
            expected = exchange["expect"]
            calls = [[name, json.loads(arguments)] for name, arguments in told.calls]
            assert (told.content, calls) == (expected["content"], expected.get("calls", []))
            assert (told.finish_reason, told.done) == (expected["finish_reason"], True)
            if exchange["body"].get("stream_options"):
                assert told.usage is not None
                assert told.usage["total_tokens"] == told.usage["prompt_tokens"] + told.usage["completion_tokens"]


@pytest.mark.parametrize("recording", RECORDINGS, ids=[recording["client"] for recording in RECORDINGS])
def test_an_agent_that_sets_a_base_url_finds_its_model(recording: dict[str, Any]) -> None:
    agent = Agent(recording)
    with agent.serving, agent.serving.http(headers=agent.headers) as http:
        listed = http.get("/v1/models").json()["data"]
        assert [model["id"] for model in listed] == [recording["exchanges"][0]["body"]["model"]]
        long = {**recording["exchanges"][0]["body"], "messages": [{"role": "user", "content": "a" * 30_000}]}
        error = http.post("/v1/chat/completions", json=long).json()["error"]
        assert error["message"].startswith("This model's maximum context length is 20000 tokens. However, ")
