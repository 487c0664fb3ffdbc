"""Where parameters of transformers' modules lie in a checkpoint, by that library's own rules for names."""

import re
from collections.abc import Mapping
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)

from quire.base.errors import CheckpointError
from quire.checkpoint.entries import read_entries
from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.headers import TensorEntry
from quire.layers.adopted import Origin, Source


def source(model: Any, facts: ModelFacts) -> Source:
    """Where parameters lie in the checkpoint, by transformers' own rules for names; and what nobody needs.

    Raises CheckpointError for a rule that is not understood.
    """
    try:
        entries = read_entries(facts)
    except CheckpointError:
        # No weights are there, or damaged ones: the loader will say so where they are wanted.
        return Source()
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    held = model.state_dict()
    found: dict[str, dict[str, list[TensorEntry]]] = {}
    for name, entry in entries.items():
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, held)
        found.setdefault(target, {}).setdefault(pattern or "", []).append(entry)
    origins = {
        target: origin
        for name, parts in found.items()
        if name in held
        for target, origin in _origins(name, parts, converters).items()
    }
    spare = [
        entry.name for name, parts in found.items() if name not in held for each in parts.values() for entry in each
    ]
    skipped = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    pooled = facts.pooling is not None
    unused = [name for name in spare if pooled or any(pattern.search(name) for pattern in skipped)]
    return Source(origins, tuple(unused))


def _origins(name: str, parts: Mapping[str, list[TensorEntry]], converters: list[WeightConverter]) -> dict[str, Origin]:
    """The origin of parameter `name`, and of those that a rule fills from the same tensor."""
    if "" in parts:
        return {name: Origin((parts[""][0].name,))}
    rule = next(rule for rule in converters if next(iter(parts)) in rule.source_patterns)
    targets, [first, *others] = rule.target_patterns, rule.operations
    if type(first) is Chunk and not others and first.dim == 0 and first.num_shards_attribute is None:
        [[entry]] = parts.values()
        return {
            name.replace(targets[0], target): Origin((entry.name,), share=(which, len(targets)))
            for which, target in enumerate(targets)
        }
    return {name: _origin(name, parts, rule)}


def _origin(name: str, parts: Mapping[str, list[TensorEntry]], rule: WeightConverter) -> Origin:
    """The origin of one parameter from the tensors that a rule brings together."""
    # In the order of the rule, and within each in the order of their numbers.
    columns = [sorted(parts[pattern], key=_counted) for pattern in rule.source_patterns if pattern in parts]
    kinds = [type(operation) for operation in rule.operations]
    if kinds == [Transpose]:
        return Origin((columns[0][0].name,), transposed=True)
    merged = kinds in ([MergeModulelist], [MergeModulelist, Concatenate])
    if not merged and kinds != [Concatenate]:
        raise CheckpointError(f"{name}: {' and '.join(kind.__name__ for kind in kinds)} of tensors is not supported")
    rows = [entry for row in zip(*columns, strict=True) for entry in row]
    return Origin(tuple(entry.name for entry in rows), tuple(entry.shape[0] for entry in rows))


def _counted(entry: TensorEntry) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", entry.name)]
