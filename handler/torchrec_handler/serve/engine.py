"""The steps of serving, in order: bytes in, bytes out. Knows nothing of the server around it."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from itertools import chain, pairwise
from typing import Any

from torchrec_handler.errors import RequestError
from torchrec_handler.kernels.graph.method import GraphMethod
from torchrec_handler.load.call import no_gradients
from torchrec_handler.load.states import Predictor
from torchrec_handler.options import ONCE, Options
from torchrec_handler.serve.attempt import attempt
from torchrec_handler.serve.batch import apart, combine, cut
from torchrec_handler.serve.codecs.choose import Codecs
from torchrec_handler.serve.fatal import is_fatal
from torchrec_handler.serve.observe import Observer, Stage, Stages
from torchrec_handler.serve.predict import HostResult, as_host_result, call, predict
from torchrec_handler.serve.reading import NO_REPLY, Part, Reading
from torchrec_handler.serve.request import AnyRequest, Response, ValidRequest
from torchrec_handler.serve.split import Answer, Splitter, answer
from torchrec_handler.serve.users import combine_users, find_shared
from torchrec_handler.tables.ahead import Ahead
from torchrec_handler.tables.once import look_up_once
from torchrec_handler.updates.served import Served

logger = logging.getLogger(__name__)

ForwardCall = Sequence[tuple[int, ValidRequest]]
"""Positions of requests, and the requests or pieces of them."""


class Engine:
    """Answers requests with one predictor."""

    def __init__(
        self,
        model_name: str,
        predictor: Predictor,
        options: Options,
        observer: Observer | None = None,
        updates: Served[Predictor] | None = None,
    ) -> None:
        self.updates = updates
        """What changes while it is served, if anything does."""
        self._stages = Stages(observer)
        self.model_name = model_name
        self._predictor = predictor
        self._options = options
        methods = {name: entry.need_preproc for name, entry in predictor.qualnames.items()}
        self._codecs = Codecs(model_name, predictor.signature, options.limits)
        splits = predictor.signature.splits or {}
        self._splitters = {
            qualname: Splitter(of_method, predictor.result_metadata)
            for qualname, of_method in splits.items()
        }
        cut_by_rows = [name for name, splitter in self._splitters.items() if splitter.cuts_rows]
        self._reading = Reading(self._codecs, predictor.signature, options, methods, cut_by_rows)
        self._limits = options.limits
        self._ahead = Ahead()
        self._looks_up_once = options.kernels.allow(ONCE)
        on_host = predictor.tables is not None and predictor.device.type == "cpu"
        self._file = predictor.tables.file if on_host and predictor.tables and not updates else None

    @property
    def sequence(self) -> int | None:
        """The generation of the answers that `predict` gave last; None without updates."""
        return self.updates.sequence if self.updates else None

    def predict(self, requests: Sequence[AnyRequest]) -> list[Response | RequestError]:
        """Answer a batch of requests, each on its own, in order.

        Raises:
            Unusable: and nothing else: no later batch would be answered, or answered right.
        """
        if self._file is not None:
            self._file.check()
        stages = self._stages
        stages.begin()
        parts = self._reading.read(requests)
        self._done("read", parts)
        parts = self._reading.check(parts)
        self._done("check", parts)
        updates = self.updates
        if updates is None:
            return self._write(self._answered(requests, parts), parts)
        updates.enter()
        self._predictor = updates.model
        try:
            answers = self._answered(requests, parts)
        finally:
            updates.leave()
        return self._write(answers, parts)

    def _answered(self, requests: Sequence[AnyRequest], parts: Sequence[Part]) -> list[Any]:
        """What becomes of each request, on the host: all forward calls are behind it."""
        answers: list[Any] = [NO_REPLY] * len(requests)
        waiting: dict[str, list[Part]] = {}
        alone: list[Part] = []
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
            answers[at] = attempt(qualname, call, self._predictor.module, qualname, arguments)
        stages = self._stages
        if alone:
            outcomes = [answers[part.positions[0]] for part in alone]
            stages.done("predict", outcomes, [part.size.rows for part in alone])
        for qualname, own in waiting.items():
            positions = [at for part in own for at in part.positions]
            found = attempt(qualname, self._predict, qualname, [part.content for part in own])
            if isinstance(found, RequestError):
                found = [found] * len(positions)
            for at, outcome in zip(positions, found, strict=True):
                answers[at] = outcome
        return answers

    def out_of_range_ids(self) -> dict[str, int]:
        """How many ids of each feature lay outside of its table, since the engine was made."""
        return self._reading.out_of_range_ids()

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

    def _done(self, stage: Stage, parts: Sequence[Part]) -> None:
        outcomes: list[Any] = []
        rows: list[int] = []
        for part in parts:
            outcomes += [part.content] * len(part.positions)
            rows += part.rows
        self._stages.done(stage, outcomes, rows)

    def _predict(
        self, qualname: str, requests: Sequence[ValidRequest]
    ) -> list[Answer | RequestError]:
        """One outcome a request, also of those that are one, from as few forward calls as can be.

        A result of which nobody knows how to cut it is made for one request at a time.
        """
        splitter = self._splitters.get(qualname)
        if splitter is None:
            alone = [attempt(qualname, self._alone, qualname, request) for request in requests]
            self._stages.done("split", alone, [request.rows for request in requests])
            return alone
        pieces: list[list[tuple[ValidRequest, HostResult | RequestError]]] = [[] for _ in requests]
        has_ranks = self._predictor.leader is not None
        with self._ahead.batch() if has_ranks else nullcontext():
            for forward_call, following in _with_next(cut(requests, self._limits.rows_per_forward)):
                if has_ranks:
                    self._begin(following)
                for position, piece, outcome in self._forward(qualname, forward_call):
                    pieces[position].append((piece, outcome))
        answers: list[Answer | RequestError] = []
        for request, parts in zip(requests, pieces, strict=True):
            if request.requests == 1:
                answers.append(attempt(qualname, self._answer, splitter, parts))
            else:
                answers += [each for part in parts for each in self._answers(splitter, *part)]
        self._stages.called("split")
        return answers

    def _begin(self, following: ForwardCall | None) -> None:
        """Let other ranks know of the forward call after this one."""
        if following is None:
            self._ahead.begin(None)
            return
        predictor = self._predictor
        given = ([piece for _, piece in following], predictor.batching, predictor.device)
        self._ahead.begin(lambda: combine(*given).inputs)

    def _alone(self, qualname: str, request: ValidRequest) -> Answer:
        return answer(self._call(qualname, [request]), self._predictor.result_metadata)

    def _forward(
        self, qualname: str, forward_call: ForwardCall
    ) -> list[tuple[int, ValidRequest, HostResult | RequestError]]:
        """One forward call; where it raises, halves of it, until the request at fault is alone."""
        results = attempt(qualname, self._run, qualname, [piece for _, piece in forward_call])
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
        if predictor.leader:
            self._ahead.given = batch.inputs
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
        except Exception as error:
            if is_fatal(error):
                raise
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
        self, answers: Sequence[Any], parts: Sequence[Part]
    ) -> list[Response | RequestError]:
        responses: list[Any] = list(answers)
        rows = [0] * len(answers)
        for part in parts:
            for at, rows[at] in zip(part.positions, part.rows, strict=True):
                if not isinstance(answers[at], RequestError):
                    responses[at] = attempt(
                        "writing the answer", self._codecs.encode, answers[at], part.reply
                    )
        self._stages.done("write", responses, rows)
        return responses


def _with_next(calls: Iterable[ForwardCall]) -> Iterator[tuple[ForwardCall, ForwardCall | None]]:
    """Each with the one after it; None behind the last."""
    ends: list[ForwardCall | None] = [None]
    return pairwise(chain(calls, ends))  # type: ignore[arg-type]  # None is the last one's alone


def _count(requests: Sequence[ValidRequest]) -> int:
    return sum([request.requests for request in requests])
