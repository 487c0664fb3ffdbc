"""The page at `/`: a chat and the meters of this server, one file without a build step and without outside hosts.

The page is public, what it asks for is not: it sends the key that its reader types.
"""

import base64
import functools
import hashlib
import re
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response


async def page(request: Request) -> Response:
    """The page, with a policy that lets it run its own script and speak to this server only."""
    content, policy = _page()
    headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache", "Referrer-Policy": "no-referrer"}
    return Response(content, media_type="text/html; charset=utf-8", headers=headers)


@functools.cache
def _page() -> tuple[bytes, str]:
    content = files("quire").joinpath("assets/page/index.html").read_bytes()
    script, style = _digest("script", content), _digest("style", content)
    rules = f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:"
    return content, rules + "; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def _digest(tag: str, content: bytes) -> str:
    """What the policy calls the one element `tag` of the page."""
    found = re.findall(rb"<%b>(.*?)</%b>" % (tag.encode(), tag.encode()), content, re.DOTALL)
    assert len(found) == 1, f"the page has {len(found)} elements {tag}"
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[0]).digest()).decode()}'"
