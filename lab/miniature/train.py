"""``python run.py miniature train NAME``: retrains a part of the miniature from its seed, or goes on where it stopped.

Checkpoints lie in ``.state/`` (not under version control), logs in ``logs/`` beside this file, weights in
``likeness/miniature/weights/``. Budgets are minutes of wall-clock time, so the same command fits a laptop and a GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence

from safetensors.torch import save_file
from torch import nn

from lab.miniature.loop import LOGS, Checkpoint, Log
from likeness.miniature.models import WEIGHTS

log = logging.getLogger("likeness")


def export(model: nn.Module, name: str) -> None:
    """Write the weights as fp16 safetensors."""
    WEIGHTS.mkdir(exist_ok=True)
    tensors = {k: v.detach().cpu().half().contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, WEIGHTS / f"{name}.safetensors")


def _autoencoder(overrides: dict) -> None:
    from lab.miniature import train_autoencoder as part

    config = dataclasses.replace(part.Config(), **overrides)
    export(part.train(config, Checkpoint("autoencoder"), Log("autoencoder")), "autoencoder")


def _unet(overrides: dict) -> None:
    from lab.miniature import train_unet as part

    config = dataclasses.replace(part.Config(), **overrides)
    part.train(config, Checkpoint(f"unet{config.size}"), Log(f"unet{config.size}"))


def _referee(name: str, overrides: dict) -> None:
    from lab.miniature import train_referees as part

    config = dataclasses.replace(part.CONFIGS[name], **overrides)
    export(part.train(name, config, Checkpoint(name), Log(name)), name)
    from lab.evaluation.referees import report

    table = report(name)
    (LOGS / f"{name}.md").write_text(f"# {name}, held-out pictures\n\n{table}\n", encoding="utf-8")
    log.info("%s", table)


PARTS: dict[str, Callable[[dict], None]] = {
    "autoencoder": _autoencoder,
    "unet": _unet,
    **{name: functools.partial(_referee, name) for name in ("detector", "embedder", "classifier")},
}


def _overrides(pairs: Sequence[str]) -> dict:
    out = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        out[key] = float(value) if "." in value else int(value) if value.lstrip("-").isdigit() else value
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="run.py miniature train", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=sorted(PARTS))
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of the part, e.g. minutes=30")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    PARTS[args.part](_overrides(args.settings))
    return 0
