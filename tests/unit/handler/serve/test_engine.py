"""Bytes to bytes: batches of requests, each answered on its own."""

import json
import logging
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from tests.support.answered import ask
from tests.support.exact import (
    CPU,
    DENSE,
    INPUTS,
    RESULT_TYPES,
    SPARSE,
    Exact,
    batching,
    examples,
    lists_of_requests,
    predictor,
)
from torchrec_handler.archive.format import Count, InputSignature, OutputSplit
from torchrec_handler.errors import InvalidRequest, Unusable
from torchrec_handler.front.torchserve.answers import HttpAnswer
from torchrec_handler.message.predictor_pb2 import PredictionRequest, SparseFeatures
from torchrec_handler.options import Limits, Options
from torchrec_handler.serve import reading
from torchrec_handler.serve.batch import combine
from torchrec_handler.serve.engine import Engine
from torchrec_handler.serve.measure import Size
from torchrec_handler.serve.request import Columns, RawRequest, ValidRequest
from torchrec_handler.serve.validate import Validator
from torchrec_handler.tables import mapped
from torchrec_handler.tables.store import TableStore

JSON = "application/json"


def raw(document: Any, qualname: str = "forward") -> RawRequest:
    return RawRequest(body=json.dumps(document).encode(), content_type=JSON, qualname=qualname)


def dense(*rows: Sequence[float]) -> RawRequest:
    return raw({DENSE.name: rows})


def body(request: ValidRequest) -> dict[str, Any]:
    """A request as JSON columns."""
    inputs = combine([request], batching(*INPUTS), CPU).inputs
    return {name: np.asarray(value).tolist() for name, value in inputs.items()}


def opened(response: HttpAnswer) -> tuple[int, Any]:
    assert response.content_type == JSON
    return response.status, json.loads(response.body)


class Marked(Exact):
    """A dense model that raises on rows whose first feature is negative, and counts its calls."""

    def __init__(self) -> None:
        super().__init__((DENSE,), "dict_of_tensor")
        self.calls: list[int] = []

    def scores(self, batch: Mapping[str, Any]) -> torch.Tensor:
        block = batch[DENSE.name]
        self.calls.append(len(block))
        if (block[:, 0] < 0).any():
            message = "this movie is cursed"
            raise ValueError(message)
        return super().scores(batch)


def engine(module: torch.nn.Module, **arguments: Any) -> Engine:
    return Engine("ranking", predictor(module, DENSE, **arguments), Options())


def test_answers_in_the_order_of_the_requests() -> None:
    served = engine(Marked())
    requests = [dense([at, 0, 0]) for at in range(8)]
    answers = [json.loads(response.body) for response in ask(served, requests)]
    assert [answer["default"] for answer in answers] == [[4.0 * at] for at in range(8)]


def test_no_requests_get_no_answers() -> None:
    assert ask(engine(Marked()), []) == []


def test_a_batch_is_one_forward_call() -> None:
    module = Marked()
    ask(engine(module), [dense([1, 0, 0]), dense([2, 0, 0], [3, 0, 0])])
    assert module.calls == [3]


def test_each_method_of_a_batch_is_one_forward_call() -> None:
    module = Marked()
    served = engine(module, methods={"forward": True, "negative": True})
    document = {DENSE.name: [[1, 0, 0]]}
    names = ["forward", "negative", "negative", "forward", "negative"]
    responses = ask(served, [raw(document, name) for name in names])
    assert module.calls == [2, 3]
    assert [json.loads(response.body)["default"] for response in responses] == [
        [4.0] if name == "forward" else [-4.0] for name in names
    ]


class TestTogetherIsAsAlone:
    """For any requests, methods and rows a forward call, as bytes."""

    @pytest.mark.parametrize("result_metadata", RESULT_TYPES)
    @examples(0.15)
    @given(
        requests=lists_of_requests(*INPUTS),
        methods=st.lists(st.sampled_from(["forward", "negative"]), min_size=5, max_size=5),
        most=st.integers(1, 8),
    )
    def test_bytes(
        self, result_metadata: str, requests: list[ValidRequest], methods: list[str], most: int
    ) -> None:
        served = predictor(
            Exact(INPUTS, result_metadata),
            *INPUTS,
            result_metadata=result_metadata,
            methods={"forward": True, "negative": True},
        )
        options = Options(limits=Limits(rows_per_forward=most, seconds_of_reading=60.0))
        bodies = [
            raw(body(request), method) for request, method in zip(requests, methods, strict=False)
        ]
        together = ask(Engine("ranking", served, options), bodies)
        whole = Engine("ranking", served, Options())
        alone = [response for request in bodies for response in ask(whole, [request])]
        assert together == alone
        assert {response.status for response in together} == {200}


