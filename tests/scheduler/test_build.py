"""What a scheduler is told of the engine around it."""

from pathlib import Path

import msgspec
import pytest

from quire.config.fields import DeviceConfig, EngineConfig, LogConfig, SchedulerConfig
from quire.config.resolve import resolve
from quire.messages.state import GroupLayout, Layout, StateSpec
from quire.scheduler.build import make
from tests.config.facts import CPU, GPU, model

pytestmark = pytest.mark.plain

LAYOUT = Layout([GroupLayout(StateSpec(8), 1, 64, 100)], 2048)


def recorded_tokens(
    config: EngineConfig, *, device=GPU, recordable: bool = True, max_model_len: int = LAYOUT.max_model_len
) -> int:
    layout = msgspec.structs.replace(LAYOUT, max_model_len=max_model_len)
    return make(resolve(config, model(), device), layout, recordable).limits.recorded_tokens


def test_a_step_takes_as_many_tokens_of_prompts_as_the_largest_that_is_recorded(tmp_path: Path) -> None:
    assert recorded_tokens(EngineConfig()) == 1024
    assert recorded_tokens(EngineConfig(scheduler=SchedulerConfig(max_num_batched_tokens=700))) == 640
    # What no sequence is long enough for is not recorded.
    assert recorded_tokens(EngineConfig(), max_model_len=768) == 640
    assert recorded_tokens(EngineConfig(), max_model_len=769) == 768
    logged = EngineConfig(log=LogConfig(event_log=str(tmp_path / "events")))
    assert recorded_tokens(logged) == 1024 and (tmp_path / "events").exists()


def test_prompts_share_a_step_as_they_come_where_none_is_recorded() -> None:
    assert not recorded_tokens(EngineConfig(), recordable=False)
    assert not recorded_tokens(EngineConfig(device=DeviceConfig(enforce_eager=True)))
    assert not recorded_tokens(EngineConfig(), device=CPU)
