"""The version of quire, a literal: the only place that states it. Everything else reads it here."""

__version__ = "0.1.0"
