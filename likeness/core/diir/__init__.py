"""DIIR: repair of small broken faces by DDIM inversion and masked fusion (MagicID, Alg. 2)."""
