"""A front end as the server's own, with the patience of tests: `mortal.py` has it run in place of that one."""

import faulthandler
import sys
from functools import partial

from quire.server import front, listen, peers
from tests.waiting import HANG_S

if __name__ == "__main__":
    front.JOIN_S = listen.GOODBYE_S = HANG_S
    # Longer than the supervisor of `mortal.py` waits for the others.
    peers.PATIENCE_S = 2 * HANG_S
    # One that is asked what it does has hung: it says so and ends, and nobody need wait for it.
    faulthandler.register = partial(faulthandler.register, chain=True)
    sys.exit(front.main())
