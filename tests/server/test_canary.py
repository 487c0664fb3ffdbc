"""Every bad input on a real server, beside a canary that must not notice. See `liveness`."""

import httpx
import pytest

from tests.server.cases import ALL
from tests.server.liveness import toy_server, watched
from tests.server.test_bad_input import check

pytestmark = pytest.mark.multi


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with toy_server(tmp_path_factory.mktemp("toy")) as running:
        yield running


def test_bad_input_of_all_kinds(served):
    wrong = []
    with watched(served), httpx.Client(base_url=served.url, timeout=60) as client:
        for case in ALL:
            try:
                check(client, case)
            except AssertionError as error:
                wrong.append(f"{case.path} {case.name[:60]}: {error}")
    assert not wrong, "\n".join(wrong)
