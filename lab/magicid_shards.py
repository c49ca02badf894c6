"""MagicID's training set from what ``run.py idzoom`` writes: WebDataset shards, or a folder with the same members."""

from __future__ import annotations

import io
import json
import logging
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from likeness.core.errors import LikenessError, bad_input
from likeness.core.masks import area_to_grid
from likeness.drawing.pose import INSTANTID, MEDIAPIPE, draw_faces
from likeness.faces.interface import Face
from likeness.hosts.diffusers.pipeline import LATENT_FACTOR, Pipeline
from likeness.training.magicid.samples import Sample

from .magicid_people import FACE_WEIGHT, LANDMARKS, MODES, SKELETON

log = logging.getLogger("likeness")

#: what a sample must have besides its picture; the skeleton only where a phase asks for it
NEEDED = ("embedding.npy", "landmarks.json", "mask.png")
PICTURES = ("image.jpg", "image.png")


def members_of(source: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and members (ending -> bytes) of every sample under a shard, a folder of shards, or a folder of files.

    Raises:
        LikenessError: there is nothing of the kind, or a shard is broken.
    """
    shards = [source] if source.is_file() else sorted(source.rglob("*.tar"))
    entries = (entry for shard in shards for entry in _in_shard(shard)) if shards else _in_folder(source)
    found, key, members = False, None, {}
    for name, data in entries:
        base, _, ending = name.partition(".")
        if base != key and members:
            yield key, members
            members = {}
        key, members[ending], found = base, data, True
    if members:
        yield key, members
    if not found:
        raise bad_input(
            "MagicID training: data", str(source), "shards (.tar) or a folder of samples as run.py idzoom writes them",
            "Check the path.",
        )  # fmt: skip


def _in_shard(shard: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(shard) as file:
            for entry in file:
                if entry.isfile():
                    yield entry.name, file.extractfile(entry).read()
    except (tarfile.TarError, OSError) as cause:
        came = f"{shard.name} ({cause})"
        raise bad_input("MagicID training: data", came, "a whole shard", "Copy or make it again.") from cause


def _in_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    files = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: (p.parent, p.name.partition(".")))
    for file in files:
        yield file.relative_to(folder).as_posix(), file.read_bytes()


class Reader:
    """Makes samples for one base model.

    Args:
        side: of the pictures in pixels, which are cut to their central square. modes: pose conditions to make.

    Attributes:
        embedder: name of the face recogniser whose vectors the samples hold, once they are read.
    """

    def __init__(self, pipeline: Pipeline, side: int | None = None, modes: tuple[str, ...] = MODES) -> None:
        self.pipeline, self.side, self.modes = pipeline, side or pipeline.side, modes
        self.embedder = ""

    def samples(self, source: Path) -> list[Sample]:
        """All samples that can be read; one that cannot costs itself only, and is told."""
        out = []
        for key, members in tqdm(members_of(source), desc="samples", unit="sample"):
            try:
                out.append(self.sample(members))
            except (LikenessError, KeyError, ValueError, OSError, UnidentifiedImageError) as cause:
                log.warning("MagicID training: sample %s is left out: %s", key, cause)
        if not out:
            raise bad_input("MagicID training: data", f"no whole sample in {source}", "some", "See the log above.")
        return out

    @torch.no_grad()
    def sample(self, members: Mapping[str, bytes]) -> Sample:
        """One picture, its frozen models' words, and its people.

        Raises:
            LikenessError: a member is missing, or none of its faces is in the square.
        """
        picture = next((name for name in PICTURES if name in members), None)
        lacking = [name for name in (*NEEDED, *self._posed()) if name not in members]
        if picture is None or lacking:
            missing = ", ".join(["image.jpg"] * (picture is None) + lacking)
            raise bad_input("sample", f"no {missing}", "all members", "Annotate it with run.py idzoom.")
        self._check_embedder(json.loads(members.get("json", b"{}")).get("embedder", ""))
        image = _picture(members[picture])
        told = json.loads(members["landmarks.json"])
        view = View(image.shape[-2], image.shape[-1], self.side)
        faces = [_face(face, view) for face in told["faces"]]
        vectors = torch.from_numpy(np.load(io.BytesIO(members["embedding.npy"]), allow_pickle=False)).float()
        masks = [view.cut(_picture(members[f"mask.{n}png"]).mean(0, keepdim=True))[0] for n in _numbers(len(faces))]
        kept = [i for i, mask in enumerate(masks) if bool((mask > 0).any())]
        if not kept:
            raise bad_input("sample", "no face in the middle square", "at least one", "")
        kept.sort(key=lambda i: faces[i].box[0])
        caption = members.get("caption.txt", b"").decode("utf-8", "replace")
        grid = (self.side // LATENT_FACTOR,) * 2
        regions = torch.stack([area_to_grid(masks[i], grid) for i in kept])
        return Sample(
            latent=self.pipeline.encode(view.cut(image)[None])[0].float().cpu(),
            text=self.pipeline.conditioning([caption]).context[0].half().cpu(),
            vectors=vectors[kept][:, None], regions=regions,
            boxes=torch.tensor([faces[i].box for i in kept]).clamp(0, self.side) / self.side,
            poses={mode: self._pose(mode, members, view, [faces[i] for i in kept]) for mode in self.modes},
            weights=1 + FACE_WEIGHT * regions.amax(dim=0, keepdim=True),
        )  # fmt: skip

    def _check_embedder(self, name: str) -> None:
        self.embedder = self.embedder or name
        if name != self.embedder:
            raise bad_input("sample", f"vectors by {name}", f"by {self.embedder}, as before", "Make all by one.")

    def _posed(self) -> tuple[str, ...]:
        return ("skeleton.png",) if SKELETON in self.modes else ()

    def _pose(self, mode: str, members: Mapping[str, bytes], view: View, faces: list[Face]) -> Tensor:
        if mode == LANDMARKS:
            style = MEDIAPIPE if all(face.dense is not None for face in faces) else INSTANTID
            drawn = draw_faces(faces, self.side, self.side, style)
        else:
            drawn = view.cut(_picture(members["skeleton.png"]))
        return (drawn * 255).round().byte()


class View:
    """The central square of a picture of so many pixels, brought to ``side``."""

    def __init__(self, height: int, width: int, side: int) -> None:
        self.square, self.side = min(height, width), side
        self.top, self.left = (height - self.square) // 2, (width - self.square) // 2

    def cut(self, image: Tensor) -> Tensor:
        """``C H W`` -> ``C side side``."""
        part = image[:, self.top : self.top + self.square, self.left : self.left + self.square]
        size = (self.side, self.side)
        return F.interpolate(part[None], size, mode="bilinear", antialias=True, align_corners=False)[0].clamp(0, 1)

    def points(self, points: list) -> Tensor:
        """``N 2`` in pixels of the picture -> of the square."""
        moved = torch.tensor(points, dtype=torch.float32) - torch.tensor([self.left, self.top])
        return moved * (self.side / self.square)


def _face(told: Mapping, view: View) -> Face:
    x0, y0, x1, y1 = told["box"]
    (x0, y0), (x1, y1) = view.points([[x0, y0], [x1, y1]]).tolist()
    five, dense = (None if told.get(name) is None else view.points(told[name]) for name in ("five", "dense"))
    return Face((x0, y0, x1, y1), told["score"], five, dense)


def _numbers(count: int) -> list[str]:
    """How the members of a sample's faces are numbered: the first one is not."""
    return ["" if i == 0 else f"{i + 1}." for i in range(count)]


def _picture(data: bytes) -> Tensor:
    """Bytes of a picture file -> ``3 H W`` in [0, 1]."""
    with Image.open(io.BytesIO(data)) as file:
        pixels = np.asarray(file.convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)
