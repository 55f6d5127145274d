"""The steps of serving, in order: bytes in, bytes out. Knows nothing of the server around it."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple, TypeVar

import torch

from torchrec_handler.errors import (
    OutOfMemory,
    Overloaded,
    PredictError,
    RequestError,
    Unusable,
)
from torchrec_handler.kernels.graph.method import GraphMethod
from torchrec_handler.load.call import no_gradients
from torchrec_handler.load.states import Predictor
from torchrec_handler.options import ONCE, Options
from torchrec_handler.serve.batch import combine, cut
from torchrec_handler.serve.budget import Budget, size_of_arguments
from torchrec_handler.serve.codecs.choose import Codecs, Reply
from torchrec_handler.serve.codecs.json_document import shortened
from torchrec_handler.serve.fatal import is_fatal
from torchrec_handler.serve.measure import Size
from torchrec_handler.serve.observe import Observer, Stages
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

Arguments = Mapping[str, Any]


COMPRESSED_BYTES = 2**40
"""Behind all bodies that are as they are."""


class _Read(NamedTuple):
    """A request that was read, and no more."""

    content: Columns | Arguments
    """Or keyword arguments of a method called alone."""
    size: Size
    reply: Reply


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
        on_host = predictor.tables is not None and predictor.device.type == "cpu"
        self._file = predictor.tables.file if on_host and predictor.tables else None

    def predict(self, requests: Sequence[RawRequest]) -> list[Response | RequestError]:
        """Answer a batch of requests, each on its own, in order.

        Raises:
            Unusable: and nothing else: no later batch would be answered, or answered right.
        """
        if self._file is not None:
            self._file.check()
        stages = self._stages
        stages.begin()
        reads = self._read(requests)
        rows = [0 if isinstance(read, RequestError) else read.size.rows for read in reads]
        stages.done("read", reads, rows)
        checked = list(self._check(reads))
        outcomes: list[Any] = [content for content, _ in checked]
        stages.done("check", outcomes, rows)
        waiting: dict[str, list[int]] = {}
        alone: list[int] = []
        for position, content in enumerate(outcomes):
            if isinstance(content, ValidRequest):
                waiting.setdefault(requests[position].qualname, []).append(position)
            elif not isinstance(content, RequestError):
                alone.append(position)
        for position in alone:
            qualname = requests[position].qualname
            module, arguments = self._predictor.module, outcomes[position]
            outcomes[position] = _attempt(qualname, call, module, qualname, arguments)
        if alone:
            stages.done("predict", [outcomes[at] for at in alone], [rows[at] for at in alone])
        for qualname, positions in waiting.items():
            valid = [outcomes[position] for position in positions]
            answers = _attempt(qualname, self._predict, qualname, valid)
            if isinstance(answers, RequestError):
                answers = [answers] * len(positions)
            for position, outcome in zip(positions, answers, strict=True):
                outcomes[position] = outcome
        replies = (reply for _, reply in checked)
        responses = [self._write(*each) for each in zip(outcomes, replies, strict=True)]
        stages.done("write", responses, rows)
        return responses

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

    def _read(self, requests: Sequence[RawRequest]) -> list[_Read | RequestError]:
        """Read requests, the smallest first, and refuse what is too much for one batch.

        A compressed one is as large as it inflates, which only reading it tells.
        """
        outcomes: dict[int, _Read | RequestError] = {}
        end = time.monotonic() + self._limits.seconds_of_reading
        costs = [
            len(raw.body) + (COMPRESSED_BYTES if raw.content_encoding else 0) for raw in requests
        ]
        groups = self._codecs.group(requests)
        for positions in sorted(groups, key=lambda group: costs[group[0]]):
            if outcomes and time.monotonic() > end:
                message = (
                    "not read: smaller requests took more than "
                    f"{self._limits.seconds_of_reading:g} s (limits.seconds_of_reading); try again"
                )
                outcomes.update((position, Overloaded(message)) for position in positions)
            else:
                reads = self._decode_group([requests[position] for position in positions])
                outcomes.update(zip(positions, reads, strict=True))
        sizes = {at: read.size for at, read in outcomes.items() if isinstance(read, _Read)}
        if sizes:
            positions = sorted(sizes)
            refusals = self._budget.refusals([sizes[position] for position in positions])
            outcomes.update({positions[at]: refusal for at, refusal in refusals.items()})
        return [outcomes[position] for position in range(len(requests))]

    def _decode_group(self, requests: Sequence[RawRequest]) -> Sequence[_Read | RequestError]:
        """Decode requests together or, where one of them is not as it should be, one by one."""
        if len(requests) > 1 and self._methods.get(requests[0].qualname):
            decoded = _attempt(READING, self._codecs.decode_together, requests)
            if not isinstance(decoded, RequestError):
                return [_attempt(READING, self._measure, *each) for each in decoded]
        return [_attempt(READING, self._decode, raw) for raw in requests]

    def _decode(self, raw: RawRequest) -> _Read:
        if not route(raw.qualname, self._methods):
            arguments, reply = self._codecs.decode_arguments(raw)
            size = size_of_arguments(arguments, self._predictor.signature)
            return _Read(content=arguments, size=size, reply=reply)
        return self._measure(*self._codecs.decode(raw))

    def _measure(self, columns: Columns, reply: Reply) -> _Read:
        return _Read(content=columns, size=self._validator.measure(columns), reply=reply)

    def _check(
        self, reads: Sequence[_Read | RequestError]
    ) -> Iterator[tuple[ValidRequest | Arguments | RequestError, Reply]]:
        """Check requests, but for arguments of a method called alone.

        Yields:
            What became of each, and how to answer it.
        """
        requests: list[Columns] = []
        sizes: list[Size] = []
        for read in reads:
            if isinstance(read, _Read) and isinstance(read.content, Columns):
                requests.append(read.content)
                sizes.append(read.size)
        checked = iter(self._check_columns(requests, sizes))
        for read in reads:
            if isinstance(read, RequestError):
                yield read, NO_REPLY
            elif isinstance(read.content, Columns):
                yield next(checked), read.reply
            else:
                yield read.content, read.reply

    def _check_columns(
        self, requests: Sequence[Columns], sizes: Sequence[Size]
    ) -> Sequence[ValidRequest | RequestError]:
        """Check requests together or, where that takes too much memory, one by one."""
        checked = _attempt(READING, self._validator.check, requests, sizes)
        if isinstance(checked, RequestError):
            return [_attempt(READING, self._validator, columns) for columns in requests]
        return checked

    def _predict(
        self, qualname: str, requests: Sequence[ValidRequest]
    ) -> list[Answer | RequestError]:
        """One outcome a request, from as few forward calls as the limits allow.

        A result of which nobody knows how to cut it is made for one request at a time.
        """
        splitter = self._splitters.get(qualname)
        if splitter is None:
            alone = [_attempt(qualname, self._alone, qualname, request) for request in requests]
            self._stages.done("split", alone, [request.rows for request in requests])
            return alone
        pieces: list[list[tuple[ValidRequest, HostResult | RequestError]]] = [[] for _ in requests]
        for forward_call in cut(requests, self._limits.rows_per_forward):
            outcomes = self._forward(qualname, [piece for _, piece in forward_call])
            for (position, piece), outcome in zip(forward_call, outcomes, strict=True):
                pieces[position].append((piece, outcome))
        answers = [_attempt(qualname, self._answer, splitter, parts) for parts in pieces]
        self._stages.called("split")
        return answers

    def _alone(self, qualname: str, request: ValidRequest) -> Answer:
        return answer(self._call(qualname, [request]), self._predictor.result_metadata)

    def _forward(
        self, qualname: str, requests: Sequence[ValidRequest]
    ) -> list[HostResult | RequestError]:
        """One forward call; where it raises, halves of it, until the request at fault is alone."""
        results = _attempt(qualname, self._run, qualname, requests)
        if not isinstance(results, RequestError):
            return list(results)
        if len(requests) == 1:
            self._stages.done("predict", [results], [requests[0].rows])
            return [results]
        self._stages.called("predict")
        half = len(requests) // 2
        return self._forward(qualname, requests[:half]) + self._forward(qualname, requests[half:])

    def _run(self, qualname: str, requests: Sequence[ValidRequest]) -> list[HostResult]:
        results = self._splitters[qualname].split(self._call(qualname, requests), requests)
        self._stages.called("split", len(requests), sum([each.rows for each in requests]))
        return results

    def _call(self, qualname: str, requests: Sequence[ValidRequest]) -> HostResult:
        predictor = self._predictor
        if self._looks_up_once and qualname in predictor.graphs:
            result = self._call_once(predictor.graphs[qualname], requests)
            if result is not None:
                return result
        batch = combine(requests, predictor.batching, predictor.device)
        rows = sum(batch.rows)
        self._stages.called("batch", len(requests), rows)
        with look_up_once(batch.shared if self._looks_up_once else ()):
            result = predict(predictor.module, qualname, batch.inputs, predictor.result_metadata)
        self._stages.called("predict", len(requests), rows)
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
        self._stages.called("batch", len(requests), rows)
        try:
            with no_gradients(predictor.module):
                found = compute(batch.items, batch.users, batch.index)
        except Exception as error:
            if is_fatal(error):
                raise
            logger.debug("%s: computed row by row", graph.qualname, exc_info=True)
            return None
        result = as_host_result(found, graph.qualname, predictor.result_metadata)
        self._stages.called("predict", len(requests), rows)
        return result

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

    def _write(self, outcome: Any, reply: Reply) -> Response | RequestError:
        if isinstance(outcome, RequestError):
            return outcome
        return _attempt("writing the answer", self._codecs.encode, outcome, reply)


def _attempt(where: str, step: Callable[..., T], *arguments: Any) -> T | RequestError:
    """Run a step; whatever it raises is given back as an error of the request.

    Without its traceback and causes, whose frames would keep a failed call's tensors alive.

    Raises:
        Unusable: it is an error of the process.
    """
    try:
        return step(*arguments)
    except Unusable:
        raise
    except RequestError as error:
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)
    except Exception as error:
        logger.warning("%s raised", where, exc_info=True)
        if is_fatal(error):
            message = f"{where} raised {type(error).__name__}: {said(error)}"
            raise Unusable(message) from error
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
