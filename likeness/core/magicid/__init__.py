"""MagicID: identities encoded from faces, and mask-guided multi-identity cross-attention (MGMICA)."""
