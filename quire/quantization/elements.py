"""The small number types of quantized weights: one descriptor each, codes in bytes, and codes as float32 values.

A code is a natural number below 2 ** bits; a type is the table of what its codes stand for. Codes are packed as one
stream of bits along a row, the first code in the lowest bits, so that 8 codes always end with a byte.
Works on any device. Formats, storages and tests use it; it knows no file and no kernel.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

LEAST_BITS, MOST_BITS = 2, 8


@dataclass(frozen=True, slots=True)
class Element:
    """A type of `bits` bits a value.

    Attributes:
        name: as forms spell it, such as "int4", "uint4b8" (code - 8), "fp4_e2m1", "nf4".
        values: what each code stands for, 2 ** bits numbers; NaN where a code is none.
    """

    name: str
    bits: int
    values: tuple[float, ...]

    @property
    def largest(self) -> float:
        """The largest finite magnitude."""
        return max(abs(value) for value in self.values if abs(value) < float("inf"))

    def decode(self, codes: Tensor) -> Tensor:
        """Float32 values of uint8 `codes`."""
        if self.name in NATIVE:
            return codes.view(NATIVE[self.name]).float()
        return _table(self.name, codes.device)[codes.int()]

    def encode(self, values: Tensor) -> Tensor:
        """The codes (uint8) of the nearest values; of two equally near ones the even code. NaN becomes 0."""
        wide = values.float().nan_to_num(0.0)
        if self.name in ("fp8_e4m3", "fp8_e5m2"):
            # Of two zeros the positive one.
            codes = wide.clamp(-self.largest, self.largest).to(NATIVE[self.name]).view(torch.uint8)
            return codes.masked_fill_(codes == 0x80, 0)
        points, codes = _sorted(self.name, values.device)
        middles = (points[1:] + points[:-1]) / 2
        low = torch.bucketize(wide, middles, out_int32=True)
        high = torch.bucketize(wide, middles, out_int32=True, right=True)
        return torch.where(codes[low] % 2 == 0, codes[low], codes[high])


def pack(codes: Tensor, bits: int) -> Tensor:
    """(rows, n) uint8 codes as (rows, ceil(n * bits / 8)) bytes; the last one is filled with zeros."""
    if bits == 8:
        return codes
    rows, count = codes.shape
    padded = torch.nn.functional.pad(codes, (0, -count % 8)).view(rows, -1, 8)
    word = torch.zeros(padded.shape[:2], dtype=torch.int64, device=codes.device)
    for i in range(8):
        word |= padded[:, :, i].long() << (bits * i)
    parts = [(word >> (8 * i) & 255).to(torch.uint8) for i in range(bits)]
    return torch.stack(parts, 2).view(rows, -1)[:, : packed_bytes(count, bits)].contiguous()


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes (uint8) of each row of (rows, bytes) uint8."""
    if bits == 8:
        return packed[:, :count]
    if bits == 4:
        return torch.stack((packed & 15, packed >> 4), 2).flatten(1)[:, :count]
    rows = len(packed)
    padded = torch.nn.functional.pad(packed, (0, -packed.shape[1] % bits)).view(rows, -1, bits)
    word = torch.zeros(padded.shape[:2], dtype=torch.int64, device=packed.device)
    for i in range(bits):
        word |= padded[:, :, i].long() << (8 * i)
    parts = [(word >> (bits * i) & ((1 << bits) - 1)).to(torch.uint8) for i in range(8)]
    return torch.stack(parts, 2).view(rows, -1)[:, :count]


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of `count` codes of one row."""
    return -(-count * bits // 8)


def small_float(exponent: int, mantissa: int, bias: int, special: Callable[[int, int], float | None]) -> list[float]:
    """Values of all codes of a float with a sign, `exponent` and `mantissa` bits, and denormals.

    `special(exponent field, mantissa field)` gives the codes that stand for something else (of the positive half).
    """
    half: list[float] = []
    for code in range(1 << (exponent + mantissa)):
        field, fraction = code >> mantissa, code & ((1 << mantissa) - 1)
        other = special(field, fraction)
        scaled = fraction / (1 << mantissa) + (1 if field else 0)
        half.append(scaled * 2.0 ** (max(field, 1) - bias) if other is None else other)
    return half + [-value for value in half]


def _never(field: int, fraction: int) -> float | None:
    return None


def _e4m3(field: int, fraction: int) -> float | None:
    return float("nan") if (field, fraction) == (15, 7) else None


def _e5m2(field: int, fraction: int) -> float | None:
    return None if field < 31 else float("nan") if fraction else float("inf")


# Quantiles of a normal distribution (Dettmers et al., "QLoRA", 2023), and bitsandbytes' own fp4, scaled to 1.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_BNB_FP4 = (0.0, 0.0052083334885537624, 2 / 3, 1.0, 1 / 3, 0.5, 1 / 6, 0.25)


def _all() -> dict[str, Element]:
    made = [
        Element("fp4_e2m1", 4, tuple(small_float(2, 1, 1, _never))),
        Element("fp6_e2m3", 6, tuple(small_float(2, 3, 1, _never))),
        Element("fp6_e3m2", 6, tuple(small_float(3, 2, 3, _never))),
        Element("fp8_e4m3", 8, tuple(small_float(4, 3, 7, _e4m3))),
        Element("fp8_e5m2", 8, tuple(small_float(5, 2, 15, _e5m2))),
        Element("e8m0", 8, (*(2.0 ** (code - 127) for code in range(255)), float("nan"))),
        Element("nf4", 4, NF4),
        Element("bnb_fp4", 4, (*_BNB_FP4, *(-value for value in _BNB_FP4))),
    ]
    for bits in range(LEAST_BITS, MOST_BITS + 1):
        codes, half = range(1 << bits), 1 << (bits - 1)
        made.append(Element(f"int{bits}", bits, tuple(float((code ^ half) - half) for code in codes)))
        made.append(Element(f"uint{bits}", bits, tuple(float(code) for code in codes)))
        made.append(Element(f"uint{bits}b{half}", bits, tuple(float(code - half) for code in codes)))
    return {element.name: element for element in made}


ELEMENTS = _all()
NATIVE = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2, "int8": torch.int8, "uint8": torch.uint8}
"""Types that torch has itself."""


@cache
def _table(name: str, device: torch.device) -> Tensor:
    return torch.tensor(ELEMENTS[name].values, device=device)


@cache
def _sorted(name: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """The finite values in ascending order, each once, and their codes; of two zeros the positive one."""
    found: dict[float, int] = {}
    for code, value in enumerate(ELEMENTS[name].values):
        if abs(value) < float("inf"):
            found.setdefault(value + 0.0, code)
    points = sorted(found)
    codes = torch.tensor([found[point] for point in points], dtype=torch.uint8, device=device)
    return torch.tensor(points, device=device), codes
