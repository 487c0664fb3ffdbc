"""Device time of calls within a recorded graph, as an engine replays them."""

import statistics
from collections.abc import Callable, Sequence

import torch


def microseconds(calls: Sequence[Callable[[], object]], replays: int = 15) -> float:
    """Median over replays of the time of one call, where all of `calls` are recorded one after another.

    Several calls on memory of their own, together more than caches hold, show what memory gives.
    """
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(replays + 3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1000 / len(calls))
    return statistics.median(times[3:])
