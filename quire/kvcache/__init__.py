"""Pages of past tokens as plain numbers: pool, tables, prefix index, retention, layout. Pure Python, no torch.

Only the scheduler changes what is here; the engine calls `layout.fit` once at start.
"""
