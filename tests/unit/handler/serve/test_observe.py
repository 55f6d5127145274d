"""What an observer is told, a stage at a time."""

import json
import logging
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from tests.support.answered import ask
from tests.support.exact import DENSE, Exact, predictor
from torchrec_handler.errors import InvalidRequest, PredictError, UnknownQualname
from torchrec_handler.histogram import Histogram
from torchrec_handler.options import Limits, Options
from torchrec_handler.serve.engine import Engine
from torchrec_handler.serve.observe import Event, Observer, Totals
from torchrec_handler.serve.request import RawRequest

STAGES = ["read", "check", "batch", "predict", "split", "split", "write"]
"""Of one forward call: its result is cut up, and put together for each request."""


class Marked(Exact):
    """Raises on rows whose first feature is negative, and in a method that is called alone."""

    def scores(self, batch: Mapping[str, Any]) -> torch.Tensor:
        if (batch[DENSE.name][:, 0] < 0).any():
            message = "cursed"
            raise ValueError(message)
        return super().scores(batch)

    def add(self, numbers: list[int]) -> int:
        return sum(numbers)


class Seen:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def seen(self, event: Event) -> None:
        self.events.append(event)

    def counts(self) -> list[tuple[str, int, int]]:
        return [(one.stage, one.requests, one.rows) for one in self.events if not one.error]

    def errors(self) -> list[tuple[str, int, int, Any]]:
        return [(one.stage, one.requests, one.rows, one.error) for one in self.events if one.error]


def engine(observer: Observer | None, **limits: int) -> Engine:
    methods = {"forward": True, "negative": True, "add": False}
    served = predictor(Marked((DENSE,), "dict_of_tensor"), DENSE, methods=methods)
    return Engine("ranking", served, Options(limits=Limits(**limits)), observer)


def dense(*firsts: float, qualname: str = "forward") -> RawRequest:
    body = json.dumps({DENSE.name: [[first, 0, 0] for first in firsts]}).encode()
    return RawRequest(body=body, content_type="application/json", qualname=qualname)


def test_each_stage_of_a_batch_is_told_once() -> None:
    observer = Seen()
    ask(engine(observer), [dense(1), dense(2, 3)])
    assert observer.counts() == [
        ("read", 2, 3),
        ("check", 2, 3),
        ("batch", 2, 3),
        ("predict", 2, 3),
        ("split", 2, 3),
        ("split", 0, 0),
        ("write", 2, 3),
    ]
    assert observer.errors() == []
    assert all(event.seconds > 0 for event in observer.events)


def test_each_forward_call_has_its_own() -> None:
    observer = Seen()
    ask(engine(observer, rows_per_forward=2), [dense(1, 2, 3), dense(4, qualname="negative")])
    predicted = [count for count in observer.counts() if count[0] == "predict"]
    assert predicted == [("predict", 1, 2), ("predict", 1, 1), ("predict", 1, 1)]


def test_methods_called_alone_are_predicted_together() -> None:
    observer = Seen()
    body = RawRequest(body=b'{"numbers": [1, 2]}', qualname="add")
    ask(engine(observer), [body, body])
    assert observer.counts() == [
        ("read", 2, 4),
        ("check", 2, 4),
        ("predict", 2, 4),
        ("write", 2, 4),
    ]


def test_errors_are_told_by_type_where_they_come_up() -> None:
    observer = Seen()
    requests = [
        dense(1),
        dense(1, qualname="backward"),
        RawRequest(body=b"{"),
        RawRequest(body=b'{"float_features": [[1, null, 2]]}'),
        RawRequest(body=b'{"float_features": [[1, 1e39, 2], [1, 2, 3]]}'),
        dense(-1),
    ]
    ask(engine(observer), requests)
    assert observer.errors() == [
        ("read", 1, 0, UnknownQualname),
        ("read", 2, 0, InvalidRequest),
        ("check", 1, 2, InvalidRequest),
        ("predict", 1, 1, PredictError),
    ]
    assert observer.counts()[0] == ("read", 3, 4)
    assert observer.counts()[-1] == ("write", 1, 1)


def test_what_an_observer_raises_is_logged_once_and_never_answered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Raises:
        told = 0

        def seen(self, event: Event) -> None:
            self.told += 1
            raise ValueError(event.stage)

    observer = Raises()
    served = engine(observer)
    for _ in range(2):
        assert [answer.status for answer in ask(served, [dense(1)])] == [200]
    assert observer.told == 2 * len(STAGES)
    assert [(one.levelno, one.getMessage()) for one in caplog.records] == [
        (logging.ERROR, "An observer raised, which is not logged again")
    ]


def test_totals_add_up() -> None:
    totals = Totals()
    served = engine(totals)
    assert totals.as_json() == {"requests": 0, "rows": 0, "errors": {}, "seconds": {}}
    for _ in range(2):
        ask(served, [dense(1, 2), dense(-1), RawRequest(body=b"{"), RawRequest(body=b"[")])
    found = json.loads(json.dumps(totals.as_json()))
    seconds = found.pop("seconds")
    assert found == {
        "requests": 8,
        "rows": 4,
        "errors": {"InvalidRequest": 4, "PredictError": 2},
    }
    assert list(seconds) == list(dict.fromkeys(STAGES))
    assert all(one > 0 for one in seconds.values())


def test_totals_count_stages_and_rows_of_forward_calls() -> None:
    """Of one good call, and of one that is made again in halves, the second of which fails."""
    totals = Totals()
    served = engine(totals, rows_per_forward=4)
    ask(served, [dense(1, 2), dense(3, 4, 5), dense(-1)])
    assert (totals.rows, totals.batch_rows.sum, totals.batch_rows.counts()[:3]) == (5, 5, [0, 2, 2])
    assert [found.counts()[-1] for found in totals.stages.values()] == [1, 1, 4, 4, 3, 1]
    assert all(found.sum > 0 for found in totals.stages.values())


def test_a_histogram_counts_what_is_no_larger_than_a_bound() -> None:
    histogram = Histogram((1.0, 4.0))
    for value in (0.5, 1.0, 1.5, 4.0, 5.0, 1e9):
        histogram.add(value)
    assert histogram.bounds == (1.0, 4.0, float("inf"))
    assert histogram.counts() == [2, 4, 6]
    assert histogram.sum == 1e9 + 12
