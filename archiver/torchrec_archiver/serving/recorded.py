"""Requests out of an archive's recorded samples, without torch.

Shapes: B rows, F features, D width, N ids.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from safetensors import SafetensorError, safe_open

from torchrec_archiver.serving import JSON, PROTOBUF
from torchrec_handler.archive.format import SAMPLES, SAMPLES_KEY, InputSignature, Signature
from torchrec_handler.errors import ArchiveError, ServeError
from torchrec_handler.message.predictor_pb2 import PredictionRequest

Array = npt.NDArray[Any]

FORWARD = "forward"

FIELDS: Mapping[str, str] = {
    "dense": "float_features",
    "sparse": "id_list_features",
    "weighted_sparse": "id_score_list_features",
    "embedding": "embedding_features",
}
"""Batching type -> the message's field."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """One recorded call: inputs by name, as JSON columns name them."""

    qualname: str
    rows: int
    """B"""
    inputs: Mapping[str, Array]
    """[B, F] dense, [F * B] lengths, [N] values and weights, [F, B, D] embeddings."""
    outputs: Mapping[str, tuple[Array, ...]]
    """Output name -> its tensors."""


def read(folder: Path) -> list[Recorded]:
    """Read an archive's samples, those of `forward` first, in the order of their sizes.

    Returns:
        None of them where the archive holds none.

    Raises:
        ArchiveError: the file is something else.
    """
    path = folder / SAMPLES
    if not path.exists():
        return []
    try:
        with safe_open(path, framework="np") as file:
            calls = json.loads(file.metadata()[SAMPLES_KEY])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = [_recorded(number, call, arrays) for number, call in enumerate(calls)]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        message = f"{SAMPLES}: cannot be read ({error}); the archive was altered or damaged"
        raise ArchiveError(message) from error
    return sorted(found, key=lambda one: (one.qualname != FORWARD, one.rows))


def _recorded(number: int, call: Mapping[str, Any], arrays: Mapping[str, Array]) -> Recorded:
    outputs: dict[str, list[Array]] = {}
    start = f"{number}/outputs/"
    numbered = [name.removeprefix(start) for name in arrays if name.startswith(start)]
    for name in sorted(numbered, key=lambda name: int(name.rpartition("/")[2])):
        outputs.setdefault(name.rpartition("/")[0], []).append(arrays[start + name])
    start = f"{number}/inputs/"
    return Recorded(
        qualname=str(call["qualname"]),
        rows=int(call["rows"]),
        inputs={
            name.removeprefix(start): array
            for name, array in arrays.items()
            if name.startswith(start)
        },
        outputs={name: tuple(parts) for name, parts in outputs.items()},
    )


def take(inputs: Mapping[str, Array], rows: int, at: npt.NDArray[np.int64]) -> dict[str, Array]:
    """Some rows of recorded inputs, each as often as wanted.

    Args:
        inputs: of a `Recorded`.
        rows: B
        at: [taken] positions of rows.
    """
    taken: dict[str, Array] = {}
    for name, array in inputs.items():
        stem, dot, part = name.rpartition(".")
        if not dot or f"{stem}.lengths" not in inputs:
            taken[name] = array[:, at] if array.ndim == 3 else array[at]
        elif part == "lengths":
            lengths = array.reshape(-1, rows)
            chosen = lengths[:, at].ravel()
            starts = (np.cumsum(array) - array).reshape(-1, rows)[:, at].ravel()
            # Each list's own positions: where it starts, counted up to its length.
            ids = np.arange(chosen.sum()) + np.repeat(starts - np.cumsum(chosen) + chosen, chosen)
            taken[name] = chosen
            for of_ids in (f"{stem}.values", f"{stem}.weights"):
                if of_ids in inputs:
                    taken[of_ids] = inputs[of_ids][ids]
    return taken


def columns(inputs: Mapping[str, Array]) -> bytes:
    """A body of JSON columns."""
    whole = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
    return orjson.dumps(whole, option=orjson.OPT_SERIALIZE_NUMPY)


