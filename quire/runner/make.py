"""`make_runner`: the runner that a spec needs. Called by the executors."""

from quire.config.spec import RunSpec
from quire.parallel.mesh import Mesh
from quire.runner.pooling import PoolingRunner
from quire.runner.runner import Runner


def make_runner(spec: RunSpec, mesh: Mesh) -> Runner:
    """A rank that generates, or one that pools."""
    return Runner(spec, mesh) if spec.facts.pooling is None else PoolingRunner(spec, mesh)
