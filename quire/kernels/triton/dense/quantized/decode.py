"""Words of 16 bits as the values of the codes of 4 or 8 bits in them, for `quire.quantization.words`.

Where there are instructions for it (`NATIVE`), two words in a register become two values of each part: integers are put
into the low bits of a float whose last bit is worth 1; floats of 4 bits go where a wider float has the low bits of its
exponent, and are worth too little by a power of two (`lift`) until their scale is applied; floats of 8 bits are widened
by the GPU. Elsewhere, and under the interpreter, values are put together in float32. Both give the same values, but for
BOOKS, which are looked up as float16: for activations of float32 they are put together.
"""

import struct

import triton
import triton.language as tl

from quire.quantization.elements import ELEMENTS

BOOKS = ("nf4", "bnb_fp4")
"""Types whose values no arithmetic makes: they are looked up in a register, or come by a chain of comparisons."""
FOURS = ("uint4b8", "uint4", "fp4_e2m1", *BOOKS)
"""Types of 4 bits that kernels read."""
EIGHTS = ("fp8_e4m3", "fp8_e5m2", "int8", "uint8b128", "uint8")
"""The same of 8 bits; kernels call two of them `signed` and `unsigned`, see `weight.KINDS`."""

_FOUR_OUT, _TWO_OUT = tl.constexpr("=&r,=&r,=&r,=&r,r"), tl.constexpr("=&r,=&r,r")


def _integers(magic: str, one: str, kind: str, offset: str) -> str:
    """The four parts of words of 4-bit integers: 1,024 or 128 added by the bits themselves, and taken away again."""
    parts = []
    for i in range(4):
        moved = f"shr.u32 t, $4, {4 * i}; " if i else "mov.b32 t, $4; "
        parts.append(f"{moved}lop3.b32 t, t, 0x000f000f, 0x{magic * 2}, 0xea; fma.rn.{kind} ${i}, t, one, less; ")
    return f"{{.reg .b32 t, one, less; mov.b32 one, 0x{one * 2}; mov.b32 less, 0x{offset * 2}; {''.join(parts)}}}"


def _floats() -> str:
    """The four parts of words of fp4_e2m1: signs to bit 15, exponent and fraction to the bits from 6 on."""
    parts = []
    for i in range(4):
        up, across = 12 - 4 * i, 6 - 4 * i
        sign = f"shl.b32 s, $4, {up}; " if up else "mov.b32 s, $4; "
        size = f"shl.b32 t, $4, {across}; " if across > 0 else f"shr.u32 t, $4, {-across}; "
        parts.append(f"{sign}{size}and.b32 t, t, 0x01c001c0; lop3.b32 ${i}, s, 0x80008000, t, 0xea; ")
    return f"{{.reg .b32 s, t; {''.join(parts)}}}"


def _spread_integers() -> str:
    """The four parts of words of 4-bit integers as float32, 128 or 2,048 added by the bits and left there."""
    wide, high = "0x000f0000, 0x43000000", "0x0000f000, 0x45000000"
    moved = {0: ("shl.b32 t, $8, 16", "mov.b32 t, $8"), 3: ("mov.b32 t, $8", "shr.u32 t, $8, 16")}
    parts = []
    for i in range(4):
        for j, move in enumerate(moved.get(i, ("shl.b32 t, $8, 8", "shr.u32 t, $8, 8"))):
            parts.append(f"{move}; lop3.b32 ${2 * i + j}, t, {high if i % 2 else wide}, 0xea; ")
    return f"{{.reg .b32 t; {''.join(parts)}}}"


def _spread_floats() -> str:
    """The four parts of words of fp4_e2m1 as float16 too small by 2 ** 14: all but signs to the bits from 9 on."""
    parts = []
    for i in range(4):
        up, across = 12 - 4 * i, 9 - 4 * i
        sign = f"shl.b32 s, $4, {up}; " if up else "mov.b32 s, $4; "
        size = f"shl.b32 t, $4, {across}; " if across > 0 else f"shr.u32 t, $4, {-across}; "
        parts.append(f"{sign}{size}and.b32 t, t, 0x0e000e00; lop3.b32 ${i}, s, 0x80008000, t, 0xea; ")
    return f"{{.reg .b32 s, t; {''.join(parts)}}}"


def _widened(kind: str) -> str:
    """The two parts of words of 8-bit floats, by the GPU's own conversion."""
    return (
        "{.reg .b32 t; .reg .b16 l, h; prmt.b32 t, $2, 0, 0x3120; mov.b32 {l, h}, t; "
        f"cvt.rn.f16x2.{kind}x2 $0, l; cvt.rn.f16x2.{kind}x2 $1, h;}}"
    )


