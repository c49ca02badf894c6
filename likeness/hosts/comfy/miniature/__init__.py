"""The miniature inside ComfyUI."""
