"""Forms of quantized weights that tests multiply with: of checkpoints, and of weights quantized while they load."""

from quire.quantization.scaled import Form

FORMS = {
    "fp8": Form("fp8_e4m3", None),
    "fp8 groups": Form("fp8_e4m3", 128),
    "fp8 blocks": Form("fp8_e4m3", 128, row_block=8),
    "fp8 blocks bfloat16": Form("fp8_e4m3", 128, "bfloat16", row_block=8),
    "fp8 blocks e8m0": Form("fp8_e4m3", 128, "e8m0", row_block=8),
    "e5m2": Form("fp8_e5m2", None, "bfloat16"),
    "mxfp8": Form("fp8_e4m3", 32, "e8m0"),
    "int8": Form("int8", None),
    "int8 groups": Form("uint8b128", 128, "float16"),
    "int8 16": Form("uint8b128", 16),
    "int8 zeros": Form("uint8", None, zeros=True),
    "int4": Form("uint4b8", 128),
    "int4 ordered": Form("uint4b8", 128, ordered=True),
    "int4 32": Form("uint4b8", 32, "bfloat16"),
    "int4 64": Form("uint4b8", 64, "float16"),
    "int4 zeros": Form("uint4", 128, "float16", zeros=True),
    "int4 32 zeros": Form("uint4", 32, "float16", zeros=True),
    "int4 32 zeros ordered": Form("uint4", 32, "float16", zeros=True, ordered=True),
    "int4 shifted": Form("uint4", 32, shifted=True),
    "int4 rows": Form("int4", None),
    "int3": Form("uint3b4", 128, "float16"),
    "int2 zeros": Form("uint2", 64, zeros=True),
    "int5": Form("uint5b16", 32, "float16"),
    "fp6": Form("fp6_e3m2", 32, "e8m0"),
    "nf4": Form("nf4", 64),
    "nvfp4": Form("fp4_e2m1", 16, "float8_e4m3fn", factor="multiply"),
    "nvfp4 divided": Form("fp4_e2m1", 16, "float8_e4m3fn", factor="divide"),
    "mxfp4": Form("fp4_e2m1", 32, "e8m0"),
}
