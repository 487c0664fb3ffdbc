"""A stand-in for a compiler, which makes files at once."""

from pathlib import Path


def stand_in(folder: Path) -> str:
    """A command that leaves an empty file where `-o` says, and notes its name in `folder`/made; for CXX."""
    script = folder / "compiler"
    script.write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\n: > "$2"\necho "$2" >> {folder}/made\n')
    script.chmod(0o755)
    return str(script)
