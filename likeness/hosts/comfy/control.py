"""CONTROL_NETs put on CONDITIONING, as the host's own node does it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.errors import bad_input


def with_control(
    conditioning: list, control_net: Any, hint: Tensor, strength: float, span: tuple[float, float], made: dict,
    vae: Any = None,
) -> list:  # fmt: skip
    """Conditioning with a ControlNet behind those that stand there.

    Args:
        control_net: the host's; copied. hint: ``B 3 H W`` in [0, 1]. span: shares of the steps between which it acts.
        made: copies so far, for positive and negative to share theirs; begin with an empty one.
        vae: for ControlNets that take latents.
    """
    entries = []
    for text, values in conditioning:
        before = values.get("control")
        if id(before) not in made:
            control = control_net.copy().set_cond_hint(hint, strength, span, vae=vae)
            control.set_previous_controlnet(before)
            made[id(before)] = control
        entries.append([text, {**values, "control": made[id(before)], "control_apply_to_uncond": False}])
    return entries


def check_control(control_net: Any, context_width: int, socket: str) -> None:
    """Raise a :class:`LikenessError` where a ControlNet was trained for another family of models.

    Args:
        context_width: channels of the text the model reads. socket: node and input, for the error.
    """
    network = getattr(control_net, "control_model", None)
    parameters = network.named_parameters() if isinstance(network, torch.nn.Module) else ()
    width = next((weight.shape[1] for name, weight in parameters if name.endswith("attn2.to_k.weight")), None)
    if width not in (None, context_width):
        raise bad_input(
            socket,
            f"a ControlNet for text of {width} channels",
            f"one for the {context_width} channels this model reads",
            "Load a ControlNet of the model's own family (SD1.x, SD2.x and SDXL differ).",
        )
