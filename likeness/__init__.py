"""Likeness: what the nodes and the headless commands import."""
