"""The executor for one device: the rank is an object in this process, a step is a direct call."""

import gc

import torch

from quire.config.spec import RunSpec
from quire.executors.base import Pending, Progress
from quire.messages.plan import StepPlan
from quire.messages.state import Capacity, Layout
from quire.messages.structured import StructuredOutputsParams
from quire.parallel.mesh import Mesh
from quire.runner.runner import Runner
from quire.structured.matcher import Vocabulary


class InlineExecutor:
    """One rank, in this process."""

    def __init__(self, spec: RunSpec) -> None:
        self._runner: Runner | None = Runner(spec, Mesh())

    @property
    def runner(self) -> Runner:
        """The rank; gone after `stop`."""
        assert self._runner is not None, "the executor was stopped"
        return self._runner

    def load(self, progress: Progress) -> dict[str, str]:
        """Build and load the model."""
        self.runner.load(progress)
        return self.runner.build.provider_names()

    def measure(self) -> Capacity:
        """Run the largest step; what memory it leaves for pages."""
        return self.runner.measure()

    def allocate(self, layout: Layout) -> None:
        """Take pages and record decode steps."""
        self.runner.allocate(layout)
        self.runner.record()

    def step(self, plan: StepPlan) -> Pending:
        """Launch the plan."""
        return self.runner.launch(plan)

    def prepare(self, wanted: StructuredOutputsParams | None, vocabulary: Vocabulary, unused: list[str]) -> None:
        """Compile a grammar, in the caller's thread."""
        self.runner.grammars.prepare(wanted, vocabulary, unused)

    def stop(self) -> None:
        """Drop the model and its pages."""
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        device = runner.device
        # The collector may be kept from what is older than a generation.
        runner.close()
        del runner
        gc.collect()
        if device.type != "cpu":
            torch.get_device_module(device).empty_cache()
