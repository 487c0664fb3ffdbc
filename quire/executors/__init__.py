"""Where ranks live: in this process, or in processes of their own on this host.

An executor has `load`, `measure`, `allocate(layout)`, `step(plan) -> Pending` and `stop()`. `Pending.wait()` waits, and
`result()` reads what came.
"""
