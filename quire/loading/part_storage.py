"""How one part of a quantized weight gets into it."""

from dataclasses import dataclass

from quire.quantization.scheme import Scheme
from quire.quantization.storage import Storage


@dataclass(frozen=True, slots=True)
class PartStorage:
    """A part's place.

    Attributes:
        storage: where its rows go.
        start: first byte of that storage in the weight.
        first: row of the storage that is the part's first.
        scheme: how the checkpoint holds it; None, or one that is online: in full precision.
    """

    storage: Storage
    start: int
    first: int
    scheme: Scheme | None

    @property
    def reads(self) -> Scheme | None:
        """The scheme by which quantized tensors are read, None where the values are of full precision."""
        return None if self.scheme is None or self.scheme.online else self.scheme
