"""`Parser`: argparse with errors as `ConfigError`, did-you-mean for unknown flags, and `--help=TOPIC`.

Knows nothing of settings; `flags` fills it from the dataclasses. Made by `main`, handed to each command.
"""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from quire.base.errors import ConfigError
from quire.base.registry import did_you_mean


class Parser(argparse.ArgumentParser):
    """The flags of one command.

    Attributes:
        topics: text for `--help=TOPIC`, by topic: names of sections and of flags.
    """

    def __init__(self, command: str, help: str) -> None:
        super().__init__(
            prog=f"quire {command}",
            usage=f"quire {command} [FLAGS]",
            description=f"{help[:1].upper()}{help[1:]}.",
            add_help=False,
            allow_abbrev=False,
            formatter_class=lambda prog: _Lines(prog, max_help_position=36, width=120),
        )
        self.topics: dict[str, str] = {}
        self.add_argument("-h", "--help", nargs="?", const="", metavar="TOPIC", help="all flags, or about one topic")

    @property
    def _lists(self) -> str:
        return f"{self.prog} --help lists the flags"

    def error(self, message: str) -> NoReturn:
        """Called by argparse. Raises ConfigError."""
        raise ConfigError(f"{message}; {self._lists}")

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """The arguments; `args.helped` says that help was asked for and printed, so that nothing is left to do.

        Flags may be written with underscores, and switches as `--switch=true`, as in vLLM. Raises ConfigError that
        says what is wrong.
        """
        end = words.index("--") if "--" in words else len(words)
        words = [*(self._switched(_with_dashes(word)) for word in words[:end]), *words[end:]]
        asked = next((i for i, word in enumerate(words) if word.partition("=")[0] in ("-h", "--help")), None)
        if asked is not None:
            # Answered before anything is checked, so that help comes where a required argument is missing.
            print(self._help(words[asked:]))
            return argparse.Namespace(helped=True)
        args, left = self.parse_known_args(words)
        if left:
            raise ConfigError(self._unknown(left))
        args.helped = False
        return args

    def _help(self, words: Sequence[str]) -> str:
        topic = words[0].partition("=")[2] or next(iter(words[1:2]), "")
        topic = topic.replace("_", "-").lstrip("-")
        if topic in ("", "all"):
            return self.format_help().rstrip()
        known = {**self._short_topics(), **self.topics}
        if topic not in known:
            raise ConfigError(f"no help on {topic!r}; {did_you_mean(topic, known, self._lists)}")
        return known[topic]

    def _listed(self) -> list[argparse.Action]:
        """Actions that help lists."""
        return [action for action in self._actions if action.help != argparse.SUPPRESS]

    def _short_topics(self) -> dict[str, str]:
        """What is listed of each flag."""
        return {
            spelling.lstrip("-"): f"{', '.join(action.option_strings)}\n    {action.help}"
            for action in self._listed()
            for spelling in action.option_strings
        }

    def _switched(self, word: str) -> str:
        """`--switch=false` as `--no-switch`: argparse gives switches no values."""
        flag, _, value = word.partition("=")
        action = self._option_string_actions.get(flag)
        if not isinstance(action, argparse.BooleanOptionalAction) or flag.startswith("--no-"):
            return word
        return {"true": flag, "false": flag.replace("--", "--no-", 1)}.get(value.lower(), word)

    def _unknown(self, left: Sequence[str]) -> str:
        flag = next((word for word in left if word.startswith("-") and word != "-"), None)
        if flag is None:
            return f"unexpected argument {left[0]!r}; {self.prog} --help shows what it takes (quote texts with spaces)"
        name = flag.partition("=")[0]
        known = [option for action in self._listed() for option in action.option_strings]
        return f"unknown flag {name}; {did_you_mean(name, known, self._lists)}"


class _Lines(argparse.HelpFormatter):
    """argparse's, but what a flag takes stands there once: `-q X, --quantization X` would be two lines long."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        taken = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {taken}"


def _with_dashes(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word
