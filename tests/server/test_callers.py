"""What the key of a request decides: in whose name it waits, and whether it may set a priority."""

from pathlib import Path

import pytest

from tests.server.serving import Serving

pytestmark = pytest.mark.plain

MODEL = "org/fake-model"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
BODIES = {
    "/v1/completions": {"model": MODEL, "prompt": "a", "max_tokens": 2},
    "/v1/chat/completions": CHAT,
    "/v1/responses": {"model": MODEL, "input": "a", "max_output_tokens": 2},
    "/v1/messages": CHAT,
}


@pytest.mark.parametrize("path", BODIES)
def test_every_entrance_names_the_caller_and_guards_priorities(path: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text("- {key: key-of-team-a, name: a}\n- {key: key-of-team-b, name: b, priority: true}\n")
    with Serving(api_key_file=str(keys)) as running, running.http() as http:
        for key, priority, status in (("a", None, 200), ("a", 3, 403), ("a", 0, 200), ("b", 3, 200)):
            body = BODIES[path] | ({} if priority is None else {"priority": priority})
            answer = http.post(path, json=body, headers={"Authorization": f"Bearer key-of-team-{key}"})
            assert answer.status_code == status, answer.text
        assert answer.json().get("error") is None
        assert running.engine.owners == ["a", "a", "b"]
        assert running.engine.priorities == [0, 0, 3]


@pytest.mark.parametrize("path", BODIES)
def test_tenants_share_no_prefixes_unless_they_have_one_name(path: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text(
        "- {key: key-of-team-a, name: a}\n- {key: key-of-team-b, name: b}\n- {key: key-two-of-b, name: b}\n"
    )
    with Serving(api_key_file=str(keys)) as running, running.http() as http:
        for salt in ({}, {"cache_salt": "x"}):
            for key in ("key-of-team-a", "key-of-team-b", "key-two-of-b"):
                headers = {"Authorization": f"Bearer {key}"}
                assert http.post(path, json=BODIES[path] | salt, headers=headers).status_code == 200
        too_long = BODIES[path] | {"cache_salt": "x" * 129}
        assert http.post(path, json=too_long, headers={"Authorization": "Bearer key-of-team-a"}).status_code == 400
    a, b, b_too, a_salted, b_salted, _ = running.engine.salts
    assert b == b_too
    assert len({a, b, a_salted, b_salted, ""}) == 5
    with Serving(api_key="the-only-key") as running, running.http() as http:
        http.post(path, json=BODIES[path], headers={"Authorization": "Bearer the-only-key"})
    assert running.engine.salts == [""]


@pytest.mark.parametrize("path", BODIES)
def test_a_flood_is_refused_before_its_texts_are_read(path: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text("- {key: key-of-team-a, name: a}\n- {key: key-of-team-b, name: b}\n")
    long = {"prompt": "a" * 9999, "input": "a" * 9999, "messages": [{"role": "user", "content": "a" * 9999}]}
    body = BODIES[path] | {name: text for name, text in long.items() if name in BODIES[path]}
    with Serving(api_key_file=str(keys)) as running, running.http() as http:
        with running.service.admission.enter(9999, 0, "a"):
            a, b = (http.post(path, json=body, headers={"Authorization": f"Bearer key-of-team-{key}"}) for key in "ab")
        assert a.status_code in (503, 529) and b.status_code == 400, (a.text, b.text)


def test_without_keys_everybody_is_one_caller_and_may() -> None:
    with Serving() as running, running.http() as http:
        body = BODIES["/v1/completions"] | {"priority": 3}
        assert http.post("/v1/completions", json=body, headers={"Authorization": "Bearer any"}).status_code == 200
        assert (running.engine.owners, running.engine.priorities) == ([""], [3])
