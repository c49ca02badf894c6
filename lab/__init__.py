"""Headless work that no user of the nodes needs; never imported by the pack."""
