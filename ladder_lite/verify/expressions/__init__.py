"""Untrusted text -> expressions that are evaluated on arrays: notation, the allow-list, and the functions on it."""
