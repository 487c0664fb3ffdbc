"""Every type that crosses a border between processes or towers: requests, parameters, plans, results, outputs.

All are msgspec structs (typed msgpack on the wire, never pickle). Only `base`, `checkpoint` and `config` lie below; no
torch.
"""
