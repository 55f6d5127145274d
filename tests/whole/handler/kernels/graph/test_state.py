"""A graph knows its inputs alone: of what else decides what a module gives there is none."""

import datetime as dt
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.graphs import (
    DENSE,
    FLOAT32,
    WIDTH,
    Batch,
    Small,
    as_graph,
    assert_close,
    assert_graph,
    bags,
    copied,
    draw,
    draws,
)
from torchrec_handler.kernels.graph import methods
from torchrec_handler.kernels.graph.method import EVERY, GraphMethod
from torchrec_handler.kernels.graph.part import PartForward
from torchrec_handler.kernels.graph.parts import capture_parts
from torchrec_handler.kernels.graph.trials import Trial

ROWS = (1, 5, 7, 300)
check: Any = torch._check


class Part(nn.Module):
    """Two layers, and what is done with them."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k = nn.Linear(DENSE, WIDTH), nn.Linear(DENSE, WIDTH)
        self.temperature: Any = 1.0
        self.seen: list[Any] = []
        self._forward = forward

    def forward(self, *given: Any) -> Any:
        return self._forward(self, *given)


def stuck(forward: Callable[..., Any], call: Callable[[Any, torch.Tensor], Any]) -> Small:
    """A module that cannot be followed as a whole, and a part of it."""

    def whole(m: Any, b: Batch) -> dict[str, Any]:
        x = b["x"].clone()
        return {"y": call(m.part, x if x.sum() < 1e9 else x * 2)}

    return Small(whole, part=Part(forward), bags=bags())


def put(module: Small) -> str | None:
    """Let the part be a graph; or why it is none."""
    tried = [("forward", Trial(rows, draw(rows, ids=2))) for rows in (1, 2, 7, 16)]
    with torch.inference_mode():
        parts, declined = capture_parts(module, tried, lambda _, batch: module(batch), ())
        for part in parts:
            method = GraphMethod(part.graph, FLOAT32)
            method.trials = part.trials
            assert methods._differs(method, 1e-5) is None
            method.ranges = [*EVERY]
            setattr(part.module, "forward", PartForward(part.call, method))  # noqa: B010
    return declined[0].why if declined else None


def writes(part: Any, x: torch.Tensor) -> torch.Tensor:
    found, _ = part(x, x[:, :2].clone())
    found += 1
    return torch.cat([x, found], 1)


def views(part: Any, x: torch.Tensor) -> torch.Tensor:
    q, k = part(x)
    found: torch.Tensor = q.view(-1) + k.view(-1)
    return found.view(len(x), -1)


def told(part: Any, x: torch.Tensor) -> torch.Tensor:
    part.temperature = x.abs().max()
    found: torch.Tensor = part(x)
    return found


def remembers(m: Any, x: torch.Tensor) -> torch.Tensor:
    m.temperature = torch.softmax(m.q(x), -1)
    found: torch.Tensor = m.temperature * m.k(x)
    return found


def reads(part: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([part(x), part.temperature], 1)


OTHER = "its attributes change from call to call"
PARTS: Mapping[str, tuple[Small, str | None]] = {
    "a piece of a cat": (
        stuck(lambda m, x, y: (torch.cat([x, y], 1)[:, :DENSE], m.q(x)), writes),
        None,
    ),
    "a copy": (stuck(lambda m, x, _: (x.to(x.dtype, copy=True), m.q(x)), writes), None),
    "a cat of one": (stuck(lambda m, x, _: (torch.cat([x]), m.q(x)), writes), None),
    "one twice": (
        stuck(
            lambda m, x, _: ((y := m.q(x) * 2), y.to(y.dtype, copy=True)),
            lambda part, x: (got := part(x, x))[0].add_(1) - got[1],
        ),
        None,
    ),
    "views": (stuck(lambda m, x: (m.q(x), m.k(x)), views), None),
    "the same memory": (
        stuck(lambda m, x: ((y := m.q(x)), y[:, :2]), lambda part, x: part(x)[0].add_(1)),
        "gives the same memory twice, which who calls it may write to",
    ),
    "is told": (stuck(lambda m, x: m.q(x) / m.temperature, told), OTHER),
    "is read": (stuck(remembers, reads), OTHER),
    "collects": (
        stuck(
            lambda m, x: m.q(x) * (len(m.seen) if m.seen.append(0) else 1),
            lambda part, x: part(x) + len(part.seen) * 0,
        ),
        OTHER,
    ),
    "the time": (
        stuck(lambda m, x: m.q(x) * (1 + 0 * time.time()), lambda part, x: part(x)),
        "it calls time, which gives something else each time",
    ),
}


@pytest.mark.parametrize(("module", "why"), PARTS.values(), ids=PARTS)
def test_who_calls_a_part_sees_nothing_of_its_graph(module: Small, why: str | None) -> None:
    with torch.inference_mode():
        expected = [module(copied(batch)) for rows in ROWS for batch in draws(rows)]
        assert put(module) == why
        received = [module(copied(batch)) for rows in ROWS for batch in draws(rows)]
    for given, wanted in zip(received, expected, strict=True):
        assert_close(given, wanted)


TIMES: Mapping[str, tuple[Callable[[], float], str]] = {
    "time": (time.time, "time"),
    "date": (lambda: dt.datetime.now().hour, "now"),  # noqa: DTZ005
    "random": (lambda: random.randint(0, 9), "getrandbits"),  # noqa: S311
    "numpy": (lambda: float(np.random.rand()), "numpy.random"),  # noqa: NPY002
}


@pytest.mark.parametrize(("ask", "called"), TIMES.values(), ids=TIMES)
def test_what_is_asked_of_the_process_is_asked_at_each_call(
    ask: Callable[[], float], called: str
) -> None:
    """No trial may see it: the hour is the same in all of them."""
    module = Small(lambda m, b: {"y": m.layer(b["x"]) + 1e-9 * ask()}, layer=nn.Linear(DENSE, 1))
    why = as_graph(module)
    assert why == f"it calls {called}, which gives something else each time"


def test_what_is_followed_keeps_its_attributes() -> None:
    """Of what is asked for the number of rows again, too: nothing of another world stays."""

    def cached(m: Any, b: Batch) -> dict[str, Any]:
        if not hasattr(m, "places") or len(m.places) != len(b["x"]):
            m.places = torch.arange(len(b["x"])).unsqueeze(1)
        m.list.append(m.places)
        return {"y": m.layer(b["x"]) + m.places}

    module = Small(cached, layer=nn.Linear(DENSE, 1), bags=bags())
    seen: list[torch.Tensor] = []
    module.list = seen  # type: ignore[assignment]
    with torch.inference_mode():
        expected = module(draw(5, ids=2))
        assert as_graph(module) == "it does something else where not Eq(rows, 5)"
        assert all(type(one) is torch.Tensor for one in (module.places, *seen))
        assert_close(module(draw(5, ids=2)), expected)


def test_a_parameter_of_two_layers_is_followed_past_what_is_written() -> None:
    def written(m: Any, b: Batch) -> dict[str, Any]:
        y = m.first(b["x"]).clone()
        y[:, 0] = 0
        return {"y": y + m.second(b["x"])}

    first, second = nn.Linear(DENSE, WIDTH), nn.Linear(DENSE, WIDTH)
    second.weight = first.weight
    assert_graph(Small(written, first=first, second=second))


def test_a_check_of_a_number_is_kept() -> None:
    def checked(m: Any, b: Batch) -> dict[str, Any]:
        check(b["s.lengths"].max().item() <= 3, lambda: "too long")
        return {"y": m.layer(b["x"])}

    method = assert_graph(Small(checked, layer=nn.Linear(DENSE, 1)))
    with pytest.raises(RuntimeError, match="too long"):
        method(draw(300, most=4))


def test_what_a_graph_does_not_check_is_checked_by_the_module() -> None:
    def checked(m: Any, b: Batch) -> dict[str, Any]:
        check(b["x"].max().item() <= 8, lambda: "too large")
        return {"y": m.layer(b["x"])}

    why = as_graph(Small(checked, layer=nn.Linear(DENSE, 1)))
    assert why == "it checks that zuf0 <= 8.0, of a number that is no integer"
