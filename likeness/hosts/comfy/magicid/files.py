"""Where identity weights lie: the folders other packs use, so that nobody has to move files."""

from __future__ import annotations

from pathlib import Path

from ....core.errors import bad_input
from ....formats.identity import AUTO, load_identity_weights
from .identities import LoadedWeights

FOLDERS = ("ipadapter", "instantid", "magicid")
ENDINGS = (".safetensors", ".bin")
NONE = "(none)"


def _roots() -> list[tuple[str, Path]]:
    import folder_paths

    known = folder_paths.folder_names_and_paths
    return [
        (name, path)
        for name in FOLDERS
        for path in dict.fromkeys((*map(Path, known.get(name, ([], set()))[0]), Path(folder_paths.models_dir) / name))
    ]


def list_weights() -> list[str]:
    """``folder/file`` of every file that may hold identity weights, or one entry that says there is none."""
    found = [
        f"{name}/{path.relative_to(root).as_posix()}"
        for name, root in _roots()
        if root.is_dir()
        for path in sorted(root.rglob("*"))
        if path.suffix in ENDINGS and path.is_file()
    ]
    return list(dict.fromkeys(found)) or [NONE]


def load(name: str, form: str = AUTO) -> LoadedWeights:
    """Read a file that :func:`list_weights` names.

    Raises:
        LikenessError: it is not there, or none that this pack knows.
    """
    folder, _, file = name.partition("/")
    for known, root in _roots():
        if known == folder and (root / file).resolve().is_relative_to(root.resolve()) and (root / file).is_file():
            return LoadedWeights.of(load_identity_weights(root / file, form))
    raise bad_input(
        "Load Identity Weights: file", repr(name), "a file in models/ipadapter, models/instantid or models/magicid",
        "Put one there, for SD1.5 for example ip-adapter-faceid-plusv2_sd15.bin of h94/IP-Adapter-FaceID on Hugging "
        "Face (for non-commercial research), and reload the page.",
    )  # fmt: skip
