"""Verdicts: which answers are right, which answers are the same, which integrals are valid or equal."""
