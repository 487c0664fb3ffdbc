"""Which layers have a sliding window, as config.json says it."""

from typing import Literal

from quire.base.errors import CheckpointError
from quire.layers.decoder import Count, DecoderConfig

LayerType = Literal["full_attention", "sliding_attention"]


def is_windowed(layer_types: list[LayerType], index: int, layers: int) -> bool:
    """Whether the list gives layer `index` of `layers` a window. Raises CheckpointError if its length differs."""
    if len(layer_types) != layers:
        raise CheckpointError(f"config.json: layer_types has {len(layer_types)} entries, num_hidden_layers is {layers}")
    return layer_types[index] == "sliding_attention"


class UpperWindowConfig(DecoderConfig, frozen=True, kw_only=True):
    """A decoder whose upper layers may have a window: the fields by which the Qwen families say so."""

    use_sliding_window: bool = False
    sliding_window: Count | None = 4096
    max_window_layers: int = 28
    layer_types: list[LayerType] | None = None

    def window_of(self, index: int) -> int | None:
        """The window of layer `index`; the list of layer types counts where there is one."""
        if self.layer_types is None:
            windowed = index >= self.max_window_layers
        else:
            windowed = is_windowed(self.layer_types, index, self.num_hidden_layers)
        return self.sliding_window if self.use_sliding_window and windowed else None
