"""The files that users' templates ask for: where they come from and which folder they go in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

#: endings of files that the front end offers to download
OFFERED = (".safetensors", ".sft", ".ckpt", ".pth", ".pt")
HUB = "https://huggingface.co"

SD15 = "v1-5-pruned-emaonly-fp16.safetensors"
SDXL = "sd_xl_base_1.0.safetensors"
UPSCALER = "RealESRGAN_x4plus.safetensors"
CLIP_VISION = "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors"
FACEID = "ip-adapter-faceid-plusv2_sd15.bin"
INSTANTID, INSTANTID_CONTROL = "ip-adapter.bin", "instantid.safetensors"


@dataclass(frozen=True)
class Model:
    """A file to download.

    Attributes:
        repository: on the hub. path: of the file in it. folder: in ``models/``.
    """

    repository: str
    path: str
    folder: str

    @property
    def url(self) -> str:
        """Address of the file."""
        return f"{HUB}/{self.repository}/resolve/main/{self.path}"

    @property
    def page(self) -> str:
        """Address of the page that tells what it is and under which licence."""
        return f"{HUB}/{self.repository}"


#: name of the file in its folder -> where it is had
MODELS = {
    SD15: Model("Comfy-Org/stable-diffusion-v1-5-archive", SD15, "checkpoints"),
    SDXL: Model("stabilityai/stable-diffusion-xl-base-1.0", SDXL, "checkpoints"),
    UPSCALER: Model("Comfy-Org/Real-ESRGAN_repackaged", UPSCALER, "upscale_models"),
    CLIP_VISION: Model("h94/IP-Adapter", "models/image_encoder/model.safetensors", "clip_vision"),
    FACEID: Model("h94/IP-Adapter-FaceID", FACEID, "ipadapter"),
    INSTANTID: Model("InstantX/InstantID", INSTANTID, "instantid"),
    INSTANTID_CONTROL: Model("InstantX/InstantID", "ControlNetModel/diffusion_pytorch_model.safetensors", "controlnet"),
}


def asked_for(inputs: Mapping[str, Any]) -> Iterator[tuple[str, Model]]:
    """Names of known files among a node's values; a value may name the file with its folder."""
    for value in inputs.values():
        name = value.rsplit("/", 1)[-1] if isinstance(value, str) else ""
        if name in MODELS:
            yield name, MODELS[name]


def offered(inputs: Mapping[str, Any]) -> list[dict[str, str]]:
    """A loader's ``properties.models``: what the front end offers to download where it is missing."""
    return [
        {"name": name, "url": model.url, "directory": model.folder}
        for name, model in asked_for(inputs)
        if name.endswith(OFFERED)
    ]
