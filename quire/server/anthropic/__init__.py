"""Anthropic's dialect: messages, whole and streamed, and their count of tokens."""
