"""Figures for the page and for files."""
