"""What an MMF training is asked for, and what it asks of a host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Protocol

from torch import Tensor, nn

from ...core.errors import bad_input
from .attention import TrainingCall

PLACES = UNET, CONTROL = ("unet", "control")
PRECISIONS = ("no", "bf16")


@dataclass(frozen=True)
class Phase:
    """A part of the training.

    Attributes:
        name: for the log.
        steps: its length; with a budget of minutes its share of them.
        places: whose identity attention learns and acts (:data:`PLACES`). ``"control"`` is the whole ControlNet.
        modes: pose conditions, of which each batch takes one in turn; needed by ``"control"``.
        clone_every: each so manieth step is on clone pictures (Clone Face Tuning); 0 for never.
        encoder: whether the encoder learns, too.
    """

    name: str
    steps: int
    places: tuple[str, ...] = (CONTROL,)
    modes: tuple[str, ...] = ()
    clone_every: int = 0
    encoder: bool = True


#: Section "Implement Details": landmarks, then skeletons, then everything with clone pictures.
PAPER_PHASES = (
    Phase("landmarks", 50_000, modes=("landmarks",)),
    Phase("skeletons", 100_000, modes=("skeleton",)),
    Phase("everything", 1_000_000, modes=("landmarks", "skeleton"), clone_every=10),
)


@dataclass(frozen=True)
class MagicIdTraining:
    """One training run. Defaults are the paper's; what it leaves open is told at each field.

    Attributes:
        phases: one after the other. Neighbours with the same ``places`` and ``encoder`` share optimiser and schedule.
        minutes: wall-clock budget of the whole run, which phases and schedule fill; 0 counts steps.
        batch: pictures of one optimiser step, over all processes and all accumulated parts.
        accumulate: parts a step is computed in.
        learning_rate: of identity attention and encoder, falling in a half cosine to 2%.
        control_rate: factor on it for the ControlNet's copied weights.
        betas, weight_decay, clip: of AdamW (weight decay 0 is the paper's Adam) and of the gradient's norm.
        empty: share of pictures whose text is left out. nobody: share without identity, so that guidance knows both.
        everywhere: share of single people whose identity acts in the whole picture (Eq. 1) instead of their region.
        cfa_weight: lambda of Eq. 4.
        cfa_grid: least side of a token grid that ``L_cfa`` looks at, exclusive. Models without such a grid use their
            finest.
        alike: share of a batch that shows one scene with several people in turn, with the same noise.
        alike_from: least timestep of these.
        balanced: give all noise levels the same say instead of Eq. 3's.
        ema: decay of the moving average of the weights, which is what a training leaves.
        precision: of Accelerate's autocast.
        checkpointing: recompute activations instead of keeping them.
        seed: of every random choice.
    """

    phases: tuple[Phase, ...] = PAPER_PHASES
    minutes: float = 0.0
    batch: int = 128
    accumulate: int = 1
    learning_rate: float = 1e-4
    control_rate: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip: float = 1.0
    empty: float = 0.1
    nobody: float = 0.05
    everywhere: float = 0.5
    cfa_weight: float = 0.2
    cfa_grid: int = 32
    alike: float = 0.0
    alike_from: int = 250
    balanced: bool = False
    ema: float = 0.9999
    precision: str = "no"
    checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = [
            (not self.phases or min(p.steps for p in self.phases) < 1, "phases", self.phases, "phases of some steps"),
            (self.batch < 1 or self.accumulate < 1, "batch, accumulate", (self.batch, self.accumulate), "at least 1"),
            (self.precision not in PRECISIONS, "precision", self.precision, f"one of {PRECISIONS}"),
            (not 0 <= self.alike <= 1, "alike", self.alike, "a share"),
        ]
        for phase in self.phases:
            unknown = not phase.places or not set(phase.places) <= set(PLACES)
            blind, name = CONTROL in phase.places and not phase.modes, f"phase {phase.name!r}"
            wrong += [
                (unknown, f"{name}: places", phase.places, f"some of {PLACES}"),
                (blind, f"{name}: modes", "none", "a pose condition"),
            ]
        for failed, name, came, expected in wrong:
            if failed:
                raise bad_input(f"MagicID training: {name}", came, expected, "Correct the value.")

    @property
    def steps(self) -> int:
        """Length of all phases."""
        return sum(phase.steps for phase in self.phases)

    @property
    def places(self) -> tuple[str, ...]:
        """Every place that some phase trains."""
        return tuple(place for place in PLACES if any(place in phase.places for phase in self.phases))

    @property
    def modes(self) -> tuple[str, ...]:
        """Every pose condition that some phase trains."""
        return tuple(dict.fromkeys(mode for phase in self.phases for mode in phase.modes))

    def to_dict(self) -> dict:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Stage:
    """Neighbouring phases that train the same, from position ``start`` on: one optimiser, one learning-rate curve."""

    start: int
    phases: tuple[Phase, ...]

    @property
    def steps(self) -> int:
        """Its length."""
        return sum(phase.steps for phase in self.phases)

    @property
    def end(self) -> int:
        """Position at which it is over."""
        return self.start + self.steps

    def phase(self, position: float) -> Phase:
        """The phase at a position of the run."""
        end = self.start
        for phase in self.phases:
            end += phase.steps
            if position < end:
                return phase
        return self.phases[-1]


def stages(phases: tuple[Phase, ...]) -> tuple[Stage, ...]:
    """The phases, those that train the same together."""
    found: list[Stage] = []
    for _, group in groupby(phases, key=lambda phase: (phase.places, phase.encoder)):
        found.append(Stage(found[-1].end if found else 0, tuple(group)))
    return tuple(found)


class TrainingHost(Protocol):
    """What a host lends: the frozen base model."""

    alphas_cumprod: Tensor

    def predict(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        text: Tensor,
        calls: Mapping[str, TrainingCall],
        control: nn.Module | None = None,
        pose: Tensor | None = None,
    ) -> Tensor:
        """``B 4 h w``, ``B``, ``B T C`` -> predicted noise ``B 4 h w``.

        Args:
            calls: per place that acts, its identities.
            control: the ControlNet, where it acts, with ``pose`` ``B 3 8h 8w`` in [0, 1].
        """


@dataclass(frozen=True)
class StepReport:
    """One finished step."""

    step: int
    position: float
    phase: str
    loss: float
    seconds: float
    clone: bool = False
    parts: Mapping[str, float] = field(default_factory=dict)
