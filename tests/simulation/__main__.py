"""Lives simulated lives: `python -m tests.simulation SEED` or `FIRST-LAST`; the first failure is shrunk and shown."""

import logging
import sys
import time

from tests.simulation.scenario import generate
from tests.simulation.shrink import failure, shrunk, story


def main(argument: str) -> int:
    """Live the seeds of `argument`; 1 if one failed."""
    logging.disable()
    first, _, last = argument.partition("-")
    seeds = range(int(first), int(last or int(first) + 1))
    began, failed = time.monotonic(), 0
    for seed in seeds:
        scenario = generate(seed)
        error = failure(scenario)
        if error is not None:
            failed += 1
            print(f"seed {seed}: {error}", flush=True)
            if len(seeds) == 1 or failed == 1:
                print(story(shrunk(scenario, error)))
    print(f"{len(seeds)} lives, {failed} failed, {time.monotonic() - began:.1f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
