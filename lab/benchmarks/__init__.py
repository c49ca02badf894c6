"""Time, memory and launches beside vanilla sampling and the limit."""
