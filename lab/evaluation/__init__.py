"""Measures on held-out drawn people."""
