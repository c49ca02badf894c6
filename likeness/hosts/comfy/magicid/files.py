"""Where identity weights lie: the folders other packs use, so that nobody has to move files."""

from __future__ import annotations

from pathlib import Path

from ....core.errors import bad_input
from ....formats.files import free_path, plain_name
from ....formats.identities import SavedIdentities, SavedPerson, load_identities, save_identities
from ....formats.identity import AUTO, load_identity_weights
from ....miniature.models import WEIGHTS as SHIPPED
from ..folders import model_folders
from .identities import Identities, Identity, LoadedWeights

FOLDERS = ("ipadapter", "instantid", "magicid")
ENDINGS = (".safetensors", ".bin")
NONE = "(none)"
#: The weights that come with the pack, for its drawn people.
MINIATURE = "miniature/magicid.safetensors"
IDENTITY_FOLDER = "identities"


def _roots() -> list[tuple[str, Path]]:
    return [(name, path) for name in FOLDERS for path in model_folders(name)]


def list_weights() -> list[str]:
    """``folder/file`` of every file that may hold identity weights, or one entry that says there is none."""
    found = [
        f"{name}/{path.relative_to(root).as_posix()}"
        for name, root in _roots()
        if root.is_dir()
        for path in sorted(root.rglob("*"))
        if path.suffix in ENDINGS and path.is_file()
    ]
    shipped = [MINIATURE] if (SHIPPED / Path(MINIATURE).name).is_file() else []
    return list(dict.fromkeys([*found, *shipped])) or [NONE]


def find(name: str) -> Path:
    """Path of a file that :func:`list_weights` names.

    Raises:
        LikenessError: it is not there; the message says what to get and where to put it.
    """
    shipped = SHIPPED / Path(MINIATURE).name
    if name == MINIATURE and shipped.is_file():
        return shipped
    folder, _, file = name.partition("/")
    for known, root in _roots():
        if known == folder and (root / file).resolve().is_relative_to(root.resolve()) and (root / file).is_file():
            return root / file
    raise bad_input(
        "Load Identity Weights: file", repr(name), "a file in models/ipadapter, models/instantid or models/magicid",
        "Put one there, for SD1.5 for example ip-adapter-faceid-plusv2_sd15.bin of h94/IP-Adapter-FaceID on Hugging "
        "Face (for non-commercial research), and reload the page.",
    )  # fmt: skip


def load(name: str, form: str = AUTO) -> LoadedWeights:
    """Read a file that :func:`list_weights` names.

    Raises:
        LikenessError: it is not there, or none that this pack knows.
    """
    return LoadedWeights.of(load_identity_weights(find(name), form))


def _identity_folder() -> Path:
    return model_folders(IDENTITY_FOLDER)[0]


def list_identities() -> list[str]:
    """Names of the identity files in ``models/identities``, or one entry that says there are none."""
    folder = _identity_folder()
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors"))
    return found or [NONE]


def find_identities(name: str) -> Path:
    """Path of an identity file.

    Raises:
        LikenessError: there is none of that name.
    """
    folder = _identity_folder()
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        raise bad_input(
            "Load Identities: file", repr(name), "a file in models/identities", "Save identities first, or copy it."
        )
    return path


def read_identities(name: str, loaded: LoadedWeights) -> tuple[Identity, ...]:
    """The people of an identity file.

    Raises:
        LikenessError: no such file, or one made with another encoder.
    """
    saved = load_identities(find_identities(name))
    if saved.encoder != loaded.key:
        raise bad_input(
            f"Load Identities: {name}", f"identities encoded by {saved.made_with}", f"by {loaded.weights.name}",
            "Load the weights they were made with, or make them again from the photos.",
        )  # fmt: skip
    return tuple(Identity(**vars(one), encoder=saved.encoder) for one in saved.people)


def write_identities(identities: Identities, name: str, overwrite: bool) -> Path:
    """Write people into ``models/identities``; an existing name gets a number unless it may be replaced.

    Raises:
        LikenessError: nobody to save, a name that is no plain file name, or a full disk.
    """
    stem = plain_name(name, "Save Identities: name")
    if not identities.people:
        raise bad_input("Save Identities: identities", "nobody", "at least one person", "Connect MagicID Identity.")
    path = free_path(_identity_folder(), stem, overwrite)
    told = [{k: v for k, v in vars(one).items() if k != "encoder"} for one in identities.people]
    people = tuple(SavedPerson(**one) for one in told)
    return save_identities(SavedIdentities(people, identities.loaded.key, identities.loaded.weights.name), path)
