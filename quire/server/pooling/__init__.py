"""Endpoints of models that give vectors and scores instead of text."""
