"""Fixtures of all tests. ``likeness`` and ``lab`` are imported from the root, ``support`` from this folder."""
