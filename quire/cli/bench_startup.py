"""`quire bench startup`: how long from the start of this process until the engine is ready, and to its first token.

Run it in fresh processes: with empty caches, and again. `ready_at` lets a caller that noted when it started the process
count the start of the interpreter as well.
"""

import os
import time
from pathlib import Path

import psutil

from quire.cli.local import TextModel
from quire.messages.params import SamplingParams
from quire.version import __version__

PROMPT = [1, 2, 3, 4, 5, 6, 7, 8]


def startup(model: TextModel) -> dict[str, object]:
    """The results for `model`, which has become ready just now. Makes one token, to see that it is."""
    ready_at = time.time()
    ready_s = process_age_s()
    started = time.perf_counter()
    params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=1, detokenize=False)
    model.generate([{"prompt_token_ids": PROMPT}], [params], use_tqdm=False)
    return {
        "ready_s": ready_s,
        "ready_at": ready_at,
        "first_token_s": time.perf_counter() - started,
        "timeline": model.facts.timeline,
        "engine": f"quire {__version__}",
    }


def process_age_s() -> float:
    """Seconds since this process was started."""
    status = Path("/proc/self/stat")
    if not status.exists():
        return time.time() - psutil.Process().create_time()
    # psutil adds the boot time, which Linux gives in whole seconds; field 22 of proc(5) counts ticks since the boot.
    ticks = int(status.read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
