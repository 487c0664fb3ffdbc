"""What chosen kernels make before the first step, such as plans: in a thread of its own, while weights load."""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from quire.ops.registry import Choice, Sizes


def start_kernels(choices: Iterable[Choice], sizes: Sizes) -> Future[None]:
    """Begin; the future's result raises what a kernel raised. Layers that are alike share what is made."""
    jobs = dict.fromkeys(job for choice in choices for job in choice.starts)

    def run() -> None:
        for start, spec in jobs:
            start(spec, sizes)

    thread = ThreadPoolExecutor(1, "quire-kernels")
    started = thread.submit(run)
    thread.shutdown(wait=False)
    return started
