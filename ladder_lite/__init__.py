"""LADDER and test-time reinforcement learning on one GPU, or none: import what you need from its modules."""

__version__ = "0.1.0"
