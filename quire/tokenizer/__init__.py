"""Text to token ids and back. Knows files and the `tokenizers` library, no model and no request; no torch."""
