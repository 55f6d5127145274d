"""The steps of serving, in order: bytes in, bytes out. Knows nothing of the server around it."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import orjson
import torch

from torchrec_handler.errors import (
    OutOfMemory,
    PredictError,
    RequestError,
    UnsupportedMediaType,
)
from torchrec_handler.load.loader import Predictor
from torchrec_handler.options import Options
from torchrec_handler.serve.batch import combine, cut
from torchrec_handler.serve.codecs import json_columns
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

    def __init__(self, predictor: Predictor, options: Options) -> None:
        self._predictor = predictor
        self._methods = {
            name: entry.need_preproc for name, entry in predictor.qualnames.items()
        }
        self._codec = json_columns.JsonColumns(predictor.signature, options.limits)
        self._validate = Validator(predictor.signature, options)
        self._rows_per_forward = options.limits.rows_per_forward

    def predict(self, requests: Sequence[RawRequest]) -> list[Response]:
        """Answer a batch of requests, each on its own, in order. Raises nothing."""
        responses: dict[int, Response] = {}
        waiting: dict[str, list[tuple[int, ValidRequest]]] = {}
        for position, raw in enumerate(requests):
            try:
                if route(raw.qualname, self._methods):
                    valid = _guarded(lambda raw=raw: self._read(raw), "reading the request")
                    waiting.setdefault(raw.qualname, []).append((position, valid))
                else:
                    responses[position] = self._call_alone(raw)
            except RequestError as error:
                responses[position] = _error(error)
        for qualname, members in waiting.items():
            outcomes = self._predict(qualname, [valid for _, valid in members])
            for (position, _), outcome in zip(members, outcomes, strict=True):
                responses[position] = self._write(outcome)
        return [responses[position] for position in range(len(requests))]

    def _read(self, raw: RawRequest) -> ValidRequest:
        _check_content_type(raw)
        return self._validate(self._codec.decode(raw.body))

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
        predictor = self._predictor

        def run() -> list[HostResult]:
            batch = combine(requests, predictor.batching, predictor.device)
            result = predict(
                predictor.module, qualname, batch.inputs, predictor.result_metadata
            )
            return split(result, batch.rows, predictor.result_metadata)

        try:
            return list(_guarded(run, qualname))
        except RequestError as error:
            if len(requests) == 1:
                return [error]
        half = len(requests) // 2
        return self._forward(qualname, requests[:half]) + self._forward(qualname, requests[half:])

    def _joined(self, parts: Sequence[Outcome]) -> Outcome:
        results: list[HostResult] = []
        for part in parts:
            if isinstance(part, RequestError):
                return part
            results.append(part)
        return join(results, self._predictor.result_metadata)

    def _call_alone(self, raw: RawRequest) -> Response:
        """Call a method without need_preproc: this request's payload as keyword arguments."""
        _check_content_type(raw)
        arguments = self._codec.decode_arguments(raw.body)

        def run() -> bytes:
            with torch.inference_mode():
                result = getattr(self._predictor.module, raw.qualname)(**arguments)
            return self._codec.encode(to_host(result))

        return _ok(_guarded(run, raw.qualname))

    def _write(self, outcome: Outcome) -> Response:
        if isinstance(outcome, RequestError):
            return _error(outcome)
        return _ok(self._codec.encode(answer(outcome, self._predictor.result_metadata)))


def _guarded(step: Callable[[], T], where: str) -> T:
    """Run a step; whatever it raises becomes an error of the request."""
    try:
        return step()
    except RequestError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        message = f"{where}: out of memory; send fewer rows"
        raise OutOfMemory(message) from error
    except Exception as error:
        logger.warning("%s raised", where, exc_info=True)
        message = f"{where} raised {type(error).__name__}: {error}"
        raise PredictError(message) from error


def _check_content_type(raw: RawRequest) -> None:
    if raw.content_type not in ("", json_columns.CONTENT_TYPE):
        message = f"received content type {raw.content_type!r}, expected {json_columns.CONTENT_TYPE}"
        raise UnsupportedMediaType(message)


def _ok(body: bytes) -> Response:
    return Response(status=200, phrase="OK", content_type=json_columns.CONTENT_TYPE, body=body)


def _error(error: RequestError) -> Response:
    body: dict[str, Any] = {"code": error.status, "type": error.type, "message": str(error)}
    return Response(
        status=error.status,
        phrase=error.phrase,
        content_type=json_columns.CONTENT_TYPE,
        body=orjson.dumps(body),
    )
