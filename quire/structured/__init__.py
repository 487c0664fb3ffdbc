"""Texts of a given form: grammars are compiled here, judged first where they can be stopped, and say which tokens may
come next.

Needs no torch; `sampling/masks.py` puts the masks on logits. Knows nothing of requests or scheduling.
"""
