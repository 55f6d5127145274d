"""The steps of serving, in order: bytes in, bytes out. Knows nothing of the server around it."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import torch

from torchrec_handler.errors import OutOfMemory, PredictError, RequestError
from torchrec_handler.load.loader import Predictor
from torchrec_handler.options import Options
from torchrec_handler.serve.batch import combine, cut
from torchrec_handler.serve.codecs.choose import JSON, Codecs, Reply
from torchrec_handler.serve.codecs.json_columns import encode
from torchrec_handler.serve.predict import HostResult, predict, to_host
from torchrec_handler.serve.request import RawRequest, Response, ValidRequest
from torchrec_handler.serve.route import route
from torchrec_handler.serve.split import answer, join, split
from torchrec_handler.serve.validate import Validator

logger = logging.getLogger(__name__)

T = TypeVar("T")
Outcome = HostResult | RequestError


class Engine:
    """Answers requests with one predictor."""

    def __init__(self, model_name: str, predictor: Predictor, options: Options) -> None:
        self._predictor = predictor
        self._options = options
        self._methods = {name: entry.need_preproc for name, entry in predictor.qualnames.items()}
        self._codecs = Codecs(model_name, predictor.signature, options.limits)
        self._validate = Validator(predictor.signature, options)
        self._rows_per_forward = options.limits.rows_per_forward

    def predict(self, requests: Sequence[RawRequest]) -> list[Response]:
        """Answer a batch of requests, each on its own, in order. Raises nothing."""
        responses: dict[int, Response] = {}
        waiting: dict[str, list[tuple[int, ValidRequest, Reply]]] = {}
        for position, raw in enumerate(requests):
            try:
                if route(raw.qualname, self._methods):
                    valid, reply = _guarded("reading the request", self._read, raw)
                    waiting.setdefault(raw.qualname, []).append((position, valid, reply))
                else:
                    responses[position] = _guarded(raw.qualname, self._call_alone, raw)
            except RequestError as error:
                responses[position] = _error(error)
        for qualname, members in waiting.items():
            outcomes = self._predict(qualname, [valid for _, valid, _ in members])
            for (position, _, reply), outcome in zip(members, outcomes, strict=True):
                responses[position] = self._write(outcome, reply)
        return [responses[position] for position in range(len(requests))]

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
            "versions": dict(index.versions) if index else {},
            "sha256": dict(index.sha256) if index else {},
        }

    def _read(self, raw: RawRequest) -> tuple[ValidRequest, Reply]:
        columns, reply = self._codecs.decode(raw)
        return self._validate(columns), reply

    def _predict(self, qualname: str, requests: Sequence[ValidRequest]) -> list[Outcome]:
        """One outcome a request, from as few forward calls as the limits allow."""
        pieces: list[list[Outcome]] = [[] for _ in requests]
        for call in cut(requests, self._rows_per_forward):
            outcomes = self._forward(qualname, [piece for _, piece in call])
            for (position, _), outcome in zip(call, outcomes, strict=True):
                pieces[position].append(outcome)
        return [self._joined(parts) for parts in pieces]

    def _forward(self, qualname: str, requests: Sequence[ValidRequest]) -> list[Outcome]:
        """One forward call; where it raises, halves of it, until the request at fault is alone."""
        try:
            return list(_guarded(qualname, self._run, qualname, requests))
        except RequestError as error:
            if len(requests) == 1:
                return [error]
        half = len(requests) // 2
        return self._forward(qualname, requests[:half]) + self._forward(qualname, requests[half:])

    def _run(self, qualname: str, requests: Sequence[ValidRequest]) -> list[HostResult]:
        predictor = self._predictor
        batch = combine(requests, predictor.batching, predictor.device)
        result = predict(predictor.module, qualname, batch.inputs, predictor.result_metadata)
        return split(result, batch.rows, predictor.result_metadata)

    def _joined(self, parts: Sequence[Outcome]) -> Outcome:
        results: list[HostResult] = []
        for part in parts:
            if isinstance(part, RequestError):
                return part
            results.append(part)
        return join(results, self._predictor.result_metadata)

    def _call_alone(self, raw: RawRequest) -> Response:
        """Call a method without need_preproc: this request's payload as keyword arguments."""
        arguments, reply = self._codecs.decode_arguments(raw)
        with torch.inference_mode():
            result = getattr(self._predictor.module, raw.qualname)(**arguments)
        return _ok(*self._codecs.encode(to_host(result), reply))

    def _write(self, outcome: Outcome, reply: Reply) -> Response:
        if isinstance(outcome, RequestError):
            return _error(outcome)
        result = answer(outcome, self._predictor.result_metadata)
        try:
            return _ok(*_guarded("writing the answer", self._codecs.encode, result, reply))
        except RequestError as error:
            return _error(error)


def _guarded(where: str, step: Callable[..., T], *arguments: Any) -> T:
    """Run a step; whatever it raises becomes an error of the request."""
    try:
        return step(*arguments)
    except RequestError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        message = f"{where}: out of memory; send fewer rows"
        raise OutOfMemory(message) from error
    except Exception as error:
        logger.warning("%s raised", where, exc_info=True)
        message = f"{where} raised {type(error).__name__}: {error}"
        raise PredictError(message) from error


def _ok(content_type: str, body: bytes) -> Response:
    return Response(status=200, phrase="OK", content_type=content_type, body=body)


def _error(error: RequestError) -> Response:
    body: dict[str, Any] = {"code": error.status, "type": error.type, "message": str(error)}
    return Response(status=error.status, phrase=error.phrase, content_type=JSON, body=encode(body))
