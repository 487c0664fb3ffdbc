"""What systemd is told."""

import logging
import socket
from pathlib import Path

import pytest

from quire.server.notify import notify

pytestmark = pytest.mark.plain


@pytest.mark.parametrize("abstract", [False, True])
def test_a_datagram_to_the_socket_that_is_named(
    abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"@quire-{tmp_path}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + name[1:] if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify("READY=1")
        assert receiver.recv(100) == b"READY=1"


def test_without_systemd_nothing_is_sent_and_a_broken_socket_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    assert not caplog.records
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    monkeypatch.setattr(logging.getLogger("quire"), "propagate", True)
    notify("READY=1")
    assert "READY=1" in caplog.text
