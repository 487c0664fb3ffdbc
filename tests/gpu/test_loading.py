"""Weights reach a GPU unchanged: slices over rows and columns, converted or not, through slots that are used again."""

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

if torch.cuda.is_available():
    from quire.loading import fill_dummy, load, reader, staging
    from quire.loading.recipe import Weight
    from quire.parallel.mesh import Mesh
    from tests.loading.test_load import Tiny, tensors, write


def on_gpu(model):
    """`model` with its parameters on the GPU; `Module.cuda` would lose their recipes."""
    for name, weight in list(model.named_parameters()):
        model.register_parameter(name, Weight(weight.data.cuda(), weight.recipe))
    return model


@pytest.mark.parametrize("block_bytes", [24, 1 << 20])
@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float64"])
def test_a_gpu_gets_what_the_host_gets(tmp_path, monkeypatch, stored, block_bytes):
    monkeypatch.setattr(reader, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(staging, "BLOCK_BYTES", block_bytes)
    found = write(tmp_path, {name: value.to(getattr(torch, stored)) for name, value in tensors().items()})
    for rank in range(2):
        mesh = Mesh(rank, 2)
        host = Tiny(mesh)
        load(host, found, mesh)
        device = on_gpu(Tiny(mesh))
        load(device, found, mesh)
        for ours, theirs in zip(device.parameters(), host.parameters(), strict=True):
            assert torch.equal(ours.cpu(), theirs)


def test_dummy_weights_are_those_of_the_host():
    host, device = Tiny(Mesh()), on_gpu(Tiny(Mesh()))
    for model in (host, device):
        fill_dummy(model, 5, Mesh())
    for ours, theirs in zip(device.parameters(), host.parameters(), strict=True):
        assert torch.equal(ours.cpu(), theirs)
