"""`make`: a scheduler from the resolved spec and the layout. Called once by the engine core."""

from quire.config.spec import RunSpec
from quire.messages.state import Layout
from quire.scheduler.events import RecordedScheduler
from quire.scheduler.limits import Limits
from quire.scheduler.scheduler import Scheduler


def make(spec: RunSpec, layout: Layout, recordable: bool) -> Scheduler:
    """The scheduler of an engine; with `event_log` set, one that writes down everything that happens to it.

    Where ranks can record steps (`recordable`), they have recorded those that `spec` wishes for.
    """
    pooling = spec.facts.pooling
    recorded = spec.recorded_tokens(layout.max_model_len) if recordable else []
    limits = Limits(
        max_num_seqs=spec.max_num_seqs,
        max_num_batched_tokens=spec.max_num_batched_tokens,
        max_preemptions=spec.max_preemptions,
        watermark=spec.watermark,
        policy=spec.policy,
        itl_target_s=spec.itl_target_s,
        prefix_caching=spec.enable_prefix_caching,
        whole=pooling is not None and pooling.whole,
        recorded_tokens=max(recorded, default=0),
    )
    if spec.event_log is not None:
        return RecordedScheduler(limits, layout, spec.event_log, seed=spec.seed)
    return Scheduler(limits, layout, seed=spec.seed)
