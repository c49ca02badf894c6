"""DIIR inside ComfyUI: small faces of finished pictures repaired, everything else left as it is."""
