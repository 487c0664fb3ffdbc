"""A checkpoint as plain facts: where it lies, what config.json says, which tensors it has, tokenizer and template
bytes.

No torch here, so every process may read it. `loading/` turns the facts into tensors.
"""
