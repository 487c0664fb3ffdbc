"""Asks a child process about torch, so that a torch that raises, hangs or kills its process harms nobody else."""

import signal
import subprocess

import msgspec

from quire.base.interpreter import python
from quire.messages.survey import Survey, Trouble

TIMEOUT_S = 120.0
REINSTALL = "pip install --force-reinstall torch"


def ask(device: str = "auto", kernels: str = "auto", timeout_s: float = TIMEOUT_S) -> Survey:
    """What a process with torch finds for the device and kernels; whatever happens to it, there is a Survey."""
    command = [*python(), "-m", "quire.engine.survey", device, kernels]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return _trouble(f"torch did not answer in {timeout_s:g} s while it was imported or looked for devices.")
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return _trouble(f"Importing torch ended its process ({_ending(done.returncode)}){_last_words(done.stderr)}.")
    try:
        return msgspec.json.decode(lines[-1], type=Survey)
    except msgspec.DecodeError:
        return _trouble(f"torch's process said something else than it should: {lines[-1][:200]!r}.")


def _trouble(what: str) -> Survey:
    return Survey(troubles=[Trouble(what, REINSTALL)])


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _last_words(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return f": {lines[-1]}" if lines else ""
