"""The HTTP server: OpenAI's API over an `AsyncLLM`. One file per endpoint, routes as data in `app.py`; no torch."""
