"""Imports ``mapper-steps-N.pt`` of the authors' PersonaMagic code. Nothing in the file is ever run.

Such a file is a pickle that names classes of their code. It is read by an unpickler that knows tensors, storages and
plain containers; the authors' own classes become inert shells, and every other name is refused.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import LikenessError, bad_input
from ..core.persona.mapper import Mapper, MapperConfig
from ..core.persona.persona import Persona
from ..core.persona.stages import Stages

#: Node and input that errors name.
SOURCE = "Persona Import: path"
AGAIN = "Get the mapper from its author again."
_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}
_SHELL_PREFIXES = ("models.", "training.", "utils.", "torch.nn.", "numpy.", "pathlib.")
_LIMIT = 512 * 2**20


class _Shell:
    """Stands for an instance of a foreign class: takes any arguments and state, does nothing."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> _Shell:
        return object.__new__(cls)

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def __setstate__(self, _state: Any) -> None:
        pass


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if all(size) else offset
    if offset < 0 or min((*stride, 0)) < 0 or last >= max(storage.numel(), 1):
        raise LikenessError(f"{SOURCE}: a tensor reaches outside its storage; the file is damaged or hostile.")
    return torch.as_strided(storage, size, stride, offset).clone()


def _rebuild_parameter(data: Tensor, *_: Any) -> Tensor:
    return data


class _Unpickler(pickle.Unpickler):
    """Knows tensors and containers; see the module's text."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(file)
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        """Resolve a name without importing anything."""
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("builtins", "set"): set,
            ("__builtin__", "set"): set,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        }
        if (module, name) in known:
            return known[module, name]
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module + ".").startswith(_SHELL_PREFIXES):
            return type(name, (_Shell,), {})
        raise LikenessError(
            f"{SOURCE}: the file asks for {module}.{name}, which no mapper needs. It was not run. "
            "Do not use this file; get the mapper from its author again."
        )

    def persistent_load(self, pid: Any) -> Tensor:
        """Storages of a zip checkpoint: ``('storage', type, key, location, count)``."""
        _, dtype, key, _, count = pid
        if not isinstance(dtype, torch.dtype) or "/" in str(key):
            raise LikenessError(f"{SOURCE}: an unknown storage; the file is damaged or hostile.")
        data = self.archive.read(f"{self.root}/data/{key}")
        return torch.frombuffer(bytearray(data), dtype=dtype)[:count]


def read_checkpoint(path: Path) -> dict:
    """The dictionary in a ``torch.save`` zip file, foreign objects left out.

    Raises:
        LikenessError: not such a file, too large, or one that names anything but tensors and the authors' classes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(info.file_size for info in archive.infolist()) > _LIMIT:
                raise bad_input(
                    SOURCE, f"{path.name}, over 512 MiB", "a mapper of a few MB", "Check the file."
                )
            name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            with archive.open(name) as file:
                return _Unpickler(file, archive, name.rsplit("/", 1)[0]).load()
    except LikenessError:
        raise
    except Exception as cause:  # a damaged pickle can raise anything
        raise bad_input(SOURCE, f"{path.name}, unreadable ({cause})", "mapper-steps-N.pt", AGAIN) from cause


_RENAMES = {
    "input_layer.": "input_layer.",
    "timestep_proj.": "trunk.",
    "output_layer.0.": "head.",
    "image_proj.": "residual_trunk.",
    "image_output_layer.0.": "residual_head.",
}


def _renamed(state: dict) -> dict[str, Tensor]:
    named = {}
    for key, value in state.items():
        for old, new in _RENAMES.items():
            if key.startswith(old):
                named[new + key.removeprefix(old)] = value.float()
    return named


def _companion(path: Path, outputs: int) -> Tensor | None:
    """The supercategory's row in ``learned_embeds-*.bin`` of the same step, if it lies beside the mapper."""
    beside = path.with_name(path.name.replace("mapper-", "learned_embeds-")).with_suffix(".bin")
    if beside == path or not beside.is_file():
        return None
    rows = torch.load(beside, map_location="cpu", weights_only=True)
    row = next((v.flatten().float() for v in rows.values() if isinstance(v, Tensor)), None)
    return row if row is not None and outputs % row.numel() == 0 else None


def import_mapper(
    path: str | Path,
    supercategory: Tensor | None = None,
    word: str = "face",
    image: Tensor | None = None,
    bounds: tuple[int, int] = (400, 800),
) -> Persona:
    """A persona from the authors' file.

    Args:
        path: ``mapper-steps-N.pt``.
        supercategory: ``W`` embedding of the supercategory; those files lack it, None reads it from
            ``learned_embeds-steps-N.bin`` beside the file.
        word: the supercategory.
        image: ``1 D`` embedding of the source photo, which those files lack; None plays without residual.
        bounds: the trained stage (400-800 in the released code).
    """
    path = Path(path)
    content = read_checkpoint(path)
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    named = _renamed({k: v for k, v in state.items() if isinstance(v, Tensor)})
    if "head.weight" not in named or "input_layer.weight" not in named:
        raise bad_input(SOURCE, f"{path.name} with other contents", "a mapper's weights", AGAIN)
    if supercategory is None:
        supercategory = _companion(path, named["head.weight"].shape[0])
    if supercategory is None:
        raise bad_input(
            SOURCE,
            f"{path.name} without the word's embedding",
            "the base model's embedding",
            "Connect CLIP, or put learned_embeds-steps-N.bin beside it.",
        )
    width = supercategory.numel()
    outputs = named["head.weight"].shape[0]
    if outputs % width:
        raise bad_input(
            "Persona Import: clip", f"a text encoder of width {width}", f"one whose width divides {outputs}",
            "Connect the CLIP of the base that the mapper was trained on.",
        )  # fmt: skip
    if not all(torch.isfinite(value).all() for value in named.values()):
        raise bad_input(SOURCE, f"{path.name} with numbers that are not finite", "a whole mapper", "Use another.")
    config = MapperConfig(
        (width,),
        tokens=outputs // width,
        bounds=bounds,
        image_width=named["residual_trunk.0.weight"].shape[1] - named["head.weight"].shape[1]
        if "residual_trunk.0.weight" in named
        else 0,
        hidden=named["head.weight"].shape[1],
        anchors=named["input_layer.weight"].shape[0],
        frequencies=named["input_layer.weight"].shape[1] // 2,
    )
    mapper = Mapper(config, supercategory)
    try:
        mapper.load_state_dict({**named, "supercategory": mapper.supercategory})
    except RuntimeError as cause:
        came = f"{path.name} with tensors that do not fit ({cause})"
        raise bad_input(SOURCE, came, "a whole mapper", AGAIN) from cause
    if image is not None and image.shape[-1] != config.image_width:
        raise bad_input(
            "Persona Import: clip_vision", f"image embeddings of {image.shape[-1]} values", f"{config.image_width}",
            "Use the CLIP vision model it was trained with (the published code: ViT-B/32).",
        )  # fmt: skip
    return Persona(mapper.eval().requires_grad_(False), Stages(*bounds), word, image, path.stem, {"family": "sd1"})
