"""Log-probabilities in the three shapes that clients know: of chats, of completions, and vLLM's prompt_logprobs.

JSON has no infinities: minus infinity is written as -9999.0.
"""

from collections.abc import Sequence

from quire.messages.outputs import CompletionOutput, Logprob, RequestOutput
from quire.server.service import Tokenizer

FLOOR = -9999.0

Entry = dict[int, Logprob]
"""Token id to Logprob, for one position: the most probable tokens and the chosen one."""


def chat_logprobs(completion: CompletionOutput, top: int, tokenizer: Tokenizer) -> dict[str, object] | None:
    """`choices[].logprobs` of a chat, with the `top` most probable tokens per position."""
    if completion.logprobs is None:
        return None
    content = []
    for token, entry in zip(completion.token_ids, completion.logprobs, strict=True):
        best = sorted(entry.items(), key=lambda item: -item[1].logprob)[:top]
        content.append(
            {
                **_named(token, entry[token], tokenizer),
                "top_logprobs": [_named(other, logprob, tokenizer) for other, logprob in best],
            }
        )
    return {"content": content, "refusal": None}


def _named(token: int, logprob: Logprob, tokenizer: Tokenizer) -> dict[str, object]:
    return {
        "token": _text(token, logprob, tokenizer),
        "logprob": max(logprob.logprob, FLOOR),
        "bytes": list(tokenizer.token_bytes(token)),
    }


class CompletionLogprobs:
    """`choices[].logprobs` of a completion, piece by piece: text offsets go on where the last piece ended."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._offset = 0

    @staticmethod
    def empty() -> dict[str, list[object]]:
        """A piece without tokens."""
        return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}

    def prompt(self, output: RequestOutput) -> dict[str, list[object]]:
        """The piece for an echoed prompt; its first token has no logprob."""
        entries = output.prompt_logprobs or [None] * len(output.prompt_token_ids)
        return self.piece(output.prompt_token_ids, entries)

    def piece(self, token_ids: Sequence[int], entries: Sequence[Entry | None]) -> dict[str, list[object]]:
        """The piece for these tokens."""
        found = self.empty()
        for token, entry in zip(token_ids, entries, strict=True):
            text = _text(token, None if entry is None else entry[token], self._tokenizer)
            found["tokens"].append(text)
            found["token_logprobs"].append(None if entry is None else max(entry[token].logprob, FLOOR))
            found["top_logprobs"].append(None if entry is None else self._top(entry))
            found["text_offset"].append(self._offset)
            self._offset += len(text)
        return found

    def _top(self, entry: Entry) -> dict[str, float]:
        """By text, best first; of two tokens with the same text the more probable one stays."""
        found: dict[str, float] = {}
        for token, logprob in sorted(entry.items(), key=lambda item: -item[1].logprob):
            found.setdefault(_text(token, logprob, self._tokenizer), max(logprob.logprob, FLOOR))
        return found


def joined(first: dict[str, list[object]], second: dict[str, list[object]]) -> dict[str, list[object]]:
    """Two pieces as one."""
    return {name: first[name] + second[name] for name in first}


def prompt_logprobs(output: RequestOutput) -> list[dict[str, object] | None] | None:
    """vLLM's form: per prompt token a map from token id to logprob, rank and text; None for the first."""
    if output.prompt_logprobs is None:
        return None
    return [None if entry is None else _by_id(entry) for entry in output.prompt_logprobs]


def _by_id(entry: Entry) -> dict[str, object]:
    return {
        str(token): {"logprob": max(p.logprob, FLOOR), "rank": p.rank, "decoded_token": p.decoded_token}
        for token, p in entry.items()
    }


def _text(token: int, logprob: Logprob | None, tokenizer: Tokenizer) -> str:
    if logprob is None or logprob.decoded_token is None:
        return tokenizer.token_text(token)
    return logprob.decoded_token
