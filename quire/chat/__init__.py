"""Conversations to token ids: messages, templates, and what a user's text must not be able to say. No torch."""
