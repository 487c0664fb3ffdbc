"""`Address`: where a server is, as people write it."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from quire.base.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is.

    Attributes:
        path: before `/v1`; mostly none.
        secure: whether it speaks HTTPS.
    """

    host: str
    port: int
    path: str
    secure: bool

    @staticmethod
    def of(url: str, flag: str) -> "Address":
        """The address in `url`, with or without scheme and `/v1`. Raises ConfigError, which names `flag`."""
        wrong = ConfigError(f"{flag} {url}: not an address; write http://127.0.0.1:8000")
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
        except ValueError:
            raise wrong from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise wrong
        secure = parts.scheme == "https"
        path = parts.path.rstrip("/").removesuffix("/v1")
        return Address(parts.hostname, port or (443 if secure else 80), path, secure)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"
