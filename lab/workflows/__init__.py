"""Makes what workflows/ holds, on a real ComfyUI and its front end."""
