"""Fifth step of building: sample requests, from a file or drawn by the signature.

Shapes: B rows, F features, D width, N ids.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from torchrec_archiver.near import near_path
from torchrec_handler.archive.format import InputSignature, Signature
from torchrec_handler.errors import BuildError, RequestError
from torchrec_handler.load.signature.draw import STYLES, Style, draw_lengths, open_inputs
from torchrec_handler.options import Options
from torchrec_handler.serve.codecs.choose import Codecs
from torchrec_handler.serve.request import Floats, Ids, RawRequest, Sparse, ValidRequest
from torchrec_handler.serve.rules import last_ids
from torchrec_handler.serve.validate import Validator

BATCHES = (1, 4, 16, 64)
"""Rows of the recorded calls, growing, so that replaying them warms a worker up."""


def read_requests(
    path: Path, signature: Signature, options: Options, what: str = "samples"
) -> list[ValidRequest]:
    """Read a file of requests, one JSON body a line, in any JSON format.

    Args:
        path: the file.
        signature: what the model takes.
        options: as a worker reads them.
        what: what errors call the file.

    Raises:
        BuildError: the file cannot be read, or a line is a bad request; names the line.
    """
    codecs = Codecs("", signature, options.limits)
    validate = Validator(signature, options)
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        message = f"{what}: {path} cannot be read: {error.strerror}"
        raise BuildError(message, hint=near_path(path)) from error
    requests = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            columns, _ = codecs.decode(RawRequest(body=line, content_type="application/json"))
            requests.append(validate(columns))
        except RequestError as error:
            message = f"{what}: {path}, line {number}: {error}"
            raise BuildError(message) from error
    if not requests:
        message = f"{what}: {path} holds no request, expected one JSON body a line"
        raise BuildError(message)
    return requests


FEW_IDS = 2
"""What nearly every table has."""

DrawnIds = Literal["any", "few of open ones", "few"]
"""Those that a table has and, of a feature that no table limits, any; or few of the latter, which
may come to a table that nobody knows; or few of all, which methods may look up elsewhere."""


def draw_requests(
    signature: Signature,
    style: Style = STYLES[0],
    ids: DrawnIds = "any",
    batches: Sequence[int] = BATCHES,
) -> list[ValidRequest]:
    """Draw requests with ids inside the tables.

    Args:
        signature: what the model takes.
        style: how long lists of ids are.
        ids: which.
        batches: the rows of each.

    Returns:
        None of them when the signature leaves an input's features open.
    """
    if open_inputs(signature):
        return []
    if ids != "any":
        inputs = tuple(
            replace(
                entry,
                ids_below=tuple(
                    FEW_IDS if rows is None or (ids == "few" and rows > FEW_IDS) else rows
                    for rows in entry.ids_below
                ),
            )
            for entry in signature.inputs
        )
        signature = replace(signature, inputs=inputs)
    generator = np.random.default_rng(0)
    return [_draw(signature, rows, style, generator) for rows in batches]


def _draw(
    signature: Signature, rows: int, style: Style, generator: np.random.Generator
) -> ValidRequest:
    lengths = draw_lengths(signature.inputs, rows, style, generator)
    return ValidRequest(
        rows=rows,
        inputs={
            entry.name: _sparse(entry, lengths[entry.name], generator)
            if entry.name in lengths
            else _floats(entry, rows, generator)
            for entry in signature.inputs
        },
    )


def _floats(entry: InputSignature, rows: int, generator: np.random.Generator) -> Floats:
    features = entry.num_features or 0
    shape = (rows, features, entry.width or 1) if entry.type == "embedding" else (rows, features)
    return generator.standard_normal(shape, dtype=np.float32)


def _sparse(
    entry: InputSignature, lengths: npt.NDArray[np.int32], generator: np.random.Generator
) -> Sparse:
    last = last_ids(entry) if entry.ids_below else [0] * len(lengths)
    ids = [
        generator.integers(0, most, count, dtype=np.int64, endpoint=True)
        for most, count in zip(last, lengths.sum(axis=1), strict=True)
    ]
    values: Ids = np.concatenate(ids)
    if not entry.is_wide:
        values = values.astype(np.int32)
    weighted = entry.type == "weighted_sparse"
    weights = generator.random(values.size, dtype=np.float32) if weighted else None
    return Sparse(lengths=lengths, values=values, weights=weights)
