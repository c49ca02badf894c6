"""Captions by a model in a folder, through ``transformers``."""

from __future__ import annotations

from pathlib import Path

import torch

from likeness.core.errors import bad_input

from .reading import Photo

MOST_TOKENS = 60


class Captioner:
    """Any image-to-text model that needs no prompt, such as BLIP or GIT; on the GPU that its worker has, if any.

    Args:
        folder: the model with its processor, as ``save_pretrained`` writes them.

    Raises:
        LikenessError: there is no such model.
    """

    name = "model"

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        try:
            self.processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
            self.model = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as cause:
            raise bad_input("IDZoom: --captioner", f"{folder} ({cause})", "a folder with an image-to-text model",
                            "Put config.json, the weights and the processor's files there.") from cause  # fmt: skip
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model.eval().requires_grad_(False).to(self.device)

    @torch.no_grad()
    def caption(self, photo: Photo) -> str:
        """What the picture shows, on one line."""
        inputs = self.processor(images=photo.image, return_tensors="pt").to(self.device)
        tokens = self.model.generate(**inputs, max_new_tokens=MOST_TOKENS, do_sample=False)
        return " ".join(self.processor.batch_decode(tokens, skip_special_tokens=True)[0].split())
