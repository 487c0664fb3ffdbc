"""From logits to tokens: processors, restrictions, noise, log-probabilities, and the state of each row that they need.

Everything is float32 and vectorised over rows; the host knows which features any row uses and launches nothing else.
Knows nothing of models, pages or scheduling. Called by the runner.
"""