class TestTooMuchAtOnce:
    """A batch that would hold everybody up is cut down to what may be held together."""

    def test_the_smallest_are_answered_and_the_rest_refused_at_once(self) -> None:
        module = Marked()
        options = Options(limits=Limits(rows_per_batch=6))
        served = Engine("ranking", predictor(module, DENSE), options)
        rows = [4, 1, 5, 2]
        responses = ask(served, [dense(*[[at, 0, 0]] * count) for at, count in enumerate(rows)])
        assert [response.status for response in responses] == [503, 200, 503, 200]
        assert module.calls == [3]
        assert opened(responses[2])[1] == {
            "code": 503,
            "type": "Overloaded",
            "message": (
                "received 5 rows beside 3 of other requests, expected at most 6 together "
                "(limits.rows_per_batch); try again"
            ),
        }

    def test_rows_are_counted_as_the_model_gets_them(self) -> None:
        """One row that is shared by all rows of a request is none of a few bytes."""
        large = raw({DENSE.name: [[1, 0, 0]], "batch_size": 16_384})
        module = Marked()
        responses = ask(engine(module), [*[large] * 64, *[dense([1, 0, 0])] * 64])
        assert [response.status for response in responses] == [200, *[503] * 63, *[200] * 64]
        assert sum(module.calls) == 16_384 + 64

    def test_more_than_the_largest_request_is_refused_whoever_waits(self) -> None:
        large = raw({DENSE.name: [[1, 0, 0]], "batch_size": 65_536})
        responses = ask(engine(Marked()), [large] * 64)
        assert {response.status for response in responses} == {413}
        assert opened(responses[0])[1]["message"] == (
            "received 65536 rows, expected at most 16384 (limits.rows_per_request)"
        )

    def test_keyword_arguments_count(self) -> None:
        class Adds(Marked):
            def add(self, numbers: list[int]) -> int:
                return sum(numbers)

        options = Options(limits=Limits(rows_per_batch=6))
        methods = {"forward": True, "add": False}
        served = Engine("ranking", predictor(Adds(), DENSE, methods=methods), options)
        requests = [
            raw({"numbers": [1] * 6}, "add"),
            dense([1, 0, 0]),
            raw({"numbers": [1]}, "add"),
        ]
        assert [response.status for response in ask(served, requests)] == [503, 200, 200]

    def test_what_is_not_read_in_time_is_refused(self) -> None:
        """The smallest bodies are read first, and one always is."""
        options = Options(limits=Limits(seconds_of_reading=1e-9))
        served = Engine("ranking", predictor(Marked(), DENSE), options)
        responses = ask(served, [dense([1, 0, 0], [2, 0, 0]), dense([1, 0, 0])])
        assert [response.status for response in responses] == [503, 200]
        assert opened(responses[0])[1]["message"] == (
            "not read: smaller requests took more than 1e-09 s (limits.seconds_of_reading); "
            "try again"
        )

    def test_time_that_others_had_is_not_the_requests(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A machine that is busy with other programs refuses nobody."""
        clock = count(step=3_600)
        monkeypatch.setattr(reading, "monotonic", lambda: next(clock))
        served = Engine("ranking", predictor(Marked(), DENSE), Options())
        responses = ask(served, [dense([1, 0, 0], [2, 0, 0]), dense([1, 0, 0])])
        assert [response.status for response in responses] == [200, 200]


class SilentError(Exception):
    def __str__(self) -> str:
        raise NotImplementedError


class Raises(torch.nn.Module):
    def __init__(self, fault: Exception) -> None:
        super().__init__()
        self.fault = fault

    def forward(self, _batch: Mapping[str, Any]) -> Any:
        raise self.fault


class TestModelRaises:
    def test_on_one_request_alone(self) -> None:
        """The others of its batch are answered, from few more calls."""
        module = Marked()
        requests = [dense([at, 0, 0]) for at in range(64)]
        requests[37] = dense([5, 0, 0], [-1, 0, 0])
        responses = ask(engine(module), requests)
        assert opened(responses[37]) == (
            500,
            {
                "code": 500,
                "type": "PredictError",
                "message": "forward raised ValueError: this movie is cursed",
            },
        )
        for at, response in enumerate(responses):
            if at != 37:
                assert opened(response)[1]["default"] == [4.0 * at]
        assert len(module.calls) == 13

    def test_on_every_request(self) -> None:
        responses = ask(engine(Marked()), [dense([-1, 0, 0])] * 5)
        assert [response.status for response in responses] == [500] * 5

    def test_on_a_piece_of_a_request_that_was_cut(self) -> None:
        options = Options(limits=Limits(rows_per_forward=2))
        served = Engine("ranking", predictor(Marked(), DENSE), options)
        cut = [[1, 0, 0], [2, 0, 0], [-3, 0, 0], [4, 0, 0], [5, 0, 0]]
        responses = ask(served, [dense([1, 0, 0]), dense(*cut), dense([2, 0, 0])])
        assert [response.status for response in responses] == [200, 500, 200]

    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            (ValueError("bad \ud800"), "forward raised ValueError: bad ?"),
            (SilentError(), "forward raised SilentError: (a message that cannot be shown)"),
        ],
        ids=["surrogate", "silent"],
    )
    def test_something_that_is_no_text(self, fault: Exception, message: str) -> None:
        (response,) = ask(engine(Raises(fault)), [dense([1, 0, 0])])
        assert opened(response)[1]["message"] == message

    def test_an_error_of_its_own_choice(self) -> None:
        """A model that knows the request at fault may say so with this project's errors."""

        class Strict(Marked):
            def scores(self, batch: Mapping[str, Any]) -> torch.Tensor:
                try:
                    return super().scores(batch)
                except ValueError as error:
                    message = "user 7 has no history"
                    raise InvalidRequest(message) from error

        responses = ask(engine(Strict()), [dense([-1, 0, 0]), dense([1, 0, 0])])
        assert [response.status for response in responses] == [400, 200]
        assert opened(responses[0])[1]["message"] == "user 7 has no history"

    def test_after_writing_to_its_inputs(self) -> None:
        """The halves that are tried next see what was sent."""

        class Writes(Marked):
            def scores(self, batch: Mapping[str, Any]) -> torch.Tensor:
                batch[DENSE.name][:, 1] += 1
                return super().scores(batch)

        responses = ask(engine(Writes()), [dense([1, 0, 0])] * 3 + [dense([-1, 0, 0])])
        assert [opened(response)[1].get("default") for response in responses] == [[10]] * 3 + [None]

    @pytest.mark.parametrize("is_own_choice", [False, True])
    def test_a_failed_calls_tensors_are_freed_before_the_next(
        self,
        is_own_choice: bool,  # noqa: FBT001  a table's column
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Or a batch that ran out of memory would have less for its halves."""

        class Watched(Marked):
            watch: weakref.ref[torch.Tensor] | None = None

            def scores(self, batch: Mapping[str, Any]) -> torch.Tensor:
                assert self.watch is None or self.watch() is None
                activations = torch.ones(10)
                self.watch = weakref.ref(activations)
                try:
                    return super().scores(batch)
                except ValueError as error:
                    if is_own_choice:
                        message = "user 7 has no history"
                        raise InvalidRequest(message) from error
                    raise

        # pytest itself keeps what is logged.
        monkeypatch.setattr(logging.getLogger("torchrec_handler.serve.attempt"), "disabled", True)
        requests = [dense([1, 0, 0]), dense([-1, 0, 0]), dense([-1, 0, 0]), dense([2, 0, 0])]
        responses = ask(engine(Watched()), requests)
        status = 400 if is_own_choice else 500
        assert [response.status for response in responses] == [200, status, status, 200]

    def test_giving_what_is_not_promised(self) -> None:
        class Short(Exact):
            def result(self, scores: torch.Tensor) -> dict[str, Any]:
                return {"default": scores[:-1]}

        responses = ask(engine(Short((DENSE,), "dict_of_tensor")), [dense([1, 0, 0], [2, 0, 0])])
        assert opened(responses[0]) == (
            500,
            {
                "code": 500,
                "type": "PredictError",
                "message": (
                    "output 'default': received shape (1,), expected a first axis of 1 x 2 rows"
                ),
            },
        )

    def test_giving_pieces_that_do_not_fit_together(self) -> None:
        class Wide(Exact):
            def result(self, scores: torch.Tensor) -> dict[str, Any]:
                return {"default": scores.reshape(-1, 1).repeat(1, len(scores))}

        options = Options(limits=Limits(rows_per_forward=2))
        served = Engine("ranking", predictor(Wide((DENSE,), "dict_of_tensor"), DENSE), options)
        responses = ask(served, [dense(*[[1, 0, 0]] * 3), dense([1, 0, 0], [2, 0, 0])])
        assert [response.status for response in responses] == [500, 200]


class Hungry(Exact):
    """Needs memory that is not there for more than two rows."""

    def __init__(self, fault: Exception | None = None) -> None:
        super().__init__((DENSE,), "dict_of_tensor")
        self.fault = fault

    def scores(self, batch: Mapping[str, Any]) -> torch.Tensor:
        if len(batch[DENSE.name]) > 2:
            if self.fault:
                raise self.fault
            torch.empty(2**50)
        return super().scores(batch)


class TestOutOfMemory:
    @pytest.mark.parametrize(
        "fault",
        [None, MemoryError(), torch.OutOfMemoryError("CUDA out of memory")],
        ids=["host", "python", "device"],
    )
    def test_of_one_request_alone(self, fault: Exception | None) -> None:
        responses = ask(
            engine(Hungry(fault)), [dense([1, 0, 0]), dense(*[[2, 0, 0]] * 3), dense([3, 0, 0])]
        )
        assert [response.status for response in responses] == [200, 507, 200]
        assert responses[1].phrase == "Insufficient Storage"
        assert opened(responses[1])[1] == {
            "code": 507,
            "type": "OutOfMemory",
            "message": "forward: out of memory; send fewer rows",
        }

    def test_of_a_batch_is_answered_in_halves(self) -> None:
        responses = ask(engine(Hungry()), [dense([at, 0, 0]) for at in range(7)])
        assert [opened(response)[1]["default"] for response in responses] == [
            [4.0 * at] for at in range(7)
        ]

    def test_of_checking_requests_together(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each is checked alone then."""

        def check(self: Validator, requests: Sequence[Columns], sizes: Sequence[Size]) -> Any:
            if max(size.rows for size in sizes) > 2:
                raise MemoryError
            return checked(self, requests, sizes)

        checked = Validator.check
        monkeypatch.setattr(Validator, "check", check)
        responses = ask(
            engine(Marked()), [dense([1, 0, 0]), dense(*[[2, 0, 0]] * 3), dense([3, 0, 0])]
        )
        assert [response.status for response in responses] == [200, 507, 200]
        assert opened(responses[1])[1]["message"] == (
            "reading the request: out of memory; send fewer rows"
        )


class TestResultsThatNobodyCanCut:
    """Methods that the signature does not know how to cut are called once a request."""

    @staticmethod
    def served(module: torch.nn.Module, **limits: int) -> Engine:
        known = predictor(module, DENSE, SPARSE)
        known = replace(known, signature=replace(known.signature, splits={}))
        return Engine("ranking", known, Options(limits=Limits(**limits)))

    def test_each_request_gets_what_it_would_get_alone(self) -> None:
        """The mean of its rows, which are never cut, and lists padded to its own longest one."""

        class Means(torch.nn.Module):
            def forward(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
                longest = int(batch["id_list_features.lengths"].max())
                mean = batch[DENSE.name].mean(dim=0, keepdim=True)
                return {"mean": mean[:, :1], "padded": torch.zeros(len(batch[DENSE.name]), longest)}

        def request(rows: int, length: int) -> RawRequest:
            lengths = [length] * rows + [0] * 2 * rows
            return raw(
                {
                    DENSE.name: [[at, 0, 0] for at in range(rows)],
                    "id_list_features.lengths": lengths,
                    "id_list_features.values": [1] * sum(lengths),
                }
            )

        served = self.served(Means(), rows_per_forward=2)
        responses = ask(served, [request(3, 1), request(1, 2), request(2, 0)])
        assert [opened(response) for response in responses] == [
            (200, {"mean": [[1]], "padded": [[0]] * 3}),
            (200, {"mean": [[0]], "padded": [[0, 0]]}),
            (200, {"mean": [[0.5]], "padded": [[], []]}),
        ]

    def test_what_one_of_them_raises_is_its_own(self) -> None:
        empty = {f"{SPARSE.name}.lengths": [0] * 3, f"{SPARSE.name}.values": []}
        bodies = [raw({DENSE.name: [[at, 0, 0]], **empty}) for at in (1, -1, 2)]
        responses = ask(self.served(Marked()), bodies)
        assert [response.status for response in responses] == [200, 500, 200]


def test_scores_of_candidates_go_to_the_request_of_the_candidates() -> None:
    """In one forward call, in every format, for a request without any and one cut by rows, too."""
    entry = replace(SPARSE, num_features=1, features=("candidates",), ids_below=(None,))

    class Scores(torch.nn.Module):
        calls = 0

        def forward(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
            self.calls += 1
            return {"scores": batch["id_list_features.values"].float() * 2}

    def request(*lists: list[int]) -> dict[str, Any]:
        values = [one for of_row in lists for one in of_row]
        return {
            "batch_size": len(lists),
            "id_list_features.lengths": list(map(len, lists)),
            "id_list_features.values": values,
        }

    module = Scores()
    served = predictor(module, entry)
    count = Count(factor=1, input=entry.name)
    splits = {"forward": {"scores": (OutputSplit(counts=(count,), shape=()),)}}
    served = replace(served, signature=replace(served.signature, splits=splits))
    engine = Engine("ranking", served, Options())
    tensors = [
        {"name": "id_list_features.lengths", "shape": [2], "datatype": "INT32", "data": [1, 2]},
        {"name": "id_list_features.values", "shape": [3], "datatype": "INT64", "data": [7, 8, 9]},
    ]
    message = PredictionRequest(
        batch_size=1,
        id_list_features=SparseFeatures(
            num_features=1,
            lengths=np.array([2], "<i4").tobytes(),
            values=np.array([30, 40], "<i4").tobytes(),
        ),
    )
    binary = RawRequest(
        body=message.SerializeToString(), content_type="application/x-protobuf", accept=JSON
    )
    bodies = [raw(request([1, 2, 3])), raw(request([])), raw({"inputs": tensors}), binary]
    responses = [opened(response) for response in ask(engine, bodies)]
    assert module.calls == 1
    assert responses[0] == (200, {"scores": [2, 4, 6]})
    assert responses[1] == (200, {"scores": []})
    (output,) = responses[2][1]["outputs"]
    assert output == {"name": "scores", "shape": [3], "datatype": "FP32", "data": [14, 16, 18]}
    assert responses[3] == (200, {"scores": [60, 80]})
    cutting = Engine("ranking", served, Options(limits=Limits(rows_per_forward=2)))
    cut = ask(cutting, [raw(request([1], [2, 3], [], [4], [5])), raw(request([6]))])
    assert [opened(response)[1]["scores"] for response in cut] == [[2, 4, 6, 8, 10], [12]]


def test_requests_that_no_batch_can_hold_are_answered_alone() -> None:
    """Where the signature leaves it open, requests may have different numbers of features."""
    hidden = InputSignature(name="id_list_features", type="sparse")

    class Counts(torch.nn.Module):
        def forward(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
            return {"default": batch["id_list_features.lengths"].sum().reshape(1)}

    served = Engine("counts", predictor(Counts(), hidden), Options())
    documents = [
        {"batch_size": 1, "id_list_features.lengths": lengths, "id_list_features.values": [1, 2]}
        for lengths in ([2, 0], [1, 0, 1])
    ]
    responses = ask(served, [raw(document) for document in documents])
    assert [opened(response) for response in responses] == [(200, {"default": [2]})] * 2


class TestBadRequests:
    BAD = (
        (raw({DENSE.name: [[1, 2]]}), 400, "InvalidRequest"),
        (RawRequest(body=b"{", content_type=JSON), 400, "InvalidRequest"),
        (RawRequest(body=b"", content_type=""), 400, "InvalidRequest"),
        (RawRequest(body=b"a,b", content_type="text/csv"), 415, "UnsupportedMediaType"),
        (raw({DENSE.name: [[0, 0, 0]]}, "backward"), 404, "UnknownQualname"),
        (raw({DENSE.name: [[0, 0, 0]] * 70_000}), 413, "RequestTooLarge"),
        (raw({"embedding_features": []}), 400, "InvalidRequest"),
    )

    def test_fail_alone(self) -> None:
        good = [dense([at, 0, 0]) for at in range(len(self.BAD))]
        mixed = [request for at, (bad, _, _) in enumerate(self.BAD) for request in (good[at], bad)]
        module = Marked()
        responses = ask(engine(module), mixed)
        assert module.calls == [len(good)]
        assert [opened(response)[1]["default"] for response in responses[::2]] == [
            [4.0 * at] for at in range(len(good))
        ]
        assert [(response.status, opened(response)[1]["type"]) for response in responses[1::2]] == [
            (status, name) for _, status, name in self.BAD
        ]

    def test_of_a_model_that_hides_its_width_fail_alone(self) -> None:
        """Only the model can tell which of them is wrong."""

        class Hidden(torch.nn.Module):
            def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
                return {"default": batch["x"] @ torch.ones(2)}

        served = predictor(Hidden(), type(DENSE)(name="x", type="dense"))
        widths = [2, 3, 2, 1, 2]
        responses = ask(
            Engine("hidden", served, Options()), [raw({"x": [[1] * width]}) for width in widths]
        )
        assert [response.status for response in responses] == [200, 500, 200, 500, 200]

    def test_bodies_are_torchserves_own(self) -> None:
        (response,) = ask(engine(Marked()), [raw({}, "backward")])
        assert (response.status, response.phrase) == (404, "Not Found")
        assert response.body == (
            b'{"code":404,"type":"UnknownQualname",'
            b'"message":"qualname: received \'backward\', expected one of forward"}'
        )


class Library(Marked):
    """Methods without need_preproc beside one with."""

    def similar(self, movie_id: int, count: int = 2) -> dict[str, torch.Tensor]:
        if movie_id < 0:
            message = "no such movie"
            raise KeyError(message)
        return {"movies": torch.arange(movie_id + 1, movie_id + 1 + count)}

    def names(self, **inputs: Any) -> Any:
        return {name: list(value.shape) for name, value in inputs.items()}

    def opaque(self) -> Any:
        return {"default": object()}

    def eat(self) -> Any:
        return torch.empty(2**50)


LIBRARY = {"forward": True, "similar": False, "names": False, "opaque": False, "eat": False}


class TestMethodsWithoutPreprocessing:
    def library(self) -> Engine:
        return Engine("library", predictor(Library(), DENSE, SPARSE, methods=LIBRARY), Options())

    def test_get_one_requests_payload_as_keyword_arguments(self) -> None:
        responses = ask(
            self.library(),
            [raw({"movie_id": 3}, "similar"), raw({"movie_id": 7, "count": 1}, "similar")],
        )
        assert [opened(response) for response in responses] == [
            (200, {"movies": [4, 5]}),
            (200, {"movies": [8]}),
        ]

    def test_an_argument_may_be_called_inputs(self) -> None:
        """Which is also the name that Open Inference Protocol uses."""

        class Sums(torch.nn.Module):
            def add(self, inputs: list[float]) -> float:
                return sum(inputs)

        served = predictor(Sums(), DENSE, methods={"forward": True, "add": False})
        (response,) = ask(Engine("sums", served, Options()), [raw({"inputs": [1, 2.5]}, "add")])
        assert opened(response) == (200, 3.5)

    def test_get_the_tensors_of_open_inference(self) -> None:
        document = {
            "id": "a",
            "inputs": [
                {"name": DENSE.name, "shape": [2, 3], "datatype": "FP32", "data": [0] * 6},
            ],
        }
        (response,) = ask(self.library(), [raw(document, "names")])
        assert opened(response) == (
            200,
            {
                "model_name": "library",
                "id": "a",
                "outputs": [
                    {"name": DENSE.name, "shape": [2], "datatype": "INT64", "data": [2, 3]}
                ],
            },
        )

    def test_share_a_batch_with_others(self) -> None:
        document = {**body_of_one(), DENSE.name: [[1, 0, 0]]}
        responses = ask(
            self.library(), [raw(document), raw({"movie_id": 3}, "similar"), raw(document)]
        )
        assert [opened(response)[1].get("default") for response in responses] == [[4], None, [4]]

    def test_what_they_raise_is_that_requests_own(self) -> None:
        responses = ask(
            self.library(),
            [
                raw({"movie_id": -3}, "similar"),
                raw({}, "opaque"),
                raw({}, "eat"),
                raw({"movie_id": 3}, "similar"),
            ],
        )
        found = [opened(response) for response in responses]
        assert [(status, document.get("message")) for status, document in found] == [
            (500, "similar raised KeyError: 'no such movie'"),
            (500, "the answer cannot be written as JSON: Type is not JSON serializable: object"),
            (507, "eat: out of memory; send fewer rows"),
            (200, None),
        ]

    def test_refuse_arguments_they_do_not_take(self) -> None:
        (response,) = ask(self.library(), [raw({"id": 3}, "similar")])
        message = "similar: missing a required argument: 'movie_id'"
        assert opened(response) == (
            400,
            {"code": 400, "type": "InvalidRequest", "message": message},
        )


def body_of_one() -> dict[str, Any]:
    return {f"{SPARSE.name}.lengths": [0, 0, 0], f"{SPARSE.name}.values": []}


def test_describes_what_it_serves() -> None:
    described = engine(Marked()).describe()
    assert json.loads(json.dumps(described)) == {
        "signature": {
            "inputs": [
                {
                    "name": "float_features",
                    "type": "dense",
                    "num_features": 3,
                    "features": ["age", "price", "hour"],
                    "ids_below": [],
                    "longest": [],
                    "is_wide": False,
                    "width": None,
                    "hashed": [],
                    "out_of_range": [],
                    "defaults": [],
                }
            ],
            "methods": {"forward": True},
            "result_metadata": "dict_of_tensor",
            "outputs": {},
            "changes_ids": False,
            "splits": {
                "forward": {
                    name: [
                        {
                            "counts": [{"factor": factor, "input": None, "features": []}],
                            "shape": shape,
                        }
                    ]
                    for name, factor, shape in (
                        ("default", 1, []),
                        ("flat", 3, []),
                        ("pair", 1, [2]),
                    )
                }
            },
        },
        "options": Options().model_dump(),
        "device": "cpu",
        "tables": [],
        "plan": None,
        "kernels": {"replaced": [], "declined": []},
        "versions": {},
        "sha256": {},
    }


class TestWhatEndsTheProcess:
    @pytest.mark.parametrize("need_preproc", [True, False])
    def test_an_error_of_the_process_is_no_answer(self, *, need_preproc: bool) -> None:
        class Lost(Exact):
            def scores(self, _: Mapping[str, Any]) -> torch.Tensor:
                message = "NCCL error: remote process exited"
                raise dist.DistBackendError(message)

            def forward(self, batch: Mapping[str, Any]) -> Any:
                return self.scores(batch)

        served = engine(Lost((DENSE,), "dict_of_tensor"), methods={"forward": need_preproc})
        document: Any = {DENSE.name: [[1, 0, 0]]} if need_preproc else {"batch": {}}
        with pytest.raises(Unusable) as caught:
            served.predict([raw(document), raw(document)])
        assert str(caught.value) == (
            "forward raised DistBackendError: NCCL error: remote process exited"
        )

    def test_no_batch_is_answered_from_tables_that_were_written_to(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(mapped, "SECONDS", 0.0)
        path = tmp_path / "tables.bin"
        path.write_bytes(bytes(64))
        found = replace(predictor(Marked(), DENSE), tables=TableStore.map(path, []))
        served = Engine("ranking", found, Options())
        (answered,) = ask(served, [dense([1, 0, 0])])
        assert opened(answered)[0] == 200
        path.write_bytes(bytes(63))
        with pytest.raises(Unusable, match=r"tables\.bin: received 63 bytes, expected 64;"):
            served.predict([dense([1, 0, 0])])
