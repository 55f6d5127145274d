"""Fifth step of building: sample requests, from a file or drawn by the signature, as batches.

Shapes: B rows, F features, D width, N ids.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from torchrec_handler.archive import InputSignature, Signature
from torchrec_handler.errors import BuildError, RequestError
from torchrec_handler.load.factory import FactoryOutput
from torchrec_handler.load.self_test import Sample, call
from torchrec_handler.options import Options
from torchrec_handler.serve.batch import combine, take_rows
from torchrec_handler.serve.codecs.choose import Codecs
from torchrec_handler.serve.request import Floats, RawRequest, Sparse, ValidRequest
from torchrec_handler.serve.validate import INT32_ROWS, Validator

logger = logging.getLogger(__name__)

BATCHES = (1, 4, 16, 64)
"""Rows of the recorded calls, growing, so that replaying them warms a worker up."""

LONGEST = 4
"""Ids of a drawn feature in a drawn row are fewer."""


def read_requests(path: Path, signature: Signature, options: Options) -> list[ValidRequest]:
    """Read a file of requests, one JSON body a line, in any JSON format.

    Raises:
        BuildError: the file cannot be read, or a line is a bad request; names the line.
    """
    codecs = Codecs("", signature, options.limits)
    validate = Validator(signature, options)
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        message = f"samples: {path} cannot be read: {error.strerror}"
        raise BuildError(message) from error
    requests = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            columns, _ = codecs.decode(RawRequest(body=line, content_type="application/json"))
            requests.append(validate(columns))
        except RequestError as error:
            message = f"samples: {path}, line {number}: {error}"
            raise BuildError(message) from error
    if not requests:
        message = f"samples: {path} holds no request, expected one JSON body a line"
        raise BuildError(message)
    return requests


def draw_requests(signature: Signature, seed: int = 0) -> list[ValidRequest]:
    """Draw requests of `BATCHES` rows with ids inside the tables.

    Returns:
        None of them when the signature leaves an input's features open.
    """
    if any(entry.num_features is None for entry in signature.inputs):
        return []
    generator = np.random.default_rng(seed)
    return [
        ValidRequest(
            rows=rows,
            inputs={entry.name: _draw(entry, rows, generator) for entry in signature.inputs},
        )
        for rows in BATCHES
    ]


def record(
    module: torch.nn.Module,
    output: FactoryOutput,
    requests: Sequence[ValidRequest],
    device: torch.device,
) -> list[Sample]:
    """Call every method that takes the batched input with growing batches of the requests.

    A method other than `forward` that raises on them is left out with a warning: what it reads
    may not be in the samples.

    Raises:
        BuildError: `forward` raised.
    """
    samples = []
    methods = [name for name, entry in output.qualnames.items() if entry.need_preproc]
    for request in _growing(requests):
        batch = combine([request], output.batching, torch.device("cpu"))
        inputs = {
            name: torch.stack(value) if isinstance(value, list) else value
            for name, value in batch.inputs.items()
        }
        for qualname in list(methods):
            try:
                outputs = call(module, qualname, inputs, device)
            except Exception as error:
                message = f"samples: {qualname} raised {type(error).__name__}: {error}"
                if qualname == methods[0]:
                    raise BuildError(message) from error
                logger.warning("%s; it is not recorded", message)
                methods.remove(qualname)
                continue
            samples.append(
                Sample(qualname=qualname, rows=request.rows, inputs=inputs, outputs=outputs)
            )
    return samples


def _growing(requests: Sequence[ValidRequest]) -> Iterator[ValidRequest]:
    """The requests, small ones first; one that is larger than the largest batch, its first rows."""
    for request in sorted(requests, key=lambda request: request.rows)[:64]:
        yield request if request.rows <= BATCHES[-1] else take_rows(request, 0, BATCHES[-1])


def _draw(entry: InputSignature, rows: int, generator: np.random.Generator) -> Floats | Sparse:
    features = entry.num_features or 0
    if entry.type == "dense":
        return generator.standard_normal((rows, features), dtype=np.float32)
    if entry.type == "embedding":
        width = entry.width or 1
        return generator.standard_normal((rows, features, width), dtype=np.float32)
    lengths = generator.integers(0, LONGEST, (features, rows), dtype=np.int32)
    limits = [limit or INT32_ROWS for limit in entry.rows] or [1] * features
    ids = [
        generator.integers(0, limit, count, dtype=np.int64)
        for limit, count in zip(limits, lengths.sum(axis=1), strict=True)
    ]
    values = np.concatenate(ids).astype(np.int32)
    weighted = entry.type == "weighted_sparse"
    weights = generator.random(values.size, dtype=np.float32) if weighted else None
    return Sparse(lengths=lengths, values=values, weights=weights)
