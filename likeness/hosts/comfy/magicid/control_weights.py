"""The Identity ControlNet of our own weights as the host's CONTROL_NET, in the shape of the model it is for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.model_management as management
import comfy.ops
import comfy.utils
from comfy.cldm.cldm import ControlNet as ControlNetwork
from comfy.controlnet import ControlNet
from comfy.ldm.modules.diffusionmodules.openaimodel import TimestepEmbedSequential
from torch import Tensor, nn

from ....core.errors import bad_input
from .session import NODE

HINT = "controlnet_cond_embedding."
#: Pixels of a latent's side: what a pose picture is folded by where the network has no strided convolutions for it.
FOLD = 8


def build(control: Mapping[str, Tensor], model: Any, source: str) -> ControlNet:
    """The host's ControlNet from weights in diffusers' keys.

    Args:
        control: of a ControlNet of the model's own topology. Its ``controlnet_cond_embedding`` is diffusers' own, or
            ``Sequential(PixelUnshuffle(8), Conv2d, SiLU, Conv2d, ...)`` of convolutions that keep the size.
        model: ComfyUI's MODEL. source: the weights' name, for the error.

    Raises:
        LikenessError: the weights are of another topology.
    """
    config = {k: v for k, v in model.model.model_config.unet_config.items() if k != "out_channels"}
    dtype = management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(control), weight_dtype=comfy.utils.weight_dtype(control)
    )
    device = management.get_torch_device()
    cast = management.unet_manual_cast(dtype, device)
    operations = comfy.ops.pick_operations(dtype, cast)
    made = {"dtype": dtype, "operations": operations, "device": management.unet_offload_device(), "hint_channels": 3}
    network = ControlNetwork(**{**config, **made})
    folded = f"{HINT}1.weight" in control
    if folded:
        network.input_hint_block = _folding(control, operations, dtype, made["device"])
    _fill(network, _host_keys(config, control, folded), source)
    return ControlNet(network, load_device=device, manual_cast_dtype=cast)


def _folding(control: Mapping[str, Tensor], operations: Any, dtype: Any, device: Any) -> TimestepEmbedSequential:
    """PixelUnshuffle and the convolutions of the weights, SiLU between them."""
    layers: list[nn.Module] = [nn.PixelUnshuffle(FOLD)]
    while (weight := control.get(f"{HINT}{len(layers)}.weight")) is not None:
        out, into, side, _ = weight.shape
        layers += [operations.Conv2d(into, out, side, padding=side // 2, dtype=dtype, device=device), nn.SiLU()]
    return TimestepEmbedSequential(*layers[:-1])


def _host_keys(config: Mapping[str, Any], control: Mapping[str, Tensor], folded: bool) -> dict[str, Tensor]:
    table = comfy.utils.unet_to_diffusers(config)
    return {_host_key(key, table, folded): value for key, value in control.items()}


def _host_key(key: str, table: Mapping[str, str], folded: bool) -> str:
    """The host's name of a weight; an unknown one keeps its own, and is complained of when it is loaded."""
    name, _, end = key.rpartition(".")
    if key.startswith(HINT):
        part = name.removeprefix(HINT)
        return f"input_hint_block.{part if folded else _hint_layer(part)}.{end}"
    if name == "controlnet_mid_block":
        return f"middle_block_out.0.{end}"
    if name.startswith("controlnet_down_blocks."):
        return f"zero_convs.{name.removeprefix('controlnet_down_blocks.')}.0.{end}"
    return table.get(key, key)


def _hint_layer(part: str) -> int:
    """Number of a layer of diffusers' condition embedding among the host's, where every second one is a SiLU."""
    if part.startswith("blocks."):
        return 2 * (int(part.removeprefix("blocks.")) + 1)
    return {"conv_in": 0, "conv_out": 14}[part]


def _fill(network: ControlNetwork, weights: Mapping[str, Tensor], source: str) -> None:
    try:
        network.load_state_dict(dict(weights), strict=True)
    except RuntimeError as cause:
        raise bad_input(
            f"{NODE}: Identity ControlNet of {source}", "weights for another structure than this model's",
            "those of the same structure", "Use the model they were trained on, or leave the pose unconnected.",
        ) from cause  # fmt: skip
