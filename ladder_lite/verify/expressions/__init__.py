"""Untrusted text -> expressions that are evaluated on arrays: notation, an allow-list, and what may be called."""
