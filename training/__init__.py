"""Training loops, independent of the host."""
