"""The files of deploy/ as far as they can be read here: they parse, and what they name exists."""

import configparser
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from quire.cli.main import COMMANDS
from quire.config.environ import settings, variable
from quire.config.fields import SECTIONS
from quire.server.app import ROUTES
from quire.server.metrics import Metrics
from tests.server.fake_engine import FakeEngine

pytestmark = pytest.mark.plain

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PATHS = {route.path for route in ROUTES}


def known_variables(text: str) -> None:
    for name in re.findall(r"QUIRE_[A-Z0-9_]+", text):
        if name not in ("QUIRE_API_KEY",):
            assert settings({name: "1"}), f"{name} is no setting"


@pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile.cuda"])
def test_dockerfiles(name: str) -> None:
    text = (DEPLOY / name).read_text()
    lines = text.replace("\\\n", " ").splitlines()
    steps = [line.split(" ", 1) for line in lines if line and not line.startswith("#")]
    known = "FROM ARG RUN WORKDIR COPY ENV USER VOLUME EXPOSE HEALTHCHECK ENTRYPOINT"
    assert {word for word, _ in steps} <= set(known.split())
    copied = [shlex.split(rest)[:-1] for word, rest in steps if word == "COPY" and "--from" not in rest]
    assert copied and all((ROOT / path).exists() for paths in copied for path in paths)
    # Everything that setup reads is copied.
    assert {"pyproject.toml", "setup.py", "native", "quire"} <= {path for paths in copied for path in paths}
    assert json.loads(dict(steps)["ENTRYPOINT"]) == ["quire", "serve"] and "serve" in COMMANDS
    assert [rest for word, rest in steps if word == "USER"] == ["quire"]
    (probe,) = re.findall(r"127.0.0.1:8000(/\w+)", text)
    assert probe in PATHS
    known_variables(text)


def test_compose() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    composed = yaml.safe_load(text)
    quire = composed["services"]["quire"]
    assert (DEPLOY / quire["build"]["context"] / quire["build"]["dockerfile"]).resolve().exists()
    for config in composed["configs"].values():
        yaml.safe_load(config["content"])
    assert quire["ports"][0].startswith("127.0.0.1:")
    known_variables(text)


def test_kubernetes() -> None:
    text = (DEPLOY / "kubernetes.yaml").read_text()
    deployment, service = yaml.safe_load_all(text)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in PATHS
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    drain = next(int(e["value"]) for e in container["env"] if e["name"] == variable("server", "shutdown_timeout_s"))
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > drain
    known_variables(text)


def test_systemd() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "quire.service")
    command = shlex.split(unit["Service"]["ExecStart"])
    assert Path(command[0]).name == "quire" and command[1] in COMMANDS
    assert unit["Service"]["Type"] == "notify"
    default = next(
        f.default for f in SECTIONS["server"].__dataclass_fields__.values() if f.name == "shutdown_timeout_s"
    )
    assert int(unit["Service"]["TimeoutStopSec"]) > default


def test_the_dashboard_asks_for_series_that_exist() -> None:
    engine = FakeEngine()
    metrics = Metrics(engine, "m", [])
    metrics.answered("/x", "GET", 200)
    shown = set(re.findall(r"^([a-z0-9_:]+?)(?:\{|\s)", metrics.render().decode(), re.MULTILINE))
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = {name for expression in expressions for name in re.findall(r"quire:[a-z_0-9]+", expression)}
    assert len(expressions) > 10 and asked <= shown
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
