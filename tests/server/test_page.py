"""The page at `/`: public, one file, nothing from elsewhere, and a policy that the file itself keeps."""

import base64
import hashlib
import re

import httpx
import pytest

from tests.server.serving import Serving

pytestmark = pytest.mark.plain


def test_the_page_is_public_and_asks_nobody_else() -> None:
    with Serving(api_key="k") as server, server.http() as http:
        answer = http.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert not re.search(r"(?:src|href)\s*=\s*\"(?!data:)|https?://|@import|url\(", answer.text)


def test_the_policy_admits_the_script_and_nothing_else(http: httpx.Client) -> None:
    answer = http.get("/")
    policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    script = re.search(r"<script>(.*?)</script>", answer.text, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert policy["script-src"] == f"'sha256-{digest}'"
    assert (policy["default-src"], policy["connect-src"]) == ("'none'", "'self'")
    # Attributes with code or style would be refused by the policy.
    assert not re.search(r"\s(?:on\w+|style)=\"", answer.text)
