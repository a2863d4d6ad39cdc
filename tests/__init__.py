"""Tests of each room in a folder of its name, fakes and builders in support/; at the top what has no room."""
