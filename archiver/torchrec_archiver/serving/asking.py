"""What a load sends: requests out of an archive's samples, or out of a file, tried before.

Shapes: B rows.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from torchrec_archiver.serving import JSON, recorded
from torchrec_archiver.serving.archive import Model
from torchrec_archiver.serving.load import Request, request
from torchrec_archiver.serving.recorded import Array, Recorded
from torchrec_archiver.serving.running import call, qualname, said
from torchrec_handler.archive.format import MODEL_CONFIG, Signature
from torchrec_handler.errors import ServeError
from torchrec_handler.options import Options, read_options

BODIES = 64
"""Different requests of a size."""
ROWS_OF_BODIES = 20_000
"""Fewer of them, where they would hold more rows together."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A served model."""

    model: Model
    url: str
    """Of the server."""
    path: str
    """Of its predictions."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """What every request carries."""

    @property
    def signature(self) -> Signature:
        """What can be asked.

        Raises:
            ServeError: the archive does not say.
        """
        if self.model.index is None:
            message = f"archive: {self.model.archive} does not describe itself; build it with "
            raise ServeError(message + "torchrec-archiver build")
        return self.model.index.signature

    @property
    def options(self) -> Options:
        """Those of its model-config.yaml."""
        import yaml  # noqa: PLC0415  only what is compared needs it

        text = (self.model.folder / MODEL_CONFIG).read_text(encoding="utf-8")
        return read_options(yaml.safe_load(text))


def of_samples(target: Target, rows: int, content_type: str) -> list[Request]:
    """Requests of so many rows, out of those of the recorded samples in turn.

    Raises:
        ServeError: the archive holds no samples, or the first request is not answered.
    """
    samples = _samples(target)
    pool = recorded.pool(samples)
    bodies = max(1, min(BODIES, ROWS_OF_BODIES // rows))
    made = []
    for number in range(bodies):
        at = (np.arange(rows) + number * rows) % pool.rows
        inputs = recorded.take(pool.inputs, pool.rows, at)
        if content_type == JSON:
            body = recorded.columns(inputs)
        else:
            body = recorded.protobuf(inputs, rows, target.signature)
        headers = {"Content-Type": content_type, **qualname(pool), **target.headers}
        if not number:
            _ask(target, headers, body, f"a request of {rows:,} rows")
        made.append(request(target.url, target.path, headers, body, rows))
    return made


def of_file(target: Target, path: Path) -> list[Request]:
    """Requests out of a file, one JSON body a line.

    Raises:
        BuildError: a line is no request of the model; names it.
        ServeError: the archive does not describe itself, or the first one is not answered.
    """
    from torchrec_archiver.samples import read_requests  # noqa: PLC0415  it imports torch

    read = read_requests(path, target.signature, target.options)
    bodies = [line for line in path.read_bytes().splitlines() if line.strip()]
    headers = {"Content-Type": JSON, **target.headers}
    _ask(target, headers, bodies[0], f"the first request of {path}")
    return [
        request(target.url, target.path, headers, body, one.rows)
        for body, one in zip(bodies, read, strict=True)
    ]


def check_samples(target: Target) -> None:
    """See that a server answers recorded samples with their outputs.

    Raises:
        SelfTestError: an output is another than when the archive was built.
        ServeError: the archive holds no samples, or one is not answered.
    """
    import torch  # noqa: PLC0415  only what is compared needs it

    from torchrec_handler.load.self_test import TOLERANCES, compare  # noqa: PLC0415

    tolerance = TOLERANCES[target.options.precision]
    for sample in _samples(target):
        what = f"{sample.qualname}, sample of {sample.rows} rows"
        headers = {"Content-Type": JSON, **qualname(sample), **target.headers}
        answer = json.loads(_ask(target, headers, recorded.columns(sample.inputs), what))
        for name, parts in sample.outputs.items():
            received = _parts(answer.get(name), target.signature.result_metadata)
            where = f"{target.url}: {what}, output {name!r}"
            for one, expected in zip(received, parts, strict=False):
                wanted = _as_json(expected)
                given = np.array(one, dtype=np.float64)
                if given.size == wanted.size:
                    given = given.reshape(wanted.shape).astype(wanted.dtype)
                compare(where, torch.from_numpy(given), torch.from_numpy(wanted), tolerance)


def _samples(target: Target) -> list[Recorded]:
    found = recorded.read(target.model.folder)
    if not found:
        message = (
            f"archive: {target.model.archive} holds no recorded samples; "
            "give requests with --requests, or build it with --samples"
        )
        raise ServeError(message)
    return found


def _ask(target: Target, headers: Mapping[str, str], body: bytes, what: str) -> bytes:
    try:
        status, answer = call(target.url, "POST", target.path, body, headers)
    except OSError as error:
        message = f"{target.url}: cannot be asked: {error}; is it the address of a server?"
        raise ServeError(message) from error
    if status != 200:
        message = f"{target.url}{target.path}: answered {what} with {status}: {said(answer)}"
        raise ServeError(message)
    return answer


def _parts(value: Any, result_metadata: str) -> Sequence[Any]:
    """The tensors of one output, out of JSON."""
    if result_metadata == "dict_of_tensor" or value is None:
        return (value,)
    return (value["values"], value["mask"]) if isinstance(value, Mapping) else value


def _as_json(array: Array) -> Array:
    """What is not finite is null there, which is read as NaN."""
    if array.dtype.kind != "f":
        return array
    return np.where(np.isfinite(array), array, np.nan).astype(np.float64)
