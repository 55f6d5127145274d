"""The steps of serving, in order: bytes in, bytes out. Knows nothing of the server around it."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple, TypeVar

import torch

from torchrec_handler.errors import OutOfMemory, Overloaded, PredictError, RequestError
from torchrec_handler.kernels.graph.method import GraphMethod
from torchrec_handler.load.call import no_gradients
from torchrec_handler.load.states import Predictor
from torchrec_handler.options import ONCE, Options
from torchrec_handler.serve.batch import apart, combine, cut
from torchrec_handler.serve.budget import Budget, size_of_arguments
from torchrec_handler.serve.codecs.choose import Codecs, Group, Reply
from torchrec_handler.serve.codecs.json_document import shortened
from torchrec_handler.serve.codecs.single_rows import not_single
from torchrec_handler.serve.measure import Size
from torchrec_handler.serve.observe import Observer, Stage, Stages
from torchrec_handler.serve.predict import HostResult, as_host_result, call, predict
from torchrec_handler.serve.request import Columns, RawRequest, Response, ValidRequest
from torchrec_handler.serve.route import route
from torchrec_handler.serve.split import Answer, Splitter, answer
from torchrec_handler.serve.users import combine_users, find_shared
from torchrec_handler.serve.validate import Validator
from torchrec_handler.tables.once import look_up_once

logger = logging.getLogger(__name__)

T = TypeVar("T")

MOST_SAID = 16_384
"""Characters of a message: a model's own may hold the whole input."""

READING = "reading the request"
NO_REPLY: Any = None
"""Of what is not answered but by an error."""

NOTHING = Size(0, 0)

Arguments = Mapping[str, Any]

COMPRESSED_BYTES = 2**40
"""Behind all bodies that are as they are."""


class _Part(NamedTuple):
    """A request, or some of a row each that go through the stages as one of so many rows."""

    positions: Sequence[int]
    content: Columns | Arguments | ValidRequest | RequestError
    """What became of it: arguments are of a method called alone."""
    size: Size = NOTHING
    reply: Reply = NO_REPLY
    group: Group | None = None
    """Of some, what they were read as."""


