"""PersonaMagic's training."""
