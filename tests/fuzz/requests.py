"""Good requests with the answers they must get, in every format, and bad ones made of them.

Shapes: B rows, F features, D width, N ids.
"""

import gzip
import json
import random
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tests.support.factories.fuzzed import EMBEDDED, WIDTH, FuzzedPredictModule
from tests.support.factories.ranking import DENSE, SPARSE, WEIGHTED, seeded
from torchrec_handler.message.predictor_pb2 import PredictionRequest

JSON = "application/json"
PROTOBUF = "application/x-protobuf"
QUALNAME = "X-TorchRec-Qualname"
DENSE_NAMES = ("age", "price", "hour")
LONGEST = 4
"""Ids of a feature in a row are fewer."""
MOST_ROWS = 16_384
"""limits.rows_per_request"""
SIZES = (1,) * 12 + (2, 3, 5, 8, 20) * 2 + (100, 300, 1_000)
"""Rows of good requests; the few that reach the limit come beside them."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request over HTTP, or over gRPC."""

    body: bytes
    headers: Mapping[str, str]
    path: str = ""
    """Behind /predictions/NAME."""
    expected: Mapping[str, Any] | None = None
    """Output name -> values, flat; None where any answer but a failure is right."""
    rows: int = 0
    may_wait: bool = field(default=False)
    """Whether 503 may come first: as large as a batch is allowed to be."""
    over_grpc: bool = False

    @property
    def fits_grpc(self) -> bool:
        """Whether it can be said without headers, by its body and its method's name."""
        told = {name.lower() for name in self.headers} <= {"content-type", QUALNAME.lower()}
        return told and self.headers.get("Content-Type") in {JSON, PROTOBUF}

    @property
    def qualname(self) -> str:
        """The method, by the header or the path."""
        return self.headers.get(QUALNAME) or self.path.rpartition("/")[2] or "forward"


class Inputs:
    """One request's arrays, and what the float model says to them."""

    def __init__(self, rows: int, generator: np.random.Generator) -> None:
        self.rows = rows
        self.dense = generator.integers(-8, 8, (rows, DENSE)) / 4
        self.embedded = generator.integers(-8, 8, (len(EMBEDDED), rows, WIDTH)) / 4
        self.lengths: dict[str, Any] = {}
        self.values: dict[str, Any] = {}
        for name, tables in (("id_list_features", SPARSE), ("id_score_list_features", WEIGHTED)):
            lengths = generator.integers(0, LONGEST, (len(tables), rows))
            ids = [
                generator.integers(0, limit, int(count))
                for limit, count in zip(tables.values(), lengths.sum(axis=1), strict=True)
            ]
            self.lengths[name], self.values[name] = lengths, np.concatenate(ids)
        self.weights = generator.integers(-8, 8, self.values["id_score_list_features"].size) / 4

    def columns(self) -> dict[str, Any]:
        """Input name -> array, as JSON columns name them."""
        found: dict[str, Any] = {"float_features": self.dense}
        for name, lengths in self.lengths.items():
            found[f"{name}.lengths"] = lengths.reshape(-1)
            found[f"{name}.values"] = self.values[name]
        found["id_score_list_features.weights"] = self.weights
        found["embedding_features"] = self.embedded
        return found

    def instances(self) -> list[dict[str, Any]]:
        """A dict a row."""
        rows: list[dict[str, Any]] = [
            dict(zip(DENSE_NAMES, row, strict=True)) for row in self.dense.tolist()
        ]
        for name, block in zip(EMBEDDED, self.embedded.tolist(), strict=True):
            for row, vector in zip(rows, block, strict=True):
                row[name] = vector
        for input_name, tables in (
            ("id_list_features", SPARSE),
            ("id_score_list_features", WEIGHTED),
        ):
            values = self.values[input_name].tolist()
            weights = self.weights.tolist() if input_name == "id_score_list_features" else None
            at = 0
            for name, lengths in zip(tables, self.lengths[input_name].tolist(), strict=True):
                for row, count in zip(rows, lengths, strict=True):
                    ids: list[Any] = values[at : at + count]
                    if weights is not None:
                        ids = [list(pair) for pair in zip(ids, weights[at:], strict=False)]
                    row[name] = ids
                    at += count
        return rows

    def message(self) -> bytes:
        """A PredictionRequest."""
        request = PredictionRequest(batch_size=self.rows)
        request.float_features.num_features = DENSE
        request.float_features.values = self.dense.astype("<f4").tobytes()
        for name, lengths in self.lengths.items():
            target = getattr(request, name)
            target.num_features = len(lengths)
            target.lengths = lengths.astype("<i4").tobytes()
            target.values = self.values[name].astype("<i4").tobytes()
        request.id_score_list_features.weights = self.weights.astype("<f4").tobytes()
        request.embedding_features.num_features = len(EMBEDDED)
        request.embedding_features.values = self.embedded.transpose(1, 0, 2).astype("<f4").tobytes()
        return request.SerializeToString()

    def expected(self, module: FuzzedPredictModule, method: str) -> dict[str, Any]:
        """Output name -> values, from the float model itself."""
        batch: dict[str, Any] = {
            name: torch.from_numpy(np.asarray(value))
            for name, value in self.columns().items()
            if name != "embedding_features"
        }
        batch = {n: v.float() if v.is_floating_point() else v.int() for n, v in batch.items()}
        batch["embedding_features"] = list(torch.from_numpy(self.embedded).float())
        with torch.no_grad():
            answer = getattr(module, method)(batch)
        return {name: value.numpy() for name, value in answer.items()}


