"""Tests, with a folder for each room. Tests that belong to no room are at the top level; fakes are in support/."""
