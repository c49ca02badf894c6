"""Networks that make feature matrices of pictures, from files of the user's; nothing is ever downloaded.

CLIP and DINO are read by transformers, the Inception network and its resizing by clean-fid. open-clip and torchmetrics
are not used: open-clip needs torchvision, which has no CPU build beside every torch, and transformers reads the same
weights; torchmetrics' FID and CLIPScore keep no feature matrix from which intervals could be drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from likeness.core.errors import LikenessError, bad_input

INCEPTION = "inception-2015-12-05.pt"
#: What lies where below the folder of weights, and where it comes from.
FILES = {
    "clip": "clip/ (transformers' folder of a CLIP, e.g. openai/clip-vit-base-patch32)",
    "dino": "dino/ (transformers' folder of a ViT trained by DINO, e.g. facebook/dino-vits16)",
    "inception": f"{INCEPTION} (NVIDIA's TorchScript Inception of the FID, as clean-fid names it)",
}


class Network(Protocol):
    """Maps pictures to features.

    Attributes:
        key: tells this network with these weights from every other; features are kept under it.
    """

    key: str

    def features(self, pictures: Sequence[Image.Image]) -> Tensor:
        """``N`` pictures (RGB) -> ``N D`` on the CPU, float32."""


class TextNetwork(Network, Protocol):
    """A network that also judges whether a picture shows its prompt."""

    def match(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        """Features ``N D`` of pictures and their ``N`` prompts -> how well each is followed, ``N``."""


class ClipNetwork:
    """CLIP's projected picture features and their cosine with the prompt (CLIP-I, CLIP-T, T-Sim).

    Args:
        folder: as transformers saves a CLIPModel with its processor.
        device: where it runs.

    Raises:
        LikenessError: the folder holds no CLIP.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from transformers import CLIPModel, CLIPTokenizer

        self.model, self.processor = _pretrained(CLIPModel, folder, "clip", device)
        self.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        self.device, self.key = device, f"clip-{weights_digest(folder)}"

    @torch.no_grad()
    def features(self, pictures: Sequence[Image.Image]) -> Tensor:
        pixels = _pixels(self.processor, pictures, self.device)
        return self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output).float().cpu()

    @torch.no_grad()
    def text(self, prompts: Sequence[str]) -> Tensor:
        """Projected features of prompts, ``N D``; longer ones are cut at the model's length."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(prompts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        out = self.model.text_model(**{k: v.to(self.device) for k, v in tokens.items()}).pooler_output
        return self.model.text_projection(out).float().cpu()

    def match(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        """The cosine of picture and prompt."""
        from lab.evaluation.scores import similarity_to_texts

        known = sorted(set(prompts))
        vectors = torch.cat([self.text(known[i : i + 32]) for i in range(0, len(known), 32)])
        return similarity_to_texts(features, vectors[[known.index(prompt) for prompt in prompts]])


class DinoNetwork:
    """The class token of a ViT trained by DINO (the DreamBooth protocol takes ViT-S/16)."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from transformers import AutoModel

        self.model, self.processor = _pretrained(AutoModel, folder, "dino", device)
        self.device, self.key = device, f"dino-{weights_digest(folder)}"

    @torch.no_grad()
    def features(self, pictures: Sequence[Image.Image]) -> Tensor:
        pixels = _pixels(self.processor, pictures, self.device)
        return self.model(pixel_values=pixels).last_hidden_state[:, 0].float().cpu()


class InceptionNetwork:
    """The Inception features of the FID, ``N 2048``, of pictures resized as clean-fid does ("clean")."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        path = folder / INCEPTION
        if not path.is_file():
            raise missing("inception", folder)
        try:
            from cleanfid.inception_torchscript import InceptionV3W
            from cleanfid.resize import build_resizer
        except ImportError as cause:
            raise bad_input(
                "evaluation: FID", f"the package clean-fid cannot be imported ({cause})", "the extra 'evaluation'",
                "Install it: pip install --no-deps clean-fid requests",
            ) from cause  # fmt: skip
        self.model = InceptionV3W(str(folder), download=False).to(device)
        self.resize, self.device, self.key = build_resizer("clean"), device, f"inception-{weights_digest(path)}"

    @torch.no_grad()
    def features(self, pictures: Sequence[Image.Image]) -> Tensor:
        pixels = np.stack([self.resize(np.asarray(picture)) for picture in pictures])  # N 299 299 3, 0 to 255
        return self.model(torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device)).float().cpu()


def missing(name: str, folder: Path) -> LikenessError:
    """What to put where for a network whose weights are not there."""
    return bad_input(f"evaluation: {name}", "no weights", f"{folder.name}/{FILES[name]}", "Put them there.")


def _pretrained(kind: Any, folder: Path, name: str, device: str) -> tuple[Any, Any]:
    from transformers import AutoImageProcessor

    if not (folder / "config.json").is_file():
        raise missing(name, folder.parent)
    try:
        model = kind.from_pretrained(folder, local_files_only=True)
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as cause:
        raise bad_input(
            f"evaluation: {name}", f"{folder}, which transformers cannot read ({cause})", FILES[name],
            "Get the folder once more, with its preprocessor_config.json.",
        ) from cause  # fmt: skip
    return model.eval().requires_grad_(False).to(device), processor


def _pixels(processor: Any, pictures: Sequence[Image.Image], device: str) -> Tensor:
    return processor(images=list(pictures), return_tensors="pt")["pixel_values"].to(device)


def weights_digest(path: Path) -> str:
    """Twelve digits of a file's content, or of all weights and settings in a folder."""
    sha = hashlib.sha256()
    files = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.suffix in (".safetensors", ".bin"))
    for file in [*files, *(path.glob("*config.json") if path.is_dir() else ())]:
        sha.update(file_digest(file).encode())
    return sha.hexdigest()[:12]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()
