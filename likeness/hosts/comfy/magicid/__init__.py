"""MagicID inside ComfyUI."""
