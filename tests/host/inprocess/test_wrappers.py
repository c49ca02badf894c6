"""The shared plumbing of the systems: a session per run, opened and closed whatever happens, and calls by name."""

from __future__ import annotations

from dataclasses import dataclass, field

import comfy.samplers
import pytest
import torch
from support.comfy import tiny

from likeness.hosts.comfy.wrappers import ModelCall, RunStart, Session, System, install


class Listening(Session):
    """Writes down what happens to it; ``factor`` scales the denoised latents."""

    def __init__(self, events: list, factor: float) -> None:
        self.events = events
        self.factor = factor

    def call(self, call: ModelCall) -> torch.Tensor:
        kinds = [row.conditional for row in call.rows()]
        self.events.append(("call", kinds, tuple(call.context.shape)))
        if self.factor == 0:
            raise comfy.model_management.InterruptProcessingException
        return call.forward(x=call.x) * self.factor

    def finish(self, latents):
        self.events.append(("finish", tuple(latents.shape)))

    def close(self):
        self.events.append(("close",))


@dataclass(frozen=True)
class Listener(System):
    key = "likeness_listener"
    node = "Listener"

    factor: float | None = 1.0
    events: list = field(default_factory=list)

    def open(self, start: RunStart) -> Session | None:
        self.events.append(("open", len(start.sigmas), sorted(start.guider.conds)))
        return None if self.factor is None else Listening(self.events, self.factor)


@dataclass(frozen=True)
class Second(Listener):
    key = "likeness_second"


def sample(parts, model):
    return tiny.sample(model, parts.negative, parts.negative, steps=2)


def test_a_run_is_opened_called_finished_and_closed(parts):
    listener = Listener()
    out = sample(parts, install(parts.model, listener))
    assert torch.equal(out, sample(parts, parts.model))
    call = ("call", [False, True], (2, 77, tiny.CONTEXT_WIDTH))  # the host's own order
    opened = ("open", 3, ["negative", "positive"])
    assert listener.events == [opened, call, call, ("finish", (1, 4, 16, 16)), ("close",)]


def test_a_run_may_be_left_alone(parts):
    listener = Listener(None)
    assert torch.equal(sample(parts, install(parts.model, listener)), sample(parts, parts.model))
    assert [event[0] for event in listener.events] == ["open"]


def test_an_interrupt_closes_and_leaves_nothing(parts):
    stopping = Listener(0.0)
    model = install(parts.model, stopping)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(parts, model)
    assert [event[0] for event in stopping.events] == ["open", "call", "close"]
    assert "likeness_listener" not in model.model_options["transformer_options"]
    assert torch.equal(sample(parts, parts.model), sample(parts, install(parts.model, Listener())))


def test_a_later_one_of_the_same_key_takes_its_place_and_others_nest(parts):
    first, later, other = Listener(0.5), Listener(0.8), Second(0.5)
    out = sample(parts, install(install(install(parts.model, first), later), other))
    assert not first.events
    assert [event[0] for event in later.events] == [event[0] for event in other.events]
    assert torch.equal(out, sample(parts, install(parts.model, Listener(0.8 * 0.5))))


@pytest.mark.parametrize("named", [0, 2, 4])
def test_arguments_are_read_and_handed_on_however_they_are_given(named):
    values = {"c_concat": 1, "c_crossattn": 2, "control": 3, "transformer_options": {"a": 4}}
    names = list(values)
    places = [values[n] for n in names[:named]]
    kwargs = {n: values[n] for n in names[named:]}

    class Executor:
        class_obj = "base"

        def __call__(self, *args, **kwargs):
            return args, kwargs

    call = ModelCall.read(Executor(), "x", "t", *places, **kwargs, y=5)
    assert (call.model, call.concat, call.context, call.control, call.options) == ("base", 1, 2, 3, {"a": 4})
    assert call.forward() == (("x", "t", 1, 2, 3, {"a": 4}), {"y": 5})
    assert call.forward(context=6, extra={}) == (("x", "t", 1, 6, 3, {"a": 4}), {})