def good_calls(count: int, seed: int = 0) -> list[Call]:
    """Requests with the answers that the float model gives to them alone.

    Args:
        count: how many different ones, before each is written in a format or two.
        seed: the same seed, the same requests.
    """
    generator, dice = np.random.default_rng(seed), random.Random(seed)  # noqa: S311  no secret
    module = FuzzedPredictModule(seeded(), "cpu").eval()
    calls: list[Call] = []
    for number in range(count):
        rows = MOST_ROWS if number % 150 == 149 else dice.choice(SIZES)
        inputs = Inputs(rows, generator)
        method = dice.choice(("forward", "forward", "negative"))
        expected = inputs.expected(module, method)
        calls += [
            _dressed(write(inputs), inputs.rows, expected, method, dice)
            for write in dice.sample((_columns, _rows, _tensors, _message), 2)
        ]
    return calls


def _columns(inputs: Inputs) -> tuple[bytes, str]:
    listed = {name: value.tolist() for name, value in inputs.columns().items()}
    return json.dumps(listed).encode(), JSON


def _rows(inputs: Inputs) -> tuple[bytes, str]:
    rows = inputs.instances()
    document: dict[str, Any] = {"instances": rows}
    if inputs.rows == 1:
        # What one row has is what all rows have.
        document["shared"] = {name: rows[0].pop(name) for name in ("age", "user", "tags", "image")}
    return json.dumps(document).encode(), JSON


def _tensors(inputs: Inputs) -> tuple[bytes, str]:
    tensors = [
        {
            "name": name,
            "shape": list(np.shape(value)),
            "datatype": "FP32" if value.dtype.kind == "f" else "INT64",
            "data": value.reshape(-1).tolist(),
        }
        for name, value in inputs.columns().items()
    ]
    return json.dumps({"id": "1", "inputs": tensors}).encode(), JSON


def _message(inputs: Inputs) -> tuple[bytes, str]:
    return inputs.message(), PROTOBUF


def _dressed(
    written: tuple[bytes, str],
    rows: int,
    expected: Mapping[str, Any],
    method: str,
    dice: random.Random,
) -> Call:
    """Written in one of the ways that HTTP has for the same request."""
    body, content_type = written
    headers = {"Content-Type": content_type}
    path = ""
    if method != "forward":
        if dice.random() < 0.5:
            headers[QUALNAME] = method
        else:
            path = f"/1.0/{method}"
    wrapping = dice.random()
    if wrapping < 0.1:
        body, headers["Content-Encoding"] = gzip.compress(body, 1), "gzip"
    elif wrapping < 0.15:
        body, headers["Content-Encoding"] = zlib.compress(body, 1), "deflate"
    if dice.random() < 0.2:
        headers["Accept"] = dice.choice((JSON, PROTOBUF, "*/*"))
    return Call(
        body=body,
        headers=headers,
        path=path,
        expected=expected,
        rows=rows,
        may_wait=rows > 1_000,
    )


NASTY = (
    *("-1", "-0.0", "1e999", "-1e400", "1e-330", "0.5", "3.5", "50", "2147483648", "4294967296"),
    *("9223372036854775807", "9223372036854775808", "18446744073709551616", "1" * 400),
    *("null", "true", '"7"', '""', "[]", "{}", "[[[[1]]]]", "NaN", "Infinity", '"\\ud800"', "01"),
    *('{"a": 1, "a": 2}', '"' + "x" * 3_000 + '"', "[1, [2]]", "1e5", "-5e-324"),
)
NUMBER = re.compile(rb"-?\d+(\.\d+)?")
NAME = re.compile(rb'"[^"]{1,40}"(?=:)')

# Not those of forms, which TorchServe takes apart itself, and answers 500 where it cannot.
CONTENT_TYPES = (
    *(JSON, PROTOBUF, "application/octet-stream", "text/json", "text/plain", "application/xml"),
    "x" * 500,
)
ENCODINGS = ("gzip", "deflate", "zstd", "br", "identity", "gzip, gzip", "x" * 200)
QUALNAMES = ("forward", "negative", "add", "__init__", "predict_module", "x" * 2_000, "a/b", "%00")


