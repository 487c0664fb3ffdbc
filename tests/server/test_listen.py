"""Where the server listens: a Unix socket of its owner's, TLS, behind a proxy's path; and whose pages may call it."""

import asyncio
import socket
import ssl
import stat
import subprocess
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import httpx
import pytest

from quire.base.errors import ConfigError
from quire.config.fields import Config, ServerConfig
from quire.server.run import greet, serve
from quire.server.sockets import bind, check_guard, tls_of
from quire.server.startup import StartupResponder
from tests.server.serving import Serving
from tests.waiting import HANG_S

pytestmark = pytest.mark.plain


def test_a_unix_socket_for_its_owner_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "quire.sock")
    with Serving(uds=path):
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
        by_path = httpx.HTTPTransport(uds=path)
        with httpx.Client(transport=by_path, base_url="http://localhost", timeout=HANG_S) as http:
            assert http.get("/v1/models").status_code == 200
        with pytest.raises(ConfigError, match="a server listens there"):
            bind(ServerConfig(uds=path))
    # What a server that was killed has left is no obstacle; a file that is no socket is.
    bind(ServerConfig(uds=path)).close()
    plain = tmp_path / "file"
    plain.write_text("keep me")
    with pytest.raises(ConfigError, match="no socket"):
        bind(ServerConfig(uds=str(plain)))
    assert plain.read_text() == "keep me"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1"])
def test_this_machine_needs_no_key(host: str) -> None:
    with bind(ServerConfig(host=host, port=0)) as listener:
        check_guard(ServerConfig(), listener)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_whoever_lets_others_in_asks_for_a_key_or_says_so(host: str, tmp_path: Path) -> None:
    with bind(ServerConfig(host=host, port=0)) as listener:
        with pytest.raises(ConfigError, match=r"--api-key-file.*--allow-unauthenticated"):
            check_guard(ServerConfig(), listener)
        with pytest.raises(ConfigError, match="--api-key-file"):
            serve(Config(server=ServerConfig(host=host, port=0)))
        for fields in ({"api_key": "secret-key"}, {"ssl_ca_certs": "ca.pem"}, {"allow_unauthenticated": True}):
            check_guard(ServerConfig(**fields), listener)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    key, cert = str(folder / "key.pem"), str(folder / "cert.pem")
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    words += ["-keyout", key, "-out", cert, "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(words, check=True, capture_output=True)
    return cert, key


@pytest.mark.skipif(not Path("/usr/bin/openssl").exists(), reason="openssl makes the certificate")
def test_tls_while_no_front_end_answers(certificate: tuple[str, str]) -> None:
    cert, key = certificate

    async def scenario() -> None:
        tls = tls_of(ServerConfig(ssl_certfile=cert, ssl_keyfile=key))
        known = ssl.create_default_context(cafile=cert)
        for patience_s in (HANG_S, 0.1):
            with bind(ServerConfig(port=0)) as listener, mock.patch("quire.server.startup.PATIENCE_S", patience_s):
                responder = StartupResponder("", tls)
                await responder.open([listener])
                silent, kept = await asyncio.open_connection(*listener.getsockname())
                if patience_s == HANG_S:
                    reader, writer = await asyncio.open_connection(*listener.getsockname(), ssl=known)
                    writer.write(b"GET /live HTTP/1.1\r\n\r\n")
                    assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
                    writer.close()
                else:
                    # Whoever never shakes hands is not waited for.
                    assert not await asyncio.wait_for(silent.read(), HANG_S)
                kept.close()
                responder.close()

    asyncio.run(scenario())


@pytest.mark.skipif(not Path("/usr/bin/openssl").exists(), reason="openssl makes the certificate")
def test_tls(certificate: tuple[str, str]) -> None:
    cert, key = certificate
    context = ssl.create_default_context(cafile=cert)
    with Serving(ssl_certfile=cert, ssl_keyfile=key) as running:
        with running.http(verify=context) as http:
            assert http.get("/v1/models").status_code == 200
        with httpx.Client(timeout=HANG_S) as plain, pytest.raises(httpx.TransportError):
            plain.get(running.url.replace("https", "http"))
    # With authorities of clients, only those with a certificate of theirs get in.
    with Serving(ssl_certfile=cert, ssl_keyfile=key, ssl_ca_certs=cert) as running:
        with running.http(verify=context) as http, pytest.raises(httpx.TransportError):
            http.get("/v1/models")
        known = ssl.create_default_context(cafile=cert)
        known.load_cert_chain(cert, key)
        with running.http(verify=known) as http:
            assert http.get("/v1/models").status_code == 200


def test_certificates_are_checked_before_anything_starts(tmp_path: Path) -> None:
    empty = tmp_path / "cert.pem"
    empty.write_text("")
    for settings in ({"ssl_certfile": "/none.pem"}, {"ssl_certfile": str(empty)}, {"ssl_keyfile": "/none.pem"}):
        with pytest.raises(ConfigError, match="ssl_certfile"):
            tls_of(ServerConfig(**settings))
    tls_of(ServerConfig())


def test_a_path_of_a_proxy_is_left_out() -> None:
    with Serving(root_path="/llm/", api_key="secret-key") as running, running.http() as http:
        bearer = {"Authorization": "Bearer secret-key"}
        for path in ("/v1/models", "/llm/v1/models"):
            assert http.get(path, headers=bearer).status_code == 200
            assert http.get(path).status_code == 401
        assert http.get("/llm/health").status_code == http.get("/health").status_code == 200
        assert http.get("/llmhealth", headers=bearer).status_code == 404


def test_pages_of_other_origins_may_not_call_unless_they_are_listed() -> None:
    asks = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    with Serving() as running, running.http() as http:
        answer = http.get("/v1/models", headers=asks)
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert http.options("/v1/models", headers=asks).status_code == 405
    origins = "https://page.example, https://b.example"
    with Serving(allowed_origins=origins, api_key="k") as running, running.http() as http:
        answer = http.options("/v1/chat/completions", headers=asks)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://page.example"
        other = http.options("/v1/models", headers={**asks, "Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
        # A refusal can be read by the page that is allowed to.
        assert http.get("/v1/models", headers=asks).headers["access-control-allow-origin"] == "https://page.example"


def test_a_port_is_released_when_binding_fails(tmp_path: Path) -> None:
    made: list[socket.socket] = []

    def make(*given: int) -> socket.socket:
        made.append(socket.socket(*given))
        return made[-1]

    noted = SimpleNamespace(**{**vars(socket), "socket": make})
    with socket.socket() as taken, mock.patch("quire.server.sockets.socket", noted):
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="cannot listen"):
            bind(ServerConfig(port=taken.getsockname()[1]))
        with pytest.raises(ConfigError, match="uds"):
            bind(ServerConfig(uds=str(tmp_path / "none" / "x.sock")))
    assert [each.fileno() for each in made] == [-1, -1]


def test_a_greeting_that_nobody_can_read_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        greet("ready")
        greet("what was left of it is not tried again")
        full.flush()
