"""Multi-Mode Fusion: MagicID's training of identity attention and the Identity ControlNet."""
