"""`quire bench startup`: how long from the start of this process until the engine is ready, and to its first token.

Run it in fresh processes: with empty caches, and again. `ready_at` lets a caller that noted when it started the process
count the start of the interpreter as well.
"""

import time

from quire.base.age import process_age_s
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
