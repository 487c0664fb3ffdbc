"""Forms of quantized weights that the GPU's tests multiply with."""

from quire.quantization.scaled import Form

FORMS = {
    "fp8": Form("fp8_e4m3", None),
    "fp8 groups": Form("fp8_e4m3", 128),
    "mxfp8": Form("fp8_e4m3", 32, "e8m0"),
    "int8": Form("int8", None),
    "int4": Form("uint4b8", 128),
    "int4 ordered": Form("uint4b8", 128, ordered=True),
    "int4 32": Form("uint4b8", 32, "bfloat16"),
    "nvfp4": Form("fp4_e2m1", 16, "float8_e4m3fn", factor="multiply"),
    "mxfp4": Form("fp4_e2m1", 32, "e8m0"),
}
