"""Steps in which some sequences decode and others read prompts: in two parts, where kernels differ, nothing changes."""

import pytest
import torch

from quire import LLM, SamplingParams
from quire.layers.attention import Attention
from quire.ops.registry import Choice, Sizes
from quire.ops.samples import step_over
from quire.runner.start import start_kernels

pytestmark = pytest.mark.torch


def generate(parts: bool) -> list[list[int]]:
    prompts = [[i + 300, i + 310, 7 * i + 400] * (5 * i + 1) for i in range(6)]
    params = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
    settings = {"num_gpu_blocks_override": 200, "block_size": 4, "max_num_batched_tokens": 16, "max_num_seqs": 6}
    # The CPU provider computes whole layers, parts and all.
    with LLM(dtype="float32", device="cpu", kernels="torch_native", **settings) as llm:
        for module in llm._running().executor.runner.loaded.model.modules():
            if isinstance(module, Attention):
                assert not module._parts, "one provider does all of it on CPUs"
                module._parts = parts
        return [output.outputs[0].token_ids for output in llm.generate(prompts, params)]


def test_parts_change_nothing(monkeypatch):
    seen = []
    mixed = Attention._mixed

    def noted(self, qkv, step):
        assert len(qkv) == len(step.positions)
        seen.append((step.max_query == 1, step.singles))
        return mixed(self, qkv, step)

    monkeypatch.setattr(Attention, "_mixed", noted)
    expected = generate(parts=False)
    assert (False, 3) in seen, "no step had both"
    del seen[:]
    assert generate(parts=True) == expected
    assert (False, 3) not in seen


def test_parts_of_a_step():
    step = step_over([1, 1, 3, 2], [9, 1, 5, 2], [[1, 2, 3], [4], [5, 6], [7]], 4)
    step = type(step)(**{name: getattr(step, name) for name in step.__slots__} | {"singles": 2, "derived": {}})
    singles, others = step.parts()
    assert singles.positions.tolist() == [8, 0] and others.positions.tolist() == [2, 3, 4, 0, 1]
    assert singles.query_start.tolist() == [0, 1, 2] and others.query_start.tolist() == [0, 3, 5]
    assert singles.seq_lens.tolist() == [9, 1] and others.seq_lens.tolist() == [5, 2]
    assert singles.max_query == 1 and others.max_query == 3
    assert others.groups[0].page_table[:, 0].tolist() == [5, 7]
    assert torch.equal(others.groups[0].slots, step.groups[0].slots[2:])
    assert step.parts()[0] is singles, "worked out once"


def test_what_kernels_make_is_made_once_and_its_errors_are_raised():
    made = []

    def start(spec, sizes):
        made.append((spec, sizes.length))
        if spec == "bad":
            raise ValueError("no plan")

    def choice(*specs):
        return Choice("op", "x", start, {}, starts=tuple((start, spec) for spec in specs))

    sizes = Sizes(tokens=8, length=32, page_size=4)
    start_kernels([choice("a"), choice(), choice("a", "b")], sizes).result()
    assert made == [("a", 32), ("b", 32)]
    with pytest.raises(ValueError, match="no plan"):
        start_kernels([choice("bad")], sizes).result()
