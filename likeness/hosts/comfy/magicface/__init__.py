"""MagicFace inside ComfyUI."""
