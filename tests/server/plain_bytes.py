"""Bytes to a server as they are, framing and all."""

import contextlib
import socket
from typing import Protocol

import httpx

from tests.waiting import HANG_S


class Reachable(Protocol):
    """A server at a URL."""

    url: str


def talk(running: Reachable, *parts: bytes) -> bytes:
    """What the server says to these bytes until it closes; it must."""
    url = httpx.URL(running.url)
    with socket.create_connection((url.host, url.port or 80), timeout=HANG_S) as wire:
        with contextlib.suppress(ConnectionError):
            for part in parts:
                wire.sendall(part)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while piece := wire.recv(65536):
                answer += piece
        return answer
