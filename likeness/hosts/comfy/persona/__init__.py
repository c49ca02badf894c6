"""PersonaMagic inside ComfyUI."""
