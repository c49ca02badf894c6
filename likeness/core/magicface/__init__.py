"""MagicFace: training-free personalisation by reference attention (RSA, semantic maps, RBA)."""
