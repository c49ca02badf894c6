"""Training loops without a host."""
