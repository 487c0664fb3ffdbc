"""`Keys`: who may ask. Keys come from `--api-key`, the environment, or a file; only their digests are kept.

A file is YAML: a list of keys, each a text or {key, name, priority}; whoever may set `priority` has `priority: true`.
Keys of one name are one tenant: they wait together and share cached prefixes.
"""

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import yaml

from quire.base.errors import ConfigError
from quire.config.fields import ServerConfig

SHORTEST = 8
"""Keys of a file have at least so many characters."""


class Entry(msgspec.Struct, forbid_unknown_fields=True):
    """A key in a file."""

    key: str
    name: str = ""
    priority: bool = False


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever sends a request.

    Attributes:
        name: for fairness and logs; never the key itself.
        may_prioritize: whether its requests may set `priority`.
        tenant: who shares cached prefixes; nothing where there is only one.
    """

    name: str = ""
    may_prioritize: bool = True
    tenant: str = ""


ANYBODY = Caller()
"""Where no key is asked for."""


class Keys:
    """All keys of a server, by digest.

    Args:
        entries: the keys and what they allow.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        named = {digest(e.key.encode()): (e.name or _name(e.key), e.priority) for e in entries}
        several = len({name for name, _ in named.values()}) > 1
        self._callers = {
            key: Caller(name, priority, name if several else "") for key, (name, priority) in named.items()
        }

    def find(self, sent: Iterable[bytes]) -> Caller | None:
        """Whose one of the keys in `sent` is. All are hashed and all are compared, so that time tells nothing."""
        found = [
            caller for key in sent for known, caller in self._callers.items() if hmac.compare_digest(digest(key), known)
        ]
        return found[0] if found else None


def keys_of(config: ServerConfig) -> Keys | None:
    """The keys that `config` names, or None where everybody may ask. Raises ConfigError."""
    entries = [] if config.api_key is None else [Entry(config.api_key, priority=True)]
    if config.api_key_file is not None:
        entries += _read(Path(config.api_key_file))
    return Keys(entries) if entries else None


def digest(key: bytes) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key).digest()


def _name(key: str) -> str:
    return "key-" + digest(key.encode()).hex()[:8]


def _read(path: Path) -> list[Entry]:
    try:
        listed = msgspec.convert(yaml.safe_load(path.read_text(encoding="utf-8")), list[str | Entry])
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"api_key_file: cannot read {str(path)!r}: {error}") from error
    except (yaml.YAMLError, msgspec.ValidationError):
        # Their messages may quote keys.
        raise ConfigError(
            f"api_key_file: {str(path)!r} must be a YAML list of keys, each a text or {{key, name, priority}}"
        ) from None
    entries = [Entry(item) if isinstance(item, str) else item for item in listed]
    for number, entry in enumerate(entries, 1):
        if len(entry.key) < SHORTEST:
            raise ConfigError(f"api_key_file: key {number} in {str(path)!r} is shorter than {SHORTEST} characters")
    if not entries:
        raise ConfigError(f"api_key_file: {str(path)!r} has no key; with an empty file nobody could ask")
    return entries
