"""The files of deploy/ read by their own tools: nix-instantiate (Debian: nix-bin) and systemd-analyze (systemd)."""

import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.extras

DEPLOY = Path(__file__).parents[2] / "deploy"


def test_the_nixos_module_parses() -> None:
    subprocess.run(["nix-instantiate", "--parse", DEPLOY / "nixos.nix"], check=True, capture_output=True)


def test_systemd_knows_every_line_of_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "quire.service"
    # The command is checked to exist; any that does will do here.
    unit.write_text((DEPLOY / "quire.service").read_text().replace("/opt/quire/bin/quire", "/bin/true"))
    said = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert (said.returncode, said.stderr) == (0, "")
