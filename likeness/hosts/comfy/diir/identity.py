"""A person on a model: what a run is sampled with for the crops of one person."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ....core.magicface.request import MagicFaceRequest
from .. import text
from ..magicface import references as magicface
from ..magicface.apply import ApplyOptions
from ..magicface.previews import MagicFaceRecord
from ..magicface.references import References
from ..magicface.session import MagicFacePatch
from ..magicid.apply import How
from ..magicid.apply import apply as magicid
from ..magicid.identities import Identities
from ..persona import apply as persona
from ..unet import native_side, read_unet
from ..wrappers import install
from .people import Person

NODE = "DIIR Face Repair"


@dataclass(frozen=True)
class Identified:
    """The model with a person on it, and the face prompt's CONDITIONING."""

    model: Any
    positive: list


def identified(
    model: Any,
    clip: Any,
    vae: Any,
    chain: References | None,
    person: Person | None,
    prompt: str,
    seed: int,
    given: list | None = None,
    identities: Identities | None = None,
) -> Identified:
    """Put one person on a clone of the model and encode the face prompt.

    References are looked at in all steps and all over the crop (RSA): there is one face in it. What stands on the model
    already stays.

    Args:
        seed: of the noise put on the references. given: CONDITIONING to use instead of the prompt.
        identities: the chain that the person's identity is of; it acts everywhere in the crop.
    """
    positive = given
    if positive is None and person is not None and person.persona is not None:
        model, positive = persona.apply(model, clip, (person.persona,), prompt)
    elif positive is None:
        positive = text.encode(clip, prompt).conditioning
    if person is not None and person.identity is not None:
        model = magicid(model, Identities(identities.loaded, (person.identity,)), how=How(lora=1.0)).model
    if person is not None and person.concept is not None:
        model = _with_references(model, clip, vae, chain, person, positive, seed)
    return Identified(model, positive)


def _with_references(
    model: Any, clip: Any, vae: Any, chain: References, person: Person, positive: list, seed: int
) -> Any:
    prepared = magicface.prepare(model, clip, vae, (person.concept,), [()], side=native_side(model))
    cache = chain.cache(ApplyOptions.cache_device_mb, ApplyOptions.cache_host_mb)
    request = MagicFaceRequest(prepared, alpha=1.0, noise_seed=seed, cache=cache)
    blocks = read_unet(model, f"{NODE}: model")
    contexts = tuple(entry[0] for entry in positive)
    patch = MagicFacePatch(request, contexts, blocks, MagicFaceRecord(enabled=False), chain.weights_key)
    return install(model, patch)
