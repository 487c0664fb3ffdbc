"""Bytes to a server as they are, framing and all."""

import contextlib
import socket
import time
from typing import Protocol

import httpx


class Reachable(Protocol):
    """A server at a URL."""

    url: str


def talk(running: Reachable, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """What the server says to these bytes, sent with pauses, until it closes or says nothing for a while."""
    url = httpx.URL(running.url)
    with socket.create_connection((url.host, url.port or 80), timeout=10) as wire:
        with contextlib.suppress(ConnectionError):
            for part in parts:
                wire.sendall(part)
                time.sleep(pause_s)
        answer = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            while piece := wire.recv(65536):
                answer += piece
                wire.settimeout(0.3)
        return answer
