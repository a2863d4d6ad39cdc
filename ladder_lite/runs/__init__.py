"""A run folder: its layout and stages, JSON lines that survive a kill."""
