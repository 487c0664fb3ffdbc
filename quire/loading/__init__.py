"""Weights: recipes that say where a parameter's values come from, and the one loader that follows them for any rank."""

from quire.loading.checkpoint import opened
from quire.loading.dummy import fill_dummy
from quire.loading.load import check, load
from quire.loading.recipe import weights_of

__all__ = ["check", "fill_dummy", "load", "opened", "weights_of"]