def _bytes(flipped: str, offset: str) -> str:
    """The two parts of words of 8-bit integers: 1,024 added by the bits themselves, and taken away again."""
    return (
        f"{{.reg .b32 t, less; xor.b32 t, $2, 0x{flipped * 4}; mov.b32 less, 0x{offset * 2}; "
        "prmt.b32 $0, t, 0x64646464, 0x4240; prmt.b32 $1, t, 0x64646464, 0x4341; "
        "sub.f16x2 $0, $0, less; sub.f16x2 $1, $1, less;}"
    )


def _looked_up(kind: str) -> str:
    """The four parts of words of a type of BOOKS as float16: bytes of eight values at a time, picked by their codes."""
    halves = struct.pack("<16e", *ELEMENTS[kind].values)
    asm = "{.reg .b32 s, m, v, a, b, l0, h0, l1, h1, x, y; "
    for i, words in enumerate(("mov.b32 v, $4", "shr.u32 v, $4, 16")):
        asm += f"{words}; and.b32 s, v, 0x7777; and.b32 m, v, 0x8888; shr.u32 m, m, 1; or.b32 m, m, 0x3210; "
        for j, name in enumerate("lh"):
            four = [f"0x{int.from_bytes(halves[k + j : k + 8 : 2], 'little'):08x}" for k in (0, 8, 16, 24)]
            asm += f"mov.b32 a, {four[0]}; prmt.b32 a, a, {four[1]}, s; mov.b32 b, {four[2]}; "
            asm += f"prmt.b32 b, b, {four[3]}, s; prmt.b32 {name}{i}, a, b, m; "
    for first, turn in ((0, "0x5140"), (2, "0x7362")):
        asm += f"prmt.b32 x, l0, h0, {turn}; prmt.b32 y, l1, h1, {turn}; "
        asm += f"prmt.b32 ${first}, x, y, 0x5410; prmt.b32 ${first + 1}, x, y, 0x7632; "
    return asm + "}"


_ASM = {
    ("uint4b8", "fp16"): _integers("6400", "3c00", "f16x2", "e408"),
    ("uint4", "fp16"): _integers("6400", "3c00", "f16x2", "e400"),
    ("uint4b8", "bf16"): _integers("4300", "3f80", "bf16x2", "c308"),
    ("uint4", "bf16"): _integers("4300", "3f80", "bf16x2", "c300"),
    ("fp4_e2m1", "bf16"): _floats(),
    ("fp8_e4m3", "fp16"): _widened("e4m3"),
    ("fp8_e5m2", "fp16"): _widened("e5m2"),
    ("signed", "fp16"): _bytes("80", "6480"),
    ("uint8b128", "fp16"): _bytes("00", "6480"),
    ("unsigned", "fp16"): _bytes("00", "6400"),
    **{(kind, "fp16"): _looked_up(kind) for kind in BOOKS},
}


_SPREAD_INTEGERS, _SPREAD_FLOATS = tl.constexpr(_spread_integers()), tl.constexpr(_spread_floats())
_EIGHT_OUT = tl.constexpr("=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r")


@triton.constexpr_function
def _asm(kind, to):
    return _ASM[kind, to]


@triton.constexpr_function
def exact(kind, to, native):
    """Whether instructions make values of `kind` in dtype `to`."""
    if not native or kind in BOOKS:
        return native
    return to == tl.bfloat16 or (to == tl.float16 and kind != "fp4_e2m1")


@triton.constexpr_function
def booked(kind):
    """Whether `kind` is one of BOOKS."""
    return kind in BOOKS


@triton.constexpr_function
def _value(kind, code):
    return ELEMENTS[kind].values[code]


@triton.constexpr_function
def lift(kind, to, native):
    """What values, multiplied with this once on their way and once at the end, are worth what they should be."""
    return 2.0**63 if kind == "fp4_e2m1" and exact(kind, to, native) else 1.0


