"""Verdicts: which answers are right, which are the same, and which integrals are problems at all."""
