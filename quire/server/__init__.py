"""The HTTP server: the APIs of OpenAI and Anthropic, and of models that pool, over an `AsyncLLM`; its processes.

One file per endpoint, routes as data in `app.py`; `supervisor.py` begins and watches the processes. No torch.
"""