@triton.jit
def fours(words, KIND: tl.constexpr, TO: tl.constexpr, NATIVE: tl.constexpr):
    """The values of the four parts of words, in dtype TO; see `lift`."""
    if exact(KIND, TO, NATIVE):
        if TO.is_fp16() or booked(KIND):
            half: tl.constexpr = _asm(KIND, "fp16")
            kinds: tl.constexpr = (tl.float16, tl.float16, tl.float16, tl.float16)
            a, b, c, d = tl.inline_asm_elementwise(half, _FOUR_OUT, [words], kinds, True, 2)
        else:
            wide: tl.constexpr = _asm(KIND, "bf16")
            types: tl.constexpr = (tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16)
            a, b, c, d = tl.inline_asm_elementwise(wide, _FOUR_OUT, [words], types, True, 2)
    else:
        code = words.to(tl.int32)
        a, b, c, d = _four(code, KIND), _four(code >> 4, KIND), _four(code >> 8, KIND), _four(code >> 12, KIND)
    return a.to(TO), b.to(TO), c.to(TO), d.to(TO)


@triton.constexpr_function
def added(kind, part, native):
    """What `spread` has added to the values of a part."""
    if not native or kind not in ("uint4b8", "uint4"):
        return 0.0
    return (2048.0 if part % 2 else 128.0) + (8.0 if kind == "uint4b8" else 0.0)


@triton.jit
def spread(words, KIND: tl.constexpr, NATIVE: tl.constexpr):
    """The values of the four parts of words, float32: if NATIVE integers with `added`, floats too small by 2 ** 14."""
    if not NATIVE or booked(KIND):
        a, b, c, d = fours(words, KIND, tl.float32, NATIVE)
    elif KIND == "fp4_e2m1":
        half: tl.constexpr = (tl.float16, tl.float16, tl.float16, tl.float16)
        a, b, c, d = tl.inline_asm_elementwise(_SPREAD_FLOATS, _FOUR_OUT, [words], half, True, 2)
        a, b, c, d = a.to(tl.float32), b.to(tl.float32), c.to(tl.float32), d.to(tl.float32)
    else:
        wide: tl.constexpr = (tl.float32, tl.float32, tl.float32, tl.float32)
        a, b, c, d = tl.inline_asm_elementwise(_SPREAD_INTEGERS, _EIGHT_OUT, [words], wide, True, 2)
    return a, b, c, d


@triton.jit
def eights(words, KIND: tl.constexpr, TO: tl.constexpr, NATIVE: tl.constexpr):
    """The values of the two parts of words, in dtype TO."""
    if NATIVE:
        asm: tl.constexpr = _asm(KIND, "fp16")
        kinds: tl.constexpr = (tl.float16, tl.float16)
        a, b = tl.inline_asm_elementwise(asm, _TWO_OUT, [words], kinds, True, 2)
    else:
        code = words.to(tl.int32)
        a, b = eight(code & 255, KIND), eight(code >> 8, KIND)
    return a.to(TO), b.to(TO)


@triton.jit
def _four(code, KIND: tl.constexpr):
    """Values of the lowest four bits, float32."""
    if KIND == "fp4_e2m1":
        # The exponent's two bits and the fraction's one, where float32 has the lowest of its own.
        size = ((code & 7) << 22).to(tl.float32, bitcast=True) * 2.0**126
        value = tl.where((code & 8) != 0, -size, size)
    elif booked(KIND):
        value = tl.zeros(code.shape, tl.float32)
        for i in tl.static_range(16):
            value = tl.where((code & 15) == i, _value(KIND, i), value)
    else:
        value = ((code & 15) - (8 if KIND == "uint4b8" else 0)).to(tl.float32)
    return value


@triton.jit
def eight(code, KIND: tl.constexpr):
    """Values of codes of 8 bits, float32, from int32."""
    if KIND == "fp8_e4m3":
        size = ((code & 0x7F) << 20).to(tl.float32, bitcast=True) * 2.0**120
        value = tl.where((code & 0x80) != 0, -size, size)
        value = tl.where((code & 0x7F) == 0x7F, float("nan"), value)
    elif KIND == "fp8_e5m2":
        value = (code << 8).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    elif KIND == "signed":
        value = ((code ^ 0x80) - 128).to(tl.float32)
    else:
        value = (code - (128 if KIND == "uint8b128" else 0)).to(tl.float32)
    return value


@triton.jit
def scale(stored, KIND: tl.constexpr):
    """Stored scales as float32: bytes where KIND is one of 8 bits."""
    if KIND == "e8m0":
        bits = stored.to(tl.int32)
        value = tl.where(bits == 0, 1 << 22, bits << 23).to(tl.float32, bitcast=True)
    elif KIND == "float8_e4m3fn":
        # Never NaN.
        bits = stored.to(tl.int32)
        value = (((bits & 0x7F) << 20) | ((bits & 0x80) << 24)).to(tl.float32, bitcast=True) * 2.0**120
    else:
        value = stored.to(tl.float32)
    return value