class Engine:
    """Answers requests with one predictor."""

    def __init__(
        self,
        model_name: str,
        predictor: Predictor,
        options: Options,
        observer: Observer | None = None,
    ) -> None:
        self._stages = Stages(observer)
        self.model_name = model_name
        self._predictor = predictor
        self._options = options
        self._methods = {name: entry.need_preproc for name, entry in predictor.qualnames.items()}
        self._codecs = Codecs(model_name, predictor.signature, options.limits)
        self._validator = Validator(predictor.signature, options)
        splits = predictor.signature.splits or {}
        self._splitters = {
            qualname: Splitter(of_method, predictor.result_metadata)
            for qualname, of_method in splits.items()
        }
        self._budget = Budget(options.limits)
        self._limits = options.limits
        self._looks_up_once = options.kernels.allow(ONCE)

    def predict(self, requests: Sequence[RawRequest]) -> list[Response | RequestError]:
        """Answer a batch of requests, each on its own, in order. Raises nothing."""
        stages = self._stages
        stages.begin()
        parts = self._read(requests)
        self._done("read", parts)
        parts = self._check(parts)
        self._done("check", parts)
        answers: list[Any] = [NO_REPLY] * len(requests)
        waiting: dict[str, list[_Part]] = {}
        alone: list[_Part] = []
        for part in parts:
            at = part.positions[0]
            if isinstance(part.content, ValidRequest):
                waiting.setdefault(requests[at].qualname, []).append(part)
            elif isinstance(part.content, RequestError):
                answers[at] = part.content
            else:
                alone.append(part)
        for part in alone:
            (at,) = part.positions
            qualname = requests[at].qualname
            arguments = part.content
            answers[at] = _attempt(qualname, call, self._predictor.module, qualname, arguments)
        if alone:
            outcomes = [answers[part.positions[0]] for part in alone]
            stages.done("predict", outcomes, [part.size.rows for part in alone])
        for qualname, own in waiting.items():
            positions = [at for part in own for at in part.positions]
            found = _attempt(qualname, self._predict, qualname, [part.content for part in own])
            if isinstance(found, RequestError):
                found = [found] * len(positions)
            for at, outcome in zip(positions, found, strict=True):
                answers[at] = outcome
        return self._write(answers, parts)

    def out_of_range_ids(self) -> dict[str, int]:
        """How many ids of each feature lay outside of its table, since the engine was made."""
        return self._validator.out_of_range.counts()

    def describe(self) -> dict[str, Any]:
        """What is served: signature, options, tables, plan, versions and digests, as JSON holds it.

        Versions and digests are those of the archive; a plain one records none.
        """
        predictor = self._predictor
        index = predictor.index
        tables = predictor.tables.entries.values() if predictor.tables else ()
        return {
            "signature": asdict(predictor.signature),
            "options": self._options.model_dump(),
            "device": str(predictor.device),
            "tables": [asdict(entry) for entry in tables],
            "plan": str(predictor.plan) if predictor.plan else None,
            "kernels": asdict(predictor.report),
            "versions": dict(index.versions) if index else {},
            "sha256": dict(index.sha256) if index else {},
        }

    def _done(self, stage: Stage, parts: Sequence[_Part]) -> None:
        outcomes: list[Any] = []
        rows: list[int] = []
        for part in parts:
            outcomes += [part.content] * len(part.positions)
            rows += _rows(part)
        self._stages.done(stage, outcomes, rows)

    def _read(self, requests: Sequence[RawRequest]) -> list[_Part]:
        """Read requests, the smallest first, and refuse what is too much for one batch.

        A compressed one is as large as it inflates, which only reading it tells.
        """
        parts: list[_Part] = []
        end = time.monotonic() + self._limits.seconds_of_reading
        costs = [
            len(raw.body) + (COMPRESSED_BYTES if raw.content_encoding else 0) for raw in requests
        ]
        groups = self._codecs.group(requests)
        for positions in sorted(groups, key=lambda group: costs[group[0]]):
            if parts and time.monotonic() > end:
                message = (
                    "not read: smaller requests took more than "
                    f"{self._limits.seconds_of_reading:g} s (limits.seconds_of_reading); try again"
                )
                parts += [_Part([position], Overloaded(message)) for position in positions]
            else:
                parts += self._decode_group(positions, requests)
        return self._within_budget(parts)

    def _within_budget(self, parts: Sequence[_Part]) -> list[_Part]:
        """In order, without what is too much: that is told of each request, not of some."""
        parts = sorted(parts, key=_first)
        read = [part for part in parts if not isinstance(part.content, RequestError)]
        refusals = self._budget.refusals([part.size for part in read]) if read else {}
        if not refusals:
            return parts
        if any(part.group for part in parts):
            return self._within_budget([each for part in parts for each in self._apart(part)])
        refused = {_first(read[at]): refusal for at, refusal in refusals.items()}
        return [
            _Part(part.positions, refused[_first(part)]) if _first(part) in refused else part
            for part in parts
        ]

    def _decode_group(
        self, positions: Sequence[int], requests: Sequence[RawRequest]
    ) -> list[_Part]:
        """Decode requests together or, where one of them is not as it should be, one by one."""
        qualname = requests[positions[0]].qualname
        if len(positions) > 1 and self._methods.get(qualname):
            own = [requests[position] for position in positions]
            group = _attempt(READING, self._codecs.decode_together, own)
            if not isinstance(group, RequestError):
                rows = _attempt(READING, self._as_rows, positions, group, qualname)
                return [rows] if isinstance(rows, _Part) else self._each(positions, group)
        return [self._part([at], self._decode, requests[at]) for at in positions]

    def _as_rows(self, positions: Sequence[int], group: Group, qualname: str) -> _Part:
        """Requests that were read together as one.

        Raises:
            RequestError: they are not of a row each, or answers to rows cannot be told apart, or
                there is something to be told of one of them.
        """
        splitter = self._splitters.get(qualname)
        if splitter is None or not splitter.cuts_rows:
            raise not_single()
        columns = group.rows()
        size = self._validator.measure(columns)
        if size.rows != len(positions):
            raise not_single()
        return _Part(positions, columns, size, group.reply, group)

    def _each(self, positions: Sequence[int], group: Group) -> list[_Part]:
        """Requests that were read together, each by itself."""
        return [
            self._part([at], self._measure, columns, group.reply)
            for at, columns in zip(positions, group.each(), strict=True)
        ]

    def _apart(self, part: _Part) -> list[_Part]:
        return [part] if part.group is None else self._each(part.positions, part.group)

    def _part(self, positions: Sequence[int], step: Callable[..., Any], *arguments: Any) -> _Part:
        read = _attempt(READING, step, *arguments)
        return _Part(positions, *((read,) if isinstance(read, RequestError) else read))

    def _decode(self, raw: RawRequest) -> tuple[Columns | Arguments, Size, Reply]:
        if not route(raw.qualname, self._methods):
            arguments, reply = self._codecs.decode_arguments(raw)
            return arguments, size_of_arguments(arguments, self._predictor.signature), reply
        return self._measure(*self._codecs.decode(raw))

    def _measure(self, columns: Columns, reply: Reply) -> tuple[Columns, Size, Reply]:
        return columns, self._validator.measure(columns), reply

    def _check(self, parts: Sequence[_Part]) -> list[_Part]:
        """Check requests, but for arguments of a method called alone."""
        checked: list[_Part] = []
        for part in parts:
            if part.group is None:
                checked.append(part)
                continue
            valid = _attempt(READING, self._validator.check_rows, part.content, part.size)
            if isinstance(valid, RequestError):
                checked += self._apart(part)
            else:
                checked.append(part._replace(content=valid))
        waiting = [at for at, part in enumerate(checked) if isinstance(part.content, Columns)]
        each = self._check_columns([checked[at] for at in waiting])
        for at, own in zip(waiting, each, strict=True):
            checked[at] = checked[at]._replace(content=own)
        return checked

    def _check_columns(self, parts: Sequence[_Part]) -> Sequence[ValidRequest | RequestError]:
        """Check requests together or, where that takes too much memory, one by one."""
        requests: list[Any] = [part.content for part in parts]
        sizes = [part.size for part in parts]
        checked = _attempt(READING, self._validator.check, requests, sizes)
        if isinstance(checked, RequestError):
            return [_attempt(READING, self._validator, columns) for columns in requests]
        return checked

    def _predict(
        self, qualname: str, requests: Sequence[ValidRequest]
    ) -> list[Answer | RequestError]:
        """One outcome a request, also of those that are one, from as few forward calls as can be.

        A result of which nobody knows how to cut it is made for one request at a time.
        """
        splitter = self._splitters.get(qualname)
        if splitter is None:
            alone = [_attempt(qualname, self._alone, qualname, request) for request in requests]
            self._stages.done("split", alone, [request.rows for request in requests])
            return alone
        pieces: list[list[tuple[ValidRequest, HostResult | RequestError]]] = [[] for _ in requests]
        for forward_call in cut(requests, self._limits.rows_per_forward):
            for position, piece, outcome in self._forward(qualname, forward_call):
                pieces[position].append((piece, outcome))
        answers: list[Answer | RequestError] = []
        for request, parts in zip(requests, pieces, strict=True):
            if request.requests == 1:
                answers.append(_attempt(qualname, self._answer, splitter, parts))
            else:
                answers += [each for part in parts for each in self._answers(splitter, *part)]
        self._stages.called("split")
        return answers

    def _alone(self, qualname: str, request: ValidRequest) -> Answer:
        return answer(self._call(qualname, [request]), self._predictor.result_metadata)

    def _forward(
        self, qualname: str, forward_call: Sequence[tuple[int, ValidRequest]]
    ) -> list[tuple[int, ValidRequest, HostResult | RequestError]]:
        """One forward call; where it raises, halves of it, until the request at fault is alone."""
        results = _attempt(qualname, self._run, qualname, [piece for _, piece in forward_call])
        if not isinstance(results, RequestError):
            return [(*each, own) for each, own in zip(forward_call, results, strict=True)]
        pieces = [(position, own) for position, piece in forward_call for own in apart(piece)]
        if len(pieces) == 1:
            ((position, piece),) = pieces
            self._stages.done("predict", [results], [piece.rows])
            return [(position, piece, results)]
        self._stages.called("predict")
        half = len(pieces) // 2
        return self._forward(qualname, pieces[:half]) + self._forward(qualname, pieces[half:])

    def _run(self, qualname: str, requests: Sequence[ValidRequest]) -> list[HostResult]:
        results = self._splitters[qualname].split(self._call(qualname, requests), requests)
        self._stages.called("split", _count(requests), sum([each.rows for each in requests]))
        return results

    def _call(self, qualname: str, requests: Sequence[ValidRequest]) -> HostResult:
        predictor = self._predictor
        if self._looks_up_once and qualname in predictor.graphs:
            result = self._call_once(predictor.graphs[qualname], requests)
            if result is not None:
                return result
        batch = combine(requests, predictor.batching, predictor.device)
        rows = sum(batch.rows)
        self._stages.called("batch", _count(requests), rows)
        with look_up_once(batch.shared if self._looks_up_once else ()):
            result = predict(predictor.module, qualname, batch.inputs, predictor.result_metadata)
        self._stages.called("predict", _count(requests), rows)
        return result

    def _call_once(self, graph: GraphMethod, requests: Sequence[ValidRequest]) -> HostResult | None:
        """Compute what depends on the user alone once a request; None where that cannot be."""
        shared = find_shared(requests)
        compute = graph.shared(shared) if shared else None
        if compute is None:
            return None
        predictor = self._predictor
        batch = combine_users(requests, predictor.batching, predictor.device, shared)
        rows = sum(batch.rows)
        self._stages.called("batch", _count(requests), rows)
        try:
            with no_gradients(predictor.module):
                found = compute(batch.items, batch.users, batch.index)
        except Exception:
            logger.debug("%s: computed row by row", graph.qualname, exc_info=True)
            return None
        result = as_host_result(found, graph.qualname, predictor.result_metadata)
        self._stages.called("predict", _count(requests), rows)
        return result

    def _answers(
        self, splitter: Splitter, piece: ValidRequest, outcome: HostResult | RequestError
    ) -> list[Answer | RequestError]:
        """Of each request of a piece."""
        if isinstance(outcome, RequestError):
            return [outcome] * piece.requests
        own = splitter.rows(outcome, piece.rows) if piece.requests > 1 else [outcome]
        return [answer(result, self._predictor.result_metadata) for result in own]

    def _answer(
        self, splitter: Splitter, parts: Sequence[tuple[ValidRequest, HostResult | RequestError]]
    ) -> Answer:
        results: list[HostResult] = []
        for _, part in parts:
            if isinstance(part, RequestError):
                raise part
            results.append(part)
        joined = splitter.join(results, [piece for piece, _ in parts])
        return answer(joined, self._predictor.result_metadata)

    def _write(
        self, answers: Sequence[Any], parts: Sequence[_Part]
    ) -> list[Response | RequestError]:
        responses: list[Any] = list(answers)
        rows = [0] * len(answers)
        for part in parts:
            for at, rows[at] in zip(part.positions, _rows(part), strict=True):
                if not isinstance(answers[at], RequestError):
                    responses[at] = _attempt(
                        "writing the answer", self._codecs.encode, answers[at], part.reply
                    )
        self._stages.done("write", responses, rows)
        return responses


