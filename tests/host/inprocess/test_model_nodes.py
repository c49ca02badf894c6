"""The host's own nodes that patch a model, each before and after MagicFace and a persona: all of them keep acting."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.comfy import magicface, tiny
from support.comfy.persona import PLAIN, PROMPT, chain

from likeness.hosts.comfy.persona import apply as comfy_persona
from likeness.hosts.comfy.persona.session import PersonaSystem
from likeness.hosts.comfy.wrappers import install

#: Module and class in ``comfy_extras``, inputs after the model, and whether it changes this tiny model's picture.
NODES: dict[str, tuple[str, tuple[Any, ...], bool]] = {
    "FreeU_V2": ("nodes_freelunch", (1.3, 1.4, 0.9, 0.2), True),
    "PerturbedAttentionGuidance": ("nodes_pag", (3.0,), True),
    "SelfAttentionGuidance": ("nodes_sag", (0.8, 2.0), True),
    "NAGuidance": ("nodes_nag", (5.0, 0.5, 1.5), True),
    "PatchModelAddDownscale": ("nodes_model_downscale", (3, 2.0, 0.0, 0.5, True, "bicubic", "bicubic"), True),
    "HyperTile": ("nodes_hypertile", (32, 2, 0, False), True),
    "TomePatchModel": ("nodes_tomesd", (0.5,), True),
    "UNetSelfAttentionMultiply": ("nodes_attention_multiply", (1.2, 1.0, 0.9, 1.0), True),
    "UNetCrossAttentionMultiply": ("nodes_attention_multiply", (1.2, 1.0, 0.9, 1.0), True),
    "RescaleCFG": ("nodes_model_advanced", (0.7,), True),
    "ModelSamplingDiscrete": ("nodes_model_advanced", ("v_prediction", True), True),
    "APG": ("nodes_apg", (1.0, 5.0, 0.0), True),
    "TCFG": ("nodes_tcfg", (), True),
    "Mahiro": ("nodes_mahiro", (), True),
    "FreSca": ("nodes_fresca", (1.0, 1.5, 2), True),
    "EpsilonScaling": ("nodes_eps", (1.02,), True),
    "TemporalScoreRescaling": ("nodes_eps", (0.5, 1.0), True),
    "DifferentialDiffusion": ("nodes_differential_diffusion", (1.0,), False),
    "EasyCacheNode": ("nodes_easycache", (0.2, 0.0, 1.0, False), False),
    "LazyCacheNode": ("nodes_easycache", (0.2, 0.0, 1.0, False), False),
}


#: Nodes that came after ComfyUI 0.8.0: the module is looked for, and only its absence skips the test.
NEWER = {"NAGuidance"}


def put(name: str, model: Any) -> Any:
    """The model that the host's node gives; skips where the host is older than the node."""
    module, inputs, _ = NODES[name]
    if name in NEWER and importlib.util.find_spec(f"comfy_extras.{module}") is None:
        pytest.skip(f"this ComfyUI has no {name}")
    node = getattr(importlib.import_module(f"comfy_extras.{module}"), name)
    return node.execute(model, *inputs)[0] if hasattr(node, "execute") else node().patch(model, *inputs)[0]


@pytest.fixture(scope="module")
def parts(parts: Any) -> Any:
    """With a shallow UNet: every kind of layer that the nodes look for, few of each."""
    return replace(parts, model=tiny.model(tiny.diffusers_unet(layers_per_block=1)))


def sample(parts: Any, model: Any, positive: list, seed: int = 0) -> torch.Tensor:
    """Two levels: one with RSA before the persona speaks, one with RBA while it does."""
    return tiny.sample(model, positive, parts.negative, steps=2, scheduler="simple", seed=seed)


def both(parts: Any, model: Any) -> tuple[Any, list]:
    """MagicFace and a persona on a model."""
    below = magicface.apply(parts, magicface.chain("face", mask=magicface.box()), PLAIN, model=model, alpha=0.5).model
    return comfy_persona.apply(below, parts.clip, chain(), PROMPT)


@pytest.fixture(scope="module")
def ours_alone(parts: Any) -> torch.Tensor:
    """The picture without a node of the host."""
    return sample(parts, *both(parts, parts.model))


@pytest.mark.parametrize("name", NODES)
def test_both_act_beside_the_hosts_node(parts: Any, ours_alone: torch.Tensor, name: str) -> None:
    alone = put(name, parts.model)
    ours, positive = both(parts, parts.model)
    plain = magicface.apply(parts, None, PLAIN).positive
    after, before = sample(parts, put(name, ours), positive), sample(parts, *both(parts, alone))
    assert torch.isfinite(after).all()
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)
    for other in ((put(name, ours), plain), (put(name, install(parts.model, PersonaSystem())), positive)):
        apart = (after - sample(parts, *other)).norm()
        assert apart > 1e-3 * after.norm(), "the persona and MagicFace act, each by itself"
    if NODES[name][2]:
        assert (after - ours_alone).norm() > 1e-3 * after.norm(), "the host's node acts"
    assert torch.equal(sample(parts, ours, positive), ours_alone), "nothing of it stays behind"


@pytest.mark.parametrize("which", ["magicface", "persona"])
def test_a_compiled_model_gives_the_same_pictures(parts: Any, which: str, caplog: pytest.LogCaptureFixture) -> None:
    """As the host's TorchCompileModel compiles it, blind to the options; after a run without us has been compiled."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    if which == "magicface":
        applied = magicface.apply(parts, magicface.chain("face", mask=magicface.box()), PLAIN, alpha=0.5)
        model, positive = applied.model, applied.positive
    else:
        model, positive = comfy_persona.apply(parts.model, parts.clip, chain(), PROMPT)
    compiled = model.clone()
    guards = {"guard_filter_fn": lambda entries: ["transformer_options" not in entry.name for entry in entries]}
    set_torch_compile_wrapper(compiled, backend="eager", options=guards)
    plain = magicface.apply(parts, None, PLAIN).positive
    if which == "persona":  # MagicFace acts on any conditioning: there is no plain run with its model
        assert torch.equal(*(sample(parts, m, plain) for m in (compiled, model)))
    with caplog.at_level("INFO", logger="likeness"):
        for seed in (0, 1):
            out, expected = (sample(parts, m, positive, seed) for m in (compiled, model))
            assert torch.equal(out, expected)
    assert caplog.text.count("without torch.compile") == 2
