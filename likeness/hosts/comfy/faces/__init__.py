"""Face models inside ComfyUI."""
