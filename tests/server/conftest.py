"""One server for all tests that leave it as it was."""

from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.server.serving import Serving


@pytest.fixture(scope="package")
def serving() -> Iterator[Serving]:
    with Serving() as running:
        yield running


@pytest.fixture(scope="package")
def client(serving: Serving) -> Iterator[openai.OpenAI]:
    with serving.client() as client:
        yield client


@pytest.fixture(scope="package")
def http(serving: Serving) -> Iterator[httpx.Client]:
    with serving.http() as http:
        yield http