def _first(part: _Part) -> int:
    return part.positions[0]


def _rows(part: _Part) -> list[int]:
    """Of each request."""
    return [part.size.rows] if len(part.positions) == 1 else [1] * len(part.positions)


def _count(requests: Sequence[ValidRequest]) -> int:
    return sum([request.requests for request in requests])


def _attempt(where: str, step: Callable[..., T], *arguments: Any) -> T | RequestError:
    """Run a step; whatever it raises is given back as an error of the request.

    Without its traceback and causes, whose frames would keep a failed call's tensors alive.
    """
    try:
        return step(*arguments)
    except RequestError as error:
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)
    except Exception as error:
        logger.warning("%s raised", where, exc_info=True)
        if _is_out_of_memory(error):
            return OutOfMemory(f"{where}: out of memory; send fewer rows")
        return PredictError(f"{where} raised {type(error).__name__}: {said(error)}")


def _is_out_of_memory(error: Exception) -> bool:
    # torch has no type of its own for host memory.
    is_host = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in said(error)
    return is_host or isinstance(error, MemoryError | torch.OutOfMemoryError)


def said(error: Exception) -> str:
    """An error's message as text that can be sent, whatever a model put into it."""
    try:
        return shortened(str(error), MOST_SAID).encode("utf-8", "replace").decode()
    except Exception:  # noqa: BLE001  an exception's own __str__ may raise
        return "(a message that cannot be shown)"
