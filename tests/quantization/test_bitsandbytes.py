"""bitsandbytes checkpoints, written here after their published layout."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from quire.quantization.elements import NF4
from tests.quantization.checkpoints import check, inner, write

pytestmark = pytest.mark.torch
Made = tuple[dict[str, Tensor], Tensor]
TABLE = torch.tensor(NF4)


def nf4(weight: Tensor, nested: bool) -> Made:
    blocks = weight.reshape(-1, 64)
    stored = absmax = blocks.abs().amax(1)
    tensors: dict[str, Tensor] = {}
    told: dict[str, object] = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": list(weight.shape)}
    if nested:
        offset, table = float(absmax.mean()), torch.linspace(-1, 1, 256)
        largest = torch.stack([part.abs().max() for part in (absmax - offset).split(256)])
        each = largest.repeat_interleave(256)[: len(absmax)]
        numbers = ((absmax - offset) / each)[:, None].sub(table).abs().argmin(1)
        stored, absmax = numbers.to(torch.uint8), table[numbers] * each + offset
        tensors = {"weight.nested_absmax": largest, "weight.nested_quant_map": table}
        told |= {"nested_blocksize": 256, "nested_offset": offset, "nested_dtype": "float32"}
    codes = ((blocks / absmax[:, None])[..., None] - TABLE).abs().argmin(-1).flatten()
    return {
        **tensors,
        "weight": (codes[0::2] * 16 + codes[1::2]).to(torch.uint8)[:, None],
        "weight.absmax": stored,
        "weight.quant_map": TABLE.clone(),
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8),
    }, (TABLE[codes].view(-1, 64) * absmax[:, None]).view(weight.shape)


@pytest.mark.parametrize(("nested", "kept"), [(False, torch.uint8), (True, torch.uint8), (True, torch.bfloat16)])
def test_nf4(nested: bool, kept: torch.dtype, tmp_path: Path) -> None:
    """`kept` is the type that bytes are put in (`bnb_4bit_quant_storage`), which trainers choose to shard them."""

    def writer(module: str, weight: Tensor) -> Made | None:
        if not inner(module):
            return None
        tensors, values = nf4(weight, nested)
        return {**tensors, "weight": tensors["weight"].view(-1).view(kept)[:, None]}, values

    check(*write(tmp_path, {"quant_method": "bitsandbytes", "load_in_4bit": True}, writer))


def test_int8(tmp_path: Path) -> None:
    def writer(module: str, weight: Tensor) -> Made | None:
        if not inner(module):
            return None
        largest = weight.abs().amax(1)
        codes = (weight * 127 / largest[:, None]).round().to(torch.int8)
        tensors = {"weight": codes, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
        return tensors, codes.float() * (largest / 127)[:, None]

    check(*write(tmp_path, {"quant_method": "bitsandbytes", "load_in_8bit": True}, writer))
