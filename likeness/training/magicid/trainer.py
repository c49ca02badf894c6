"""The loop of MMF on Hugging Face Accelerate: one process to many nodes.

All randomness of a step is a function of (seed, step), and a process takes its rows of the one global batch: so a run
that was interrupted goes on with the curve it would have had, and any number of processes gives the same result.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from ...core.errors import LikenessError, bad_input
from ...formats.magicid import MagicIdWeights
from .gauge import Gauge
from .losses import Balance, clone_face_loss, weighted_error
from .model import Average, MagicIdModel
from .request import CONTROL, UNET, MagicIdTraining, Phase, Stage, StepReport, stages
from .samples import Batch, Sample, Sampler

logger = logging.getLogger("likeness")

PROGRESS = "progress.json"


def learning_rate(progress: float, warmup: float = 0.02, floor: float = 0.02) -> float:
    """Factor at ``progress`` 0..1 of a stage: linear warm-up, then half a cosine down to ``floor``."""
    if progress < warmup:
        return max(progress / warmup, 0.02)
    p = min((progress - warmup) / (1 - warmup), 1.0)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * p))


class MagicIdTrainer:
    """A run's state and its one step.

    Args:
        config: the request.
        model: what is trained, round the frozen base.
        samples: the training set. empty: ``T C``, the text encoder's states of an empty text.
        accelerator: None makes one of the config's precision.
        held_out: samples of other people, for the paired gaps; fewer than two measure none.
    """

    def __init__(
        self, config: MagicIdTraining, model: MagicIdModel, samples: Sequence[Sample], empty: Tensor,
        accelerator: Accelerator | None = None, held_out: Sequence[Sample] = (),
    ) -> None:  # fmt: skip
        self.config, self.accelerator = config, accelerator or Accelerator(mixed_precision=config.precision)
        self.model = model.to(self.accelerator.device)
        self.sampler = Sampler(config, samples, empty, len(model.host.alphas_cumprod))
        self.gauge = Gauge(config, held_out, empty) if len(held_out) > 1 else None
        self.balance = Balance(len(model.host.alphas_cumprod))
        self.average = Average(self.model)
        self.stages = stages(config.phases)
        self.step, self.position, self.spent = 0, 0.0, 0.0
        self._stage: Stage | None = None
        self._clock = time.monotonic()
        parts = self.accelerator.num_processes * config.accumulate
        if config.batch % parts:
            raise bad_input(
                "MagicID training: batch", config.batch, f"a multiple of {parts} (processes x accumulated parts)",
                "Change one of them.",
            )  # fmt: skip
        self.accelerator.register_for_checkpointing(self)

    # --- stages -------------------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether all phases are over."""
        return self.position >= self.config.steps

    @property
    def phase(self) -> Phase:
        """The phase that the next step belongs to."""
        return self._now().phase(self.position)

    def _now(self) -> Stage:
        return next((stage for stage in self.stages if self.position < stage.end), self.stages[-1])

    def _enter(self, stage: Stage) -> None:
        """A fresh optimiser for what this stage trains; what earlier ones left is their average."""
        if self._stage is not None:
            self.average.put(self.model)
            self.accelerator.free_memory()
            self.model.zero_grad(set_to_none=True)  # gradients of what learns no more would count in the norm
        self.model.learn(stage.phases[0])
        self.model.train()
        config = self.config
        groups = self.model.groups(config)
        optimiser = torch.optim.AdamW(
            groups, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
        )
        self.wrapped, self.optimiser = self.accelerator.prepare(self.model, optimiser)
        self._stage, self._began = stage, self.step

    # --- one step -----------------------------------------------------------------------------------------------------

    def advance(self) -> StepReport:
        """One optimiser step."""
        started = time.perf_counter()
        stage = self._now()
        if stage is not self._stage:
            self._enter(stage)
        phase, config = self.phase, self.config
        clone = bool(phase.clone_every) and (self.step + 1) % phase.clone_every == 0
        rate = config.learning_rate * learning_rate((self.position - stage.start) / stage.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["rate"]
        batch = self.sampler.batch(self.step, phase, clone)
        self.optimiser.zero_grad(set_to_none=True)
        errors, parts = self._backward(batch, phase)
        if config.clip:
            self.accelerator.clip_grad_norm_(self.wrapped.parameters(), config.clip)
        self.optimiser.step()
        self.step += 1
        seen = self.step - self._began
        self.average.update(self.model, min(config.ema, (1 + seen) / (10 + seen)))
        self._tick()
        loss = float(errors.mean())
        if not math.isfinite(loss):
            raise LikenessError(f"MagicID training: the loss at step {self.step} is {loss}. Lower the learning rate.")
        took = time.perf_counter() - started
        return StepReport(self.step, self.position, phase.name, loss, took, clone, parts)

    def _backward(self, batch: Batch, phase: Phase) -> tuple[Tensor, dict[str, float]]:
        """Gradients of this process's rows, part by part; the errors of all rows, and terms for the log.

        They come from the device together, the only wait of a step.
        """
        config, accelerator = self.config, self.accelerator
        size = config.batch // (accelerator.num_processes * config.accumulate)
        first = accelerator.process_index * config.accumulate * size
        factors = self.balance.weights(batch.timesteps) if config.balanced else torch.ones(config.batch)
        errors, seen = [], []
        for part in range(config.accumulate):
            low = first + part * size
            rows, factor = batch.rows(low, low + size).to(accelerator.device), factors[low : low + size]
            whole = part == config.accumulate - 1
            with _synchronised(accelerator, self.wrapped, whole), accelerator.autocast():
                predicted, calls = self.wrapped(rows, phase.places, batch.clone)
                error = weighted_error(predicted, rows.noise, rows.weights)
                loss = (error * factor.to(error, non_blocking=True)).mean()
                if batch.clone:
                    place = CONTROL if CONTROL in phase.places else UNET
                    cfa, terms = clone_face_loss(calls[place].features, rows.boxes, config.cfa_grid)
                    loss = loss + config.cfa_weight * cfa
                    seen.append(terms)
                accelerator.backward(loss / config.accumulate)
            errors.append(error.detach())
        gathered = accelerator.gather(torch.stack(errors)).reshape(-1)
        names = tuple(seen[0]) if seen else ()
        means = [accelerator.gather(torch.stack([part[name] for part in seen])).mean() for name in names]
        told = torch.cat([gathered, *(mean.reshape(1).to(gathered) for mean in means)]).cpu()
        self.balance.update(told[: len(gathered)], batch.timesteps)
        return told[: len(gathered)], dict(zip(names, told[len(gathered) :].tolist(), strict=True))

    def _tick(self) -> None:
        """Move the position: by steps, or by the first process's clock where there is a budget of minutes."""
        now = time.monotonic()
        self.spent += now - self._clock
        self._clock = now
        if not self.config.minutes:
            self.position = float(self.step)
            return
        share = self.agreed(self.spent / (60 * self.config.minutes))
        self.position = min(share, 1.0) * self.config.steps

    def agreed(self, value: float) -> float:
        """What the first process says, whose clock counts for all."""
        if self.accelerator.num_processes == 1:
            return value
        return float(broadcast(torch.tensor(float(value), device=self.accelerator.device)))

    def measure(self) -> dict[str, float]:
        """The paired gaps of the current phase; empty without held-out samples."""
        return {} if self.gauge is None else self.gauge.measure(self.model, self.phase)

    # --- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What Accelerate keeps beside model and optimiser."""
        balance = {"mean": self.balance.mean, "seen": self.balance.seen}
        return {"average": self.average.values, "balance": balance}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.balance.mean, self.balance.seen = state["balance"]["mean"], state["balance"]["seen"]
        for name, value in state["average"].items():
            self.average.values[name].copy_(value)

    def save(self, folder: str | Path) -> None:
        """Write the whole state; what was there stays until the new one is whole."""
        folder, fresh = Path(folder), Path(folder).with_name(Path(folder).name + ".new")
        if self.accelerator.is_main_process and fresh.exists():
            shutil.rmtree(fresh)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(fresh), safe_serialization=True)
        if self.accelerator.is_main_process:
            told = {"step": self.step, "position": self.position, "spent": self.spent, "began": self._began}
            (fresh / PROGRESS).write_text(json.dumps({**told, "config": self.config.to_dict()}))
            if folder.exists():
                shutil.rmtree(folder)
            fresh.rename(folder)
        self.accelerator.wait_for_everyone()

    def restore(self, folder: str | Path) -> None:
        """Go on from :meth:`save`.

        Raises:
            LikenessError: nothing whole is there, or it was saved with other settings.
        """
        try:
            told = json.loads((Path(folder) / PROGRESS).read_text())
        except (OSError, ValueError) as cause:
            came = f"{folder} ({cause})"
            raise bad_input("MagicID training: resume", came, "a saved state", "Start anew.") from cause
        saved, ours = told["config"], json.loads(json.dumps(asdict(self.config)))
        differing = ", ".join(f"{k} {saved.get(k)!r} -> {ours[k]!r}" for k in ours if ours[k] != saved.get(k))
        if differing:
            raise bad_input("MagicID training: resume", differing, "the settings it began with", "Start a new run.")
        self.step, self.position, self.spent = told["step"], told["position"], told["spent"]
        self._enter(self._now())
        self._began = told["began"]
        self.accelerator.load_state(str(folder))
        self._clock = time.monotonic()

    def weights(self, embedder: str = "", **notes: Any) -> MagicIdWeights:
        """The averaged weights as they stand, a copy that further steps do not change."""
        values, kept = self.average.values, self.model.state_dict()
        state = {name: values.get(name, kept[name]).detach().cpu().clone() for name in kept}
        control = {k.removeprefix("control."): v for k, v in state.items() if k.startswith("control.")}
        return MagicIdWeights(
            _filled(self.model.encoder, state, "encoder."),
            {p: _filled(a, state, f"attention.{p}.") for p, a in self.model.attention.items()},
            control, embedder, self.config.modes, self.step, notes,
        )  # fmt: skip


