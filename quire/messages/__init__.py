"""Every type that crosses a border between processes or towers: requests, parameters, plans, results, outputs.

They are msgspec structs (typed msgpack on the wire, never pickle); beside them stand the validators that make them of
what users say. Only `base`, `checkpoint` and `config` lie below; no torch.
"""
