"""`Loaded`: a rank's model with its weights, and the ops around it. Made once, by the runner."""

import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace

from torch import Tensor

from quire import loading, models
from quire.config.spec import RunSpec
from quire.layers.build import Build
from quire.models import Model
from quire.ops.greedy import greedy_sample
from quire.ops.inputs import step_inputs
from quire.ops.registry import Sizes
from quire.ops.rows import append_tokens
from quire.ops.step import StepInputs
from quire.parallel.mesh import Mesh
from quire.runner.start import start_kernels
from quire.sampling.kernels import Kernels, choose_kernels

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the bytes read so far and in all, while weights load."""


@dataclass(frozen=True, slots=True)
class StepOps:
    """Ops before and behind the model, by whom the platform chose.

    Attributes:
        make_inputs, draw_greedy, append_tokens: `step_inputs`, `greedy_sample`, `append_tokens`.
        sampling: what the sampler is made of.
    """

    make_inputs: Callable[..., StepInputs]
    draw_greedy: Callable[[Tensor], Tensor]
    append_tokens: Callable[[Tensor, Tensor, Tensor, Tensor], None]
    sampling: Kernels


@dataclass(frozen=True, slots=True)
class Loaded:
    """The model, with its weights, and the ops around it."""

    model: Model
    ops: StepOps


def choose_ops(build: Build, spec: RunSpec) -> StepOps:
    """The ops around the model; providers are imported already."""
    return StepOps(
        build.op(step_inputs, None),
        build.op(greedy_sample, None),
        build.op(append_tokens, None),
        choose_kernels(spec.platform.providers, spec.deterministic),
    )


def load_model(spec: RunSpec, mesh: Mesh, build: Build, progress: Progress) -> Model:
    """Build the model and fill its weights. Raises CheckpointError."""
    dummy = spec.load_format == "dummy"
    checkpoint = loading.opened(spec.facts, build.device, spec.quantization, dummy=dummy)
    build = replace(build, checkpoint=checkpoint.quantized, quantization=checkpoint.online)
    if not dummy and models.is_own(spec.facts, spec.model_impl):
        # What does not fit is found before it has taken the device's memory.
        imagined = models.build(spec.facts, build.imagined(), spec.model_impl)
        loading.check(loading.weights_of(imagined), checkpoint)
    model = models.build(spec.facts, build, spec.model_impl, trust_remote_code=spec.trust_remote_code)
    started = _start_kernels(spec, build)
    if dummy:
        loading.fill_dummy(model, spec.seed, mesh)
    else:
        loading.load(model, checkpoint, mesh, progress)
    started.result()
    for note in [] if checkpoint.quantized is None or mesh.rank else checkpoint.quantized.notes():
        logger.warning("%s", note)
    return model


def _start_kernels(spec: RunSpec, build: Build) -> Future[None]:
    return start_kernels(build.choices, Sizes(spec.max_num_batched_tokens, spec.max_model_len, spec.page_size))