def _synchronised(accelerator: Accelerator, model: torch.nn.Module, whole: bool) -> AbstractContextManager:
    """Processes exchange gradients with the last part of a step only."""
    return nullcontext() if whole else accelerator.no_sync(model)


def _filled(module: Any, state: dict[str, Tensor], prefix: str) -> Any:
    made = copy.deepcopy(module).cpu().requires_grad_(False).eval()
    made.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    return made


def train(
    trainer: MagicIdTrainer,
    on_step: Callable[[StepReport], None] | None = None,
    checkpoint: str | Path | None = None,
    every_seconds: float = 180.0,
    measure_every: int = 0,
    on_measure: Callable[[int, dict[str, float]], None] | None = None,
) -> MagicIdTrainer:
    """Run a trainer to its end, from wherever it stands.

    Args:
        checkpoint: folder of the state, written every ``every_seconds`` and when the run is cut short.
        measure_every: steps between measurements of the paired gaps.
    """
    saved = time.monotonic()
    try:
        while not trainer.done:
            report = trainer.advance()
            if on_step is not None:
                on_step(report)
            if measure_every and on_measure is not None and (report.step % measure_every == 0 or trainer.done):
                on_measure(report.step, trainer.measure())
            if checkpoint is not None and trainer.agreed(time.monotonic() - saved > every_seconds):
                trainer.save(checkpoint)
                saved = time.monotonic()
    except KeyboardInterrupt:
        if checkpoint is not None and trainer.step:
            trainer.save(checkpoint)
        raise
    if checkpoint is not None:
        trainer.save(checkpoint)
    return trainer
