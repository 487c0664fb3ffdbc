"""torchao, as it flattens tensors into safetensors: fp8 and int8 with scales of rows, blocks or groups, zero points.

`_weight_qdata` (outputs, inputs) beside `_weight_scale` and, of integers, `_weight_zero_point`. What the file's own
metadata adds (activations, kernels) is not needed. int4 in its unpacked form is int8 that uses few of its values.
"""

from typing import Any

from quire.base.errors import CheckpointError
from quire.quantization.layouts import CODE_TYPES, eight_bits, with_zeros
from quire.quantization.scaled import Form
from quire.quantization.scheme import Matrix, Scheme, Source, present

METHODS = ("torchao",)
MARKS = ("._weight_qdata",)
CODES, SCALE, ZEROS = "_weight_qdata", "_weight_scale", "_weight_zero_point"


class TorchAo:
    """The format of one checkpoint."""

    def scheme(self, matrix: Matrix, source: Source) -> Scheme | None:
        """See `Format`. Raises CheckpointError for codes that are packed."""
        codes = source.entries.get(f"{matrix.module}.{CODES}")
        if codes is None:
            return None
        if codes.dtype not in CODE_TYPES or codes.shape != (matrix.outputs, matrix.inputs):
            raise CheckpointError(
                f"tensor {codes.name} is {codes.dtype} of shape {codes.shape}; of torchao's tensors Float8Tensor, "
                "Int8Tensor and IntxUnpackedToInt8Tensor are supported, which have one 8-bit code for each of "
                f"{matrix.outputs} x {matrix.inputs} values. Quantize again with one of their configurations"
            )
        zeros = present(source, matrix, ZEROS)
        if zeros and bool(source.read(zeros[0]).any()):
            return with_zeros(eight_bits(matrix, source, SCALE, codes=CODES), zeros[0])
        return eight_bits(matrix, source, SCALE, zeros, codes=CODES)

    def announced(self, matrix: Matrix) -> Form | None:
        """See `Format`: the metadata lists no modules."""
        return None


def make(config: dict[str, Any]) -> TorchAo:
    """The format of a checkpoint."""
    return TorchAo()
