"""Weights: recipes that say where a parameter's values come from, and the one loader that follows them for any rank."""

from quire.loading.dummy import fill_dummy
from quire.loading.load import load

__all__ = ["fill_dummy", "load"]
