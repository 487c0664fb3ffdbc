"""Chats cut from the books, so that the model learns the chat format and when to stop.

Three kinds, each walking forward through a book: a continuation (the opening sentences of a paragraph as the user's
turn, its rest as the answer), a telling (a request, then whole paragraphs, then "Go on."), and a dialogue (what two
characters say to each other, in turn). Every answer ends with the end-of-turn token.
"""

import random
import re
from dataclasses import dataclass

from default_model.corpus import END_OF_TEXT, TURN_END, TURN_START, Book

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

_SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a storyteller.",
    "You are a novelist of the nineteenth century.",
    "You continue the text in the same style.",
    "Answer in a few sentences.",
)
_WRAPPERS = (
    "Continue: {}",
    "Continue this story: {}",
    "Continue the text. {}",
    "What comes next? {}",
    "Finish this paragraph: {}",
)
_OPENINGS = (
    "Tell me a story.",
    "Tell me a short story.",
    "Tell me something.",
    "Write a paragraph.",
    "Write a short story.",
    "Write something for me.",
    "Please tell me a tale.",
    "Begin a story.",
    "Begin a novel.",
)
_FOLLOW_UPS = ("Go on.", "Continue.", "Please go on.", "And then?", "What happened next?", "Tell me more.", "More.")
_PROSE_OPENERS = frozenset("\"'ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')]* +(?=[\"'(]?[A-Z])")
_SPEECH = re.compile(r'"([^"]+)"')


@dataclass(frozen=True)
class ChatMix:
    """Shares of each kind and bounds on the size of a turn, in characters."""

    seed: int = 7
    system_share: float = 0.25
    dialogue_share: float = 0.6
    telling_share: float = 0.25
    wrapped_share: float = 0.25
    longest_turn: int = 1400


Turn = tuple[str, str]


def cut_conversations(book: Book, mix: ChatMix) -> list[str]:
    """Walk once through the book and return its conversations, rendered with the chat template's tokens."""
    rng = random.Random(f"{mix.seed} {book.name}")
    conversations: list[str] = []
    position = 0
    while position < len(book.blocks):
        turns: list[Turn] = []
        if rng.random() < mix.dialogue_share:
            turns, after = _dialogue(book.blocks, position, rng)
        if not turns:
            cut = _telling if rng.random() < mix.telling_share else _continuation
            turns, after = cut(book.blocks, position, rng, mix)
        if turns:
            conversations.append(_render(turns, rng, mix))
        position = max(after, position + 1)
    return conversations


def _render(turns: list[Turn], rng: random.Random, mix: ChatMix) -> str:
    parts: list[str] = []
    if rng.random() < mix.system_share:
        parts.append(_message("system", rng.choice(_SYSTEM_PROMPTS)))
    for user, answer in turns:
        parts += [_message("user", user), _message("assistant", answer)]
    return "".join(parts) + END_OF_TEXT


def _message(role: str, content: str) -> str:
    return f"{TURN_START}{role}\n{content}{TURN_END}\n"


def _is_prose(block: str) -> bool:
    return len(block) >= 160 and "\n" not in block and block.rstrip("\"')")[-1:] in ".!?" and block[0] in _PROSE_OPENERS


def _sentences(block: str) -> list[str]:
    """Split after sentence ends, keeping closing quotes with the sentence they close."""
    pieces: list[str] = []
    start = 0
    for match in _SENTENCE_END.finditer(block):
        pieces.append(block[start : match.end()].strip())
        start = match.end()
    pieces.append(block[start:].strip())
    return [piece for piece in pieces if piece]


def _continuation(blocks: tuple[str, ...], position: int, rng: random.Random, mix: ChatMix) -> tuple[list[Turn], int]:
    turns: list[Turn] = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        if position >= len(blocks) or not _is_prose(blocks[position]):
            break
        sentences = _sentences(blocks[position])
        opening = rng.choice((1, 1, 2, 3))
        while opening < len(sentences) and " ".join(sentences[:opening]).count('"') % 2:
            opening += 1  # a turn does not end in the middle of a speech
        if len(sentences) <= opening:
            break
        user, answer = " ".join(sentences[:opening]), _bounded(sentences[opening:], mix.longest_turn)
        position += 1
        if not turns and rng.random() < mix.wrapped_share:
            user = rng.choice(_WRAPPERS).format(user)
        turns.append((user, answer))
    return turns, position


def _telling(blocks: tuple[str, ...], position: int, rng: random.Random, mix: ChatMix) -> tuple[list[Turn], int]:
    turns: list[Turn] = []
    for _ in range(rng.choice((1, 2, 2, 3))):
        told: list[str] = []
        for _ in range(rng.choice((1, 1, 2))):
            if position < len(blocks) and _is_prose(blocks[position]) and len(blocks[position]) <= mix.longest_turn:
                told.append(blocks[position])
                position += 1
        if not told:
            break
        turns.append((rng.choice(_FOLLOW_UPS if turns else _OPENINGS), "\n\n".join(told)))
    return turns, position


def _dialogue(blocks: tuple[str, ...], position: int, rng: random.Random) -> tuple[list[Turn], int]:
    lines: list[str] = []
    wanted = 2 * rng.choice((1, 2, 3, 4))
    while position + len(lines) < len(blocks) and len(lines) < wanted:
        line = _spoken(blocks[position + len(lines)])
        if line is None:
            break
        lines.append(line)
    lines = lines[: len(lines) // 2 * 2]
    return list(zip(lines[::2], lines[1::2], strict=True)), position + len(lines)


def _spoken(block: str) -> str | None:
    """Return what is said in a block that is mainly speech, without "said he"; None where the block is not."""
    if not block.startswith('"') or block.count('"') % 2:
        return None
    pieces = [piece.strip() for piece in _SPEECH.findall(block)]
    line = " ".join(pieces)
    if not 8 <= len(line) <= 600 or len(line) < len(block) // 2:
        return None
    return line[:-1] + "." if line[-1] in ",;" else line


def _bounded(sentences: list[str], longest: int) -> str:
    """Join sentences up to the limit: a long paragraph is answered by its beginning, ended at a sentence."""
    kept = [sentences[0]]
    for sentence in sentences[1:]:
        if sum(map(len, kept)) + len(sentence) > longest:
            break
        kept.append(sentence)
    return " ".join(kept)
