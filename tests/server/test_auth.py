"""Keys: made from the table of routes, so that a new route is tested the day it is added."""

from pathlib import Path

import httpx
import pytest

from quire.base.errors import ConfigError
from quire.config.fields import ServerConfig
from quire.server.app import ROUTES
from quire.server.keys import Caller, Entry, Keys, keys_of
from tests.server.plain_bytes import talk
from tests.server.serving import Serving

pytestmark = pytest.mark.plain

KEY = "sk-a secret-ü"
PUBLIC = {"/", "/health", "/live", "/ready", "/ping"}
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")


@pytest.fixture(scope="module")
def guarded():
    with Serving(api_key=KEY) as running, running.http() as http:
        yield http


def bearer(key: str, scheme: str = "Bearer") -> dict[bytes, bytes]:
    return {b"authorization": f"{scheme} {key}".encode()}


def paths() -> list[str]:
    return [route.path.replace("{model:path}", "org/fake-model") for route in ROUTES]


def test_only_these_are_public() -> None:
    assert {route.path for route in ROUTES if route.public} == PUBLIC


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", sorted(set(paths()) - PUBLIC))
def test_every_other_route_asks_for_a_key(guarded: httpx.Client, path: str, method: str) -> None:
    answer = guarded.request(method, path)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    if method != "HEAD":
        error = answer.json()["error"]
        assert error["type"] == "authentication_error"
        assert "x-api-key" in error["message"]
        assert error.get("code", "invalid_api_key") == "invalid_api_key"


@pytest.mark.parametrize("path", sorted(PUBLIC))
def test_public_routes_do_not(guarded: httpx.Client, path: str) -> None:
    assert guarded.get(path).status_code == 200
    assert guarded.head(path).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/v1/../metrics",
            "//v1/models",
            "/v1%2fmodels",
            "/v1/models/",
            "/health/",
            "/health/../metrics",
            "/health%2f",
        ),
        *(
            "/HEALTH",
            "/health;/metrics",
            "/health%00",
            "/nothing",
            "//",
            "/docs",
            "/openapi.json",
            "/metrics?x=/health",
        ),
    ],
)
def test_no_spelling_of_a_path_gets_around_it(guarded: httpx.Client, path: str) -> None:
    url = httpx.URL(str(guarded.base_url).rstrip("/")).copy_with(raw_path=path.encode())
    for host in ({}, {"host": "evil/health"}, {"host": "127.0.0.1"}):
        answer = guarded.send(guarded.build_request("GET", url, headers=host))
        assert answer.status_code == 401
        assert "quire:" not in answer.text


@pytest.mark.parametrize(
    "headers",
    [
        bearer(KEY[:-1]),
        bearer(KEY[:-1] + "x"),
        bearer("x" + KEY[1:]),
        bearer(KEY + "x"),
        bearer(KEY.upper()),
        bearer(KEY, "Basic"),
        {b"authorization": KEY.encode()},
        {b"authorization": b"Bearer"},
        {b"authorization": b"\xff\xfe"},
        {b"x-api-key": KEY[:-1].encode()},
        {b"x-api-key": b"Bearer " + KEY.encode()},
        {b"cookie": b"key=" + KEY.encode()},
    ],
)
def test_wrong_keys(guarded: httpx.Client, headers: dict[bytes, bytes]) -> None:
    answer = guarded.get("/v1/models", headers=list(headers.items()))
    assert answer.status_code == 401
    assert "secret" not in answer.text


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_right_key(guarded: httpx.Client, scheme: str) -> None:
    answer = guarded.get("/v1/models", headers=list(bearer(KEY, scheme).items()))
    assert answer.status_code == 200, answer.text


def test_the_right_key_as_anthropics_clients_send_it(guarded: httpx.Client) -> None:
    assert guarded.get("/v1/models", headers=[(b"x-api-key", KEY.encode())]).status_code == 200
    both = [(b"authorization", b"Bearer another"), (b"x-api-key", KEY.encode())]
    assert guarded.get("/v1/models", headers=both).status_code == 200


def test_the_right_key_in_the_wrong_place_is_not_found(guarded: httpx.Client) -> None:
    answer = guarded.get("/nothing", headers=list(bearer(KEY).items()))
    assert answer.status_code == 404


def test_the_official_client_with_a_key() -> None:
    with Serving(api_key="sk-plain") as running, running.client() as client:
        assert [model.id for model in client.models.list()] == ["org/fake-model"]


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    path = tmp_path / "keys.yaml"
    path.write_text("- plain-key-1\n- {key: named-key-2, name: team, priority: true}\n")
    return str(path)


def test_keys_from_a_file(key_file: str) -> None:
    with Serving(api_key=KEY, api_key_file=key_file) as running, running.http() as http:
        for key in (KEY, "plain-key-1", "named-key-2"):
            assert http.get("/v1/models", headers=bearer(key)).status_code == 200
        for key in ("plain-key-2", "team", "x"):
            assert http.get("/v1/models", headers=bearer(key)).status_code == 401


def test_what_keys_allow(key_file: str) -> None:
    keys = keys_of(ServerConfig(api_key=KEY, api_key_file=key_file))
    assert keys is not None
    found = [keys.find([key.encode()]) for key in (KEY, "plain-key-1", "named-key-2")]
    assert [caller and caller.may_prioritize for caller in found] == [True, False, True]
    assert found[2] == Caller("team", True, "team")
    assert found[1] is not None and "plain" not in found[1].name
    assert keys_of(ServerConfig()) is None


@pytest.mark.parametrize("text", ["", "[]", "key: x", "- {key: abcdefgh, colour: red}", "- short", "- [", "- 12345678"])
def test_a_bad_key_file_is_named_and_not_quoted(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="api_key_file") as caught:
        keys_of(ServerConfig(api_key_file=str(path)))
    assert "abcdefgh" not in str(caught.value) and "short'" not in str(caught.value)


def test_a_whole_url_as_target_is_only_its_path() -> None:
    with Serving(api_key="sk-plain-key") as running:
        for target, status in ((b"/metrics", 401), (b"/health", 200), (b"/health/../metrics", 401)):
            request = b"GET http://health%b HTTP/1.1\r\nHost: health\r\nConnection: close\r\n\r\n" % target
            assert b" %d " % status in talk(running, request).partition(b"\r\n")[0]


def test_all_keys_are_compared_whatever_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr("quire.server.keys.hmac.compare_digest", compare)
    keys = Keys([Entry("first-key"), Entry("second-key"), Entry("third-key")])
    for sent in (b"first-key", b"first-kex", b"xirst-key", b"third-key", b"", b"x" * 10_000):
        compared.clear()
        keys.find([sent])
        assert compared == [(32, 32)] * 3, "only digests are compared, and always all of them"
