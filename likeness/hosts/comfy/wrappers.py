"""The one place where the pack listens in on ComfyUI's sampling; a system brings only its own part.

A system is a :class:`System` put on a clone of the model by :func:`install`, and a :class:`Session` that it opens when
sampling starts::

    class MySession(Session):
        def call(self, call: ModelCall) -> torch.Tensor:
            rows = call.rows()
            return call.forward() if rows is None else call.forward(context=...)

    @dataclass(frozen=True)
    class MySystem(System):
        key = "likeness_mine"
        node = "My Apply"

        def open(self, start: RunStart) -> MySession | None:
            return MySession(...)

    patched = install(model, MySystem())

All that stays on a model are wrappers under the system's key. The session stands in that run's own model options, so
that two queued runs, or two branches of one graph, never meet; when sampling ends, also by an error or an interrupt,
it is taken out and closed. Several systems on one model do not know of each other: they nest, the one installed first
outermost.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from comfy.patcher_extension import WrappersMP

from .compat import uncompiled
from .rows import BATCH_KEY, Batch, Row, rows_of

#: Arguments of ``BaseModel.apply_model`` behind ``x`` and ``t``, in its order; further ones come by name.
_APPLY_MODEL_ARGUMENTS = ("c_concat", "c_crossattn", "control", "transformer_options")


@dataclass(frozen=True)
class RunStart:
    """What is known when sampling starts, before the host loads the model.

    Attributes:
        guider: the host's guider; its ``conds`` hold the run's conditionings by name, each with its ``uuid``.
        noise, latent: ``B C h w``, as the sampler node got them.
        sigmas: the run's noise levels, first to last.
    """

    guider: Any
    noise: torch.Tensor
    latent: torch.Tensor
    sigmas: torch.Tensor

    @property
    def model(self) -> Any:
        """The ModelPatcher that is sampled."""
        return self.guider.model_patcher

    @property
    def options(self) -> dict[str, Any]:
        """The model options of this run alone: the host has copied them for it."""
        return self.guider.model_options


@dataclass(frozen=True)
class ModelCall:
    """One ``apply_model``, its arguments by name whichever way the caller gave them.

    Attributes:
        model: the host's ``BaseModel``.
        x: ``B C h w``, the noisy latents. sigma: ``B``, the noise level of each row.
        concat: further input channels, or None. context: text ``B L C``, or None. control: a ControlNet's residuals.
        options: ``transformer_options``. What each row is tell :meth:`rows`, not the options.
        extra: what else the model takes (``y`` of SDXL).
    """

    model: Any
    x: torch.Tensor
    sigma: torch.Tensor
    concat: torch.Tensor | None
    context: torch.Tensor | None
    control: Any
    options: Mapping[str, Any]
    extra: Mapping[str, Any]
    _executor: Any = field(repr=False)

    @classmethod
    def read(cls, executor: Any, x: torch.Tensor, t: torch.Tensor, *args: Any, **kwargs: Any) -> ModelCall:
        """From the arguments of an ``APPLY_MODEL`` wrapper."""
        given = dict(zip(_APPLY_MODEL_ARGUMENTS, args, strict=False))
        concat, context, control, options = (given.get(n, kwargs.pop(n, None)) for n in _APPLY_MODEL_ARGUMENTS)
        return cls(executor.class_obj, x, t, concat, context, control, options or {}, kwargs, executor)

    @property
    def batch(self) -> Batch | None:
        """What the host was asked for; None where another pack makes its calls without the host."""
        return self.options.get(BATCH_KEY)

    def rows(self) -> list[Row] | None:
        """What each row of the call is; None where that cannot be told, and a system has to leave the call alone."""
        return rows_of(self.options, self.x, self.context)

    def forward(self, **changed: Any) -> torch.Tensor:
        """Go on with the call, some of its attributes changed: ``call.forward(context=..., options=...)``.

        Returns:
            The denoised latents, ``B C h w``.
        """
        c = replace(self, **changed) if changed else self
        return c._executor(c.x, c.sigma, c.concat, c.context, c.control, c.options, **c.extra)


class Session:
    """State of one sampling run of one system. Each method does nothing until a system says otherwise.

    Attributes:
        guider: the host's, while the run lasts.
    """

    guider: Any = None

    def __deepcopy__(self, _memo: dict) -> Session:
        """A run has one state, also when the host or another pack copies its options deeply."""
        return self

    def call(self, call: ModelCall) -> torch.Tensor:
        """One model call; go on by :meth:`ModelCall.forward`."""
        return call.forward()

    def finish(self, latents: torch.Tensor) -> None:
        """Sampling ended well with these latents, ``B C h w``."""

    def close(self) -> None:
        """Drop everything, however the run ended. Called once; must not raise."""


class System(ABC):
    """What a system keeps on a model between runs; it does not change.

    Attributes:
        key: of its wrappers, and of its session among a run's ``transformer_options``.
        node: name of the node that installs it, for messages.
    """

    key: ClassVar[str]
    node: ClassVar[str]

    @abstractmethod
    def open(self, start: RunStart) -> Session | None:
        """The session of a run that starts, or None to leave that run alone.

        Raises:
            LikenessError: something about the run cannot be right.
        """

    def counted_rows(self, model: Any, shape: Sequence[int]) -> int:
        """For how many pictures the host is to keep memory free, where the run's latents have this shape.

        Args:
            model: the ModelPatcher that is sampled. shape: ``B C h w``.
        """
        return shape[0]


def install(model: Any, system: System) -> Any:
    """A clone of ``model`` with this system on it, in place of an earlier one of the same key."""
    patched = model.clone()
    wrappers = _Wrappers(system)
    for kind, wrapper in (
        (WrappersMP.OUTER_SAMPLE, wrappers.outer_sample),
        (WrappersMP.PREPARE_SAMPLING, wrappers.prepare_sampling),
        (WrappersMP.CALC_COND_BATCH, wrappers.calc_cond_batch),
        (WrappersMP.APPLY_MODEL, wrappers.apply_model),
    ):
        patched.remove_wrappers_with_key(kind, system.key)
        patched.add_wrapper_with_key(kind, system.key, wrapper)
    return patched


@dataclass(frozen=True)
class _Wrappers:
    """The four wrappers of a system, in the host's own signatures."""

    system: System

    def outer_sample(self, executor: Any, noise: torch.Tensor, latent: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        guider, sigmas = executor.class_obj, args[1] if len(args) > 1 else kwargs["sigmas"]
        session = self.system.open(RunStart(guider, noise, latent, sigmas))
        if session is None:
            return executor(noise, latent, *args, **kwargs)
        with _standing(session, self.system, guider):
            out = executor(noise, latent, *args, **kwargs)
            session.finish(out)
            return out

    def prepare_sampling(self, executor: Any, model: Any, noise_shape: Sequence[int], *args: Any, **kwargs: Any) -> Any:
        rows = self.system.counted_rows(model, noise_shape)
        return executor(model, [rows, *noise_shape[1:]], *args, **kwargs)

    def calc_cond_batch(
        self, executor: Any, model: Any, conds: Sequence[Any], x: torch.Tensor, t: torch.Tensor, options: dict[str, Any]
    ) -> Any:
        inner = options.get("transformer_options", {})
        session = self._session(inner)
        if session is not None:
            batch = Batch.of(conds, x, getattr(session.guider, "conds", {}), inner)
            options = {**options, "transformer_options": {**inner, BATCH_KEY: batch}}
        return executor(model, conds, x, t, options)

    def apply_model(self, executor: Any, x: torch.Tensor, t: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        call = ModelCall.read(executor, x, t, *args, **kwargs)
        session = self._session(call.options)
        return call.forward() if session is None else session.call(call)

    def _session(self, options: Mapping[str, Any]) -> Session | None:
        return options.get(self.system.key)


@contextlib.contextmanager
def _standing(session: Session, system: System, guider: Any) -> Iterator[None]:
    """While the context is open the session stands in a run's options, and nothing compiled runs."""
    model_options = guider.model_options
    options = model_options.setdefault("transformer_options", {})
    options[system.key] = session
    session.guider = guider
    try:
        with uncompiled(model_options, system.node):
            yield
    finally:
        options.pop(system.key, None)
        session.close()
        session.guider = None
