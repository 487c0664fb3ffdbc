"""llguidance behind the protocol of `matcher.py`: the only file that knows it.

The library never raises for a bad grammar: its matchers have a state of error, which is read after each call.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import llguidance
from llguidance.numpy import fill_next_token_bitmask, fill_next_token_bitmask_par

from quire.base.errors import RequestError
from quire.base.lark import json_of, spacing
from quire.messages.structured import FIELD, StructuredOutputsParams
from quire.structured.matcher import Mask, Matcher, Vocabulary
from quire.structured.tags import Literal, tags_source

LONGEST_REASON = 300

_UNFORCED = '%llguidance {"no_forcing": true}\n'

_LIMITS = llguidance.LLParserLimits(verbose_errors=False)


class LLMatcher:
    """A matcher of llguidance."""

    def __init__(self, inner: llguidance.LLMatcher) -> None:
        self.inner = inner

    @property
    def complete(self) -> bool:
        """Whether nothing can follow and the text is a sentence."""
        return self.inner.is_stopped() and not self.inner.is_error()

    @property
    def error(self) -> str | None:
        """The library's words, cut."""
        return reason(self.inner.get_error()) if self.inner.is_error() else None

    def take(self, tokens: Sequence[int]) -> None:
        """Go on."""
        self.inner.consume_tokens(list(tokens))


class LLGrammar:
    """A matcher that stays at the start; copies of it share what was compiled."""

    def __init__(self, inner: llguidance.LLMatcher) -> None:
        self._inner = inner

    def start(self) -> LLMatcher:
        """A copy."""
        return LLMatcher(self._inner.deep_copy())


class LLBackend:
    """The library with the tokens of one model.

    Raises:
        RequestError: the library cannot read this tokenizer; no answer of this model can have a form.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._tokenizer = _tokenizer(vocabulary)
        self._specials = _specials(self._tokenizer, vocabulary)
        self._executor = llguidance.LLExecutor()

    def compile(self, wanted: StructuredOutputsParams) -> LLGrammar:
        """Compile; the first mask is made too, since it is what a bad grammar spends most on."""
        try:
            text = self._source(wanted)
        except (ValueError, RecursionError) as error:
            raise _invalid(reason(str(error))) from None
        matcher = llguidance.LLMatcher(self._tokenizer, text, log_level=0, limits=_LIMITS)
        first = matcher.deep_copy()
        first.compute_bitmask()
        if first.is_error():
            raise _invalid(reason(first.get_error()))
        return LLGrammar(matcher)

    def _source(self, wanted: StructuredOutputsParams) -> str:
        """The grammar, which lets the model choose its tokens where a text spells a special one.

        What a grammar leaves no choice in, the library writes in the tokenizer's own tokens; a text that spells a
        special token would then become that token, which the same grammar refuses.
        """
        made = source(wanted, self._literal)
        if self._specials.search(made) is None:
            return made
        if wanted.frame is None and (wanted.json is not None or wanted.json_object):
            made = f"start: {json_of(wanted.schema(), spaced=not wanted.disable_any_whitespace)}"
        elif made.startswith("{"):
            first, *others = json.loads(made)["grammars"]
            if "lark_grammar" not in first:
                return made
            first["lark_grammar"] = _UNFORCED + first["lark_grammar"]
            return json.dumps({"grammars": [first, *others]})
        return llguidance.LLMatcher.grammar_from_lark(_UNFORCED + made)

    def _literal(self, text: str) -> str:
        """A text as an expression, special tokens as tokens."""
        parts = self._specials.split(text)
        return " ".join(self._word(part) for part in parts if part) or '""'

    def _word(self, part: str) -> str:
        if self._specials.fullmatch(part) is None:
            return json.dumps(part, ensure_ascii=False)
        return f"<[{self._tokenizer.tokenize_str(part, parse_special=True)[0]}]>"

    def take(self, tokens: Sequence[tuple[Matcher, int]]) -> None:
        """Several at once on the library's threads, as in `fill`."""
        if tokens:
            self._executor.consume_token_par([(cast(LLMatcher, matcher).inner, token) for matcher, token in tokens])

    def fill(self, matchers: Sequence[tuple[Matcher, int]], mask: Mask) -> None:
        """Several at once on the library's threads."""
        pairs = [(cast(LLMatcher, matcher).inner, row) for matcher, row in matchers]
        if len(pairs) == 1:
            fill_next_token_bitmask(pairs[0][0], mask, pairs[0][1])
        elif pairs:
            fill_next_token_bitmask_par(self._executor, pairs, mask)


def source(wanted: StructuredOutputsParams, literal: Literal) -> str:
    """The grammar in the library's own form. Raises ValueError."""
    if wanted.frame is not None:
        form = llguidance.grammar_from("grammar", _lark(wanted, literal))
        inner = json.loads(form)["grammars"][0] if form.startswith("{") else {"lark_grammar": form}
        return json.dumps({"grammars": [{"lark_grammar": wanted.frame}, {**inner, "name": "form"}]})
    if wanted.regex is not None:
        return llguidance.LLMatcher.grammar_from_regex(wanted.regex)
    if wanted.choice is not None:
        alternatives = " | ".join(json.dumps(text, ensure_ascii=False) for text in wanted.choice)
        return llguidance.LLMatcher.grammar_from_lark(f"start: {alternatives}")
    if wanted.grammar is not None or wanted.structural_tag is not None:
        return llguidance.grammar_from("grammar", _lark(wanted, literal))
    space = cast("llguidance._lib.JsonCompileOptions", spacing(not wanted.disable_any_whitespace))
    return llguidance.LLMatcher.grammar_from_json_schema(wanted.schema(), overrides=space)


def _lark(wanted: StructuredOutputsParams, literal: Literal) -> str:
    """The grammar that is written as one."""
    if wanted.grammar is not None:
        return wanted.grammar
    return tags_source(wanted.structural_tag or "", literal)


def reason(text: str) -> str:
    """The library's words as one line of bearable length."""
    if text.startswith("NoExtension"):
        return "no text matches it"
    words = " ".join(text.partition("<state>")[0].replace("<non-verbose/>", "").split())
    return words if len(words) <= LONGEST_REASON else words[: LONGEST_REASON - 3] + "..."


def _tokenizer(vocabulary: Vocabulary) -> llguidance.LLTokenizer:
    if not Path(vocabulary.tokenizer).is_file():
        raise _unsupported()
    eos = list(vocabulary.eos) or None
    try:
        return llguidance.LLTokenizer(vocabulary.tokenizer, n_vocab=vocabulary.size, eos_token=eos)
    except ValueError:
        pass  # a tokenizer that knows more tokens than the model has rows
    try:
        return llguidance.LLTokenizer(vocabulary.tokenizer, eos_token=eos)
    except ValueError:
        raise _unsupported() from None


def _specials(tokenizer: llguidance.LLTokenizer, vocabulary: Vocabulary) -> re.Pattern[str]:
    """A pattern of the texts that the library takes for special tokens, in a group; it matches nothing without any."""
    added = json.loads(Path(vocabulary.tokenizer).read_bytes()).get("added_tokens") or []
    texts = [
        str(token["content"])
        for token in added
        if token["id"] < tokenizer.vocab_size and tokenizer.is_special_token(token["id"]) and token["content"]
    ]
    return re.compile("(" + ("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)") + ")")


def _invalid(why: str) -> RequestError:
    return RequestError(f"the grammar is not valid or not supported: {why}", FIELD, "invalid_schema")


def _unsupported() -> RequestError:
    return RequestError(
        "structured outputs do not work with the tokenizer of this model.", FIELD, "unsupported_parameter"
    )