def protobuf(inputs: Mapping[str, Array], rows: int, signature: Signature) -> bytes:
    """A body of TorchRec's own message.

    Raises:
        ServeError: the message has no field for an input, or one for two of them.
    """
    request = PredictionRequest(batch_size=rows)
    for entry in signature.inputs:
        named = entry.name in PredictionRequest.DESCRIPTOR.fields_by_name
        name = entry.name if named else FIELDS[entry.type]
        if request.HasField(name):
            message = f"{entry.name}: {PROTOBUF} has no field for it beside {name}; use {JSON}"
            raise ServeError(message)
        field = getattr(request, name)
        if entry.type in {"dense", "embedding"}:
            array = inputs[entry.name]
            by_row = array if array.ndim == 2 else array.transpose(1, 0, 2)
            field.num_features = by_row.shape[1]
            field.values = by_row.astype("<f4").tobytes()
            continue
        lengths = inputs[f"{entry.name}.lengths"]
        field.num_features = lengths.size // rows
        field.lengths = lengths.astype("<i4").tobytes()
        field.values = (
            inputs[f"{entry.name}.values"].astype("<i8" if entry.is_wide else "<i4").tobytes()
        )
        if entry.type == "weighted_sparse":
            field.weights = inputs[f"{entry.name}.weights"].astype("<f4").tobytes()
    return request.SerializeToString()


def readable(recorded: Recorded, signature: Signature) -> bytes:
    """A body of one row for people: JSON rows where every feature has a name, else JSON columns."""
    one = take(recorded.inputs, recorded.rows, np.zeros(1, dtype=np.int64))
    row: dict[str, Any] = {}
    for entry in signature.inputs:
        for name, value in _values(entry, one):
            if name in row:
                return columns(one)
            row[name] = value
        if entry.type != "dense" and not entry.features:
            return columns(one)
    return orjson.dumps({"instances": [row]}, option=orjson.OPT_SERIALIZE_NUMPY)


def _values(entry: InputSignature, one: Mapping[str, Array]) -> Iterator[tuple[str, Any]]:
    """The features of one row by name."""
    if entry.type == "dense":
        values = one[entry.name][0]
        yield from (
            zip(entry.features, values, strict=True) if entry.features else [(entry.name, values)]
        )
    elif entry.type == "embedding":
        yield from zip(entry.features, one[entry.name][:, 0], strict=False)
    else:
        ends = np.cumsum(one[f"{entry.name}.lengths"])
        ids = np.split(one[f"{entry.name}.values"], ends[:-1])
        if entry.type == "weighted_sparse":
            weights = np.split(one[f"{entry.name}.weights"], ends[:-1])
            pairs = [
                list(zip(of_ids.tolist(), map(np.float32, some), strict=True))
                for of_ids, some in zip(ids, weights, strict=True)
            ]
            yield from zip(entry.features, pairs, strict=False)
        else:
            yield from zip(entry.features, map(_shortest, ids), strict=False)


def _shortest(ids: Array) -> Any:
    """One id alone may stand without its list."""
    return ids[0] if len(ids) == 1 else ids


def pool(samples: Sequence[Recorded]) -> Recorded:
    """All rows of the samples of one method as one sample, without outputs.

    Args:
        samples: from `read`, not empty; the first one's method is taken.
    """
    qualname = samples[0].qualname
    same = [sample for sample in samples if sample.qualname == qualname]
    joined: dict[str, Array] = {}
    for name, first in same[0].inputs.items():
        arrays = [sample.inputs[name] for sample in same]
        stem, dot, part = name.rpartition(".")
        lengths = f"{stem}.lengths"
        if not dot or lengths not in same[0].inputs:
            joined[name] = np.concatenate(arrays, axis=1 if first.ndim == 3 else 0)
        elif part == "lengths":
            joined[name] = np.concatenate(
                [array.reshape(-1, one.rows) for array, one in zip(arrays, same, strict=True)],
                axis=1,
            ).ravel()
        else:
            # Feature by feature, as lengths are.
            joined[name] = np.concatenate(
                [
                    piece
                    for pieces in zip(*map(_by_feature, same, [name] * len(same)), strict=True)
                    for piece in pieces
                ]
            )
    rows = sum(sample.rows for sample in same)
    return Recorded(qualname=qualname, rows=rows, inputs=joined, outputs={})


def _by_feature(sample: Recorded, name: str) -> list[Array]:
    """The ids, or weights, of each feature."""
    counts = sample.inputs[f"{name.rpartition('.')[0]}.lengths"].reshape(-1, sample.rows).sum(1)
    return np.split(sample.inputs[name], np.cumsum(counts)[:-1])
