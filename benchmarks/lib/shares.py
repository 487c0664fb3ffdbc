"""Kernels of a benchmark, compiled by several processes first: each runs the script for a share of its cases."""

import argparse
import subprocess
import sys


def add_flags(parser: argparse.ArgumentParser) -> None:
    """`--compile-ahead`, and `--share`, by which a script calls itself: 1 is the first share, 0 the whole."""
    parser.add_argument("--compile-ahead", type=int, default=0, metavar="PROCESSES")
    parser.add_argument("--share", type=int, default=0, help=argparse.SUPPRESS)


def compile_ahead(args: argparse.Namespace) -> None:
    """Run all shares at once, and wait for them, where that is asked for and this is none of them."""
    if not args.compile_ahead or args.share:
        return
    command = [sys.executable, *sys.argv]
    shares = [subprocess.Popen([*command, "--share", str(i + 1)]) for i in range(args.compile_ahead)]
    for share in shares:
        share.wait()