def bad_call(good: Call, dice: random.Random) -> Call:
    """A request that may be wrong in any way, made of a good one."""
    body, headers = good.body, dict(good.headers)
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        body = dice.choice(MUTATIONS)(body, dice)
    if dice.random() < 0.1:
        headers["Content-Type"] = dice.choice(CONTENT_TYPES)
    if dice.random() < 0.05:
        headers["Content-Encoding"] = dice.choice(ENCODINGS)
    if dice.random() < 0.05:
        headers[QUALNAME] = dice.choice(QUALNAMES)
    if dice.random() < 0.02:
        headers[dice.choice(("describe", "explain"))] = "True"
    return Call(body=body, headers=headers, path=good.path)


def _flip(body: bytes, dice: random.Random) -> bytes:
    if not body:
        return body
    changed = bytearray(body)
    for _ in range(dice.choice((1, 1, 3, 20))):
        changed[dice.randrange(len(changed))] = dice.randrange(256)
    return bytes(changed)


def _cut(body: bytes, dice: random.Random) -> bytes:
    start, end = sorted((dice.randrange(len(body) + 1), dice.randrange(len(body) + 1)))
    return dice.choice((body[:start], body[end:], body[:start] + body[end:]))


def _repeat(body: bytes, dice: random.Random) -> bytes:
    start, end = sorted((dice.randrange(len(body) + 1), dice.randrange(len(body) + 1)))
    return body[:end] + body[start:]


def _insert(body: bytes, dice: random.Random) -> bytes:
    at = dice.randrange(len(body) + 1)
    return body[:at] + dice.randbytes(dice.choice((1, 2, 8, 64))) + body[at:]


def _number(body: bytes, dice: random.Random) -> bytes:
    found = list(NUMBER.finditer(body[:20_000]))
    if not found:
        return _flip(body, dice)
    spot = dice.choice(found)
    return body[: spot.start()] + dice.choice(NASTY).encode() + body[spot.end() :]


def _name(body: bytes, dice: random.Random) -> bytes:
    found = list(NAME.finditer(body[:20_000]))
    if len(found) < 2:
        return _flip(body, dice)
    spot, other = dice.sample(found, 2)
    return body[: spot.start()] + other[0] + body[spot.end() :]


MUTATIONS = (_flip, _cut, _repeat, _insert, _number, _number, _number, _name)


TOO_LONG = (
    b'{"inputs": [{"name": "float_features", "shape": [1, 4611686018427387904], '
    b'"datatype": "FP32", "data": []}]}'
)


def hostile_calls() -> list[Call]:
    """Small requests that ask for much, and large ones that are refused."""
    dense = json.dumps([[0.0] * DENSE])
    shared = (
        '"float_features": [[0, 0, 0]], "id_list_features.lengths": [0, 0, 0], '
        '"id_list_features.values": [], "id_score_list_features.lengths": [0, 0], '
        '"id_score_list_features.values": [], "id_score_list_features.weights": [], '
        '"embedding_features": [[[0, 0, 0, 0]], [[0, 0, 0, 0]]]'
    )
    many = 2**24 + 3
    bodies = [
        f'{{"batch_size": {rows}, {shared}}}'.encode()
        for rows in (65_536, 16_385, 2**31, 2**63, 0, -1)
    ]
    bodies += [
        b'{"float_features": [' + b"[]," * 1_000_000 + b"[]]}",
        b'{"float_features": [' + b"[1]," * 500_000 + b"[1]]}",
        b'{"instances": [' + b"{}," * 1_000_000 + b"{}]}",
        b'{"instances": [' + b"[]," * 1_000_000 + b"[]]}",
        b'{"id_list_features.values": [' + b"1," * many + b"1]}",
        b'{"instances": [' + b"1," * many + b"1]}",
        b'{"instances": [{}], "shared": {"user": [' + b"1," * many + b"1]}}",
        b'{"instances": [{"user": [' + b"1," * many + b'"x"]}]}',
        b"[" * 900_000 + b"]" * 900_000,
        b'{"' + b"n" * 2_000_000 + b'": 1}',
        b'{"instances": [{"' + b"n" * 2_000_000 + b'": 1}]}',
        b"{" + b",".join(b'"k%d": 0' % n for n in range(200_000)) + b"}",
        TOO_LONG,
        f'{{"float_features": {dense}, "float_features": {dense}}}'.encode(),
        gzip.compress(bytes(100_000_000), 9),
    ]
    calls = [Call(body=body, headers={"Content-Type": JSON}) for body in bodies[:-1]]
    calls.append(Call(body=bodies[-1], headers={"Content-Type": JSON, "Content-Encoding": "gzip"}))
    calls += [
        Call(body=b'{"first": [' + b"1," * many + b"1], " + b'"second": 1}', headers=headers)
        for headers in ({"Content-Type": JSON, "X-TorchRec-Qualname": "add"},)
    ]
    calls.append(Call(body=b"\xff" * 4_000_000, headers={"Content-Type": PROTOBUF}))
    return calls
