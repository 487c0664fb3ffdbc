"""Lives simulated lives; what fails is told by its seed, the first failure is shrunk and shown.

    python -m tests.simulation SEED | FIRST-LAST [--processes 12] [--minutes 9]

Several processes share the seeds. After so many minutes no further ones are begun; the last line says how far all have
been lived.
"""

import argparse
import logging
import multiprocessing
import sys
import time
from functools import partial

from tests.simulation.scenario import generate
from tests.simulation.shrink import failure, shrunk, story

SLICE = 20
"""Seeds that a process lives between two looks at the clock."""


def live(until: float, seeds: range) -> int:
    """Live `seeds` and print what fails; how many failed, or -1 if it is later than `until`."""
    if time.monotonic() > until:
        return -1
    logging.disable()
    errors = {seed: failure(generate(seed)) for seed in seeds}
    failed = {seed: error for seed, error in errors.items() if error is not None}
    for seed, error in failed.items():
        print(f"seed {seed}: {error}", flush=True)
    for seed, error in [*failed.items()][:1]:
        print(story(shrunk(generate(seed), error)), flush=True)
    return len(failed)


def main() -> int:
    """Live the seeds that are asked for; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e9)
    given = parser.parse_args()
    first, _, last = given.seeds.partition("-")
    seeds = range(int(first), int(last or int(first) + 1))
    slices = [seeds[start : start + SLICE] for start in range(0, len(seeds), SLICE)]
    began = time.monotonic()
    with multiprocessing.Pool(given.processes) as pool:
        # In order, so that what was lived when the time is over has no gaps.
        failed = pool.map(partial(live, began + 60 * given.minutes), slices, chunksize=1)
    lived = [part for part, count in zip(slices, failed, strict=True) if count >= 0]
    wrong = sum(count for count in failed if count > 0)
    end = lived[-1].stop if lived else seeds.start
    print(
        f"seeds {seeds.start} to {end}: {sum(map(len, lived))} lives, {wrong} failed, {time.monotonic() - began:.1f} s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
