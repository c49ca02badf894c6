"""ComfyUI: model patching, conditioning, loading and the version differences between 0.8 and today."""
