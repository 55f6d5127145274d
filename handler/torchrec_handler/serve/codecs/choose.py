"""Which codec reads a request and which writes its answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from torchrec_handler.archive.format import Signature
from torchrec_handler.errors import InvalidRequest, UnsupportedMediaType
from torchrec_handler.options import Limits
from torchrec_handler.serve.codecs import (
    content_encoding,
    json_columns,
    json_rows,
    open_inference,
    predictions,
    protobuf,
)
from torchrec_handler.serve.codecs.columns import columns
from torchrec_handler.serve.codecs.json_document import (
    JsonParser,
    Memory,
    check_names,
    names,
    shortened,
)
from torchrec_handler.serve.request import Columns, RawRequest

JSON = "application/json"
PROTOBUF = "application/x-protobuf"
OCTET_STREAM = "application/octet-stream"
FORM = "application/x-www-form-urlencoded"

Format = Literal["json", "open_inference", "protobuf"]

CONTENT_TYPES: Mapping[str, Literal["json", "protobuf", "bytes"]] = {
    JSON: "json",
    "text/json": "json",
    PROTOBUF: "protobuf",
    "application/protobuf": "protobuf",
    OCTET_STREAM: "bytes",
    "": "bytes",
}
"""Content type -> how its body is read; `bytes`: by what the bytes are."""

MOST_NAMES = 64
"""Of a JSON body, beside one for each array that the model knows."""

MOST_ARGUMENTS = 1_024
"""Of a method that is called alone."""

JSON_STARTS = b" \t\r\n{["
"""What a JSON body starts with; no PredictionRequest does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """How one request wants to be answered."""

    format: Format
    id: str | None = None
    """Open Inference Protocol's `id`, given back."""
    outputs: Sequence[str] = ()
    """The outputs that Open Inference Protocol wants, in this order; none for all."""
    instances: int = 0
    """How many of a body with `instances` want a prediction each, made by `qualname`."""
    qualname: str = ""


OWN: Mapping[Format, Reply] = {
    "json": Reply(format="json"),
    "open_inference": Reply(format="open_inference"),
    "protobuf": Reply(format="protobuf"),
}
"""What most requests want."""


class Codecs:
    """Reads requests for one model, writes its answers."""

    def __init__(self, model_name: str, signature: Signature, limits: Limits) -> None:
        self._model_name = model_name
        self._signature = signature
        self._limits = limits
        self._columns = columns(signature, limits)
        self._parser = JsonParser()

    def decode(self, raw: RawRequest) -> tuple[Columns, Reply]:
        """Read a request's input tensors.

        Raises:
            UnsupportedMediaType: no codec reads its content type or encoding.
            InvalidRequest: the codec could not read the body.
            RequestTooLarge: the body holds more than the limits allow.
        """
        if raw.content_encoding:
            raw = content_encoding.decode(raw)
        if _body_format(raw) == "protobuf":
            read = protobuf.decode(raw.body, self._signature)
            return read, _reply(raw, "protobuf", None)
        document = self._parser.parse(raw.body)
        # simdjson's own `in` raises and catches a KeyError for a name that is not there.
        given = names("body", document, len(self._columns) + MOST_NAMES)
        if json_rows.INSTANCES in given and json_rows.INSTANCES not in self._columns:
            read = json_rows.decode(document, raw.body, self._signature, self._limits)
            reply = _reply(raw, "json", None)
            return read, replace(reply, instances=read.batch_size or 0, qualname=raw.qualname)
        if open_inference.INPUTS in given and open_inference.INPUTS not in self._columns:
            read = open_inference.decode(document, raw.body, given, self._columns)
            reply = _reply(raw, "open_inference", read.id)
            return read, replace(reply, outputs=read.outputs) if read.outputs else reply
        return json_columns.decode(document, raw.body, given, self._columns), _reply(
            raw, "json", None
        )

    def decode_arguments(self, raw: RawRequest) -> tuple[dict[str, Any], Reply]:
        """Read the keyword arguments of a method without `need_preproc`.

        A JSON object's values as they are; of any other format the input tensors by name.

        Raises:
            UnsupportedMediaType, InvalidRequest, RequestTooLarge: as `decode`.
        """
        if raw.content_encoding:
            raw = content_encoding.decode(raw)
        if _body_format(raw) == "json":
            document = self._parser.parse(raw.body)
            if not open_inference.is_request(document):
                names("body", document, MOST_ARGUMENTS)
                if memory := Memory.of(raw.body):
                    memory.check_whole()
                if raw.body.count(b"{") > 1:
                    check_names(raw.body)
                arguments: dict[str, Any] = document.as_dict()
                return arguments, _reply(raw, "json", None)
            del document
        read, reply = self.decode(raw)
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in read.arrays.items()}
        return tensors, reply

    def encode(self, answer: Any, reply: Reply) -> tuple[str, bytes]:
        """Write an answer.

        Args:
            answer: output name -> array, list of arrays, or values and mask; of a method without
                `need_preproc` anything.
            reply: from `decode`.

        Returns:
            Content type and body.

        Raises:
            PredictError: the answer cannot be written in that format.
            InvalidRequest: the request wants an output that the model does not have.
        """
        if reply.format == "json" or not isinstance(answer, Mapping):
            if reply.instances:
                splits = (self._signature.splits or {}).get(reply.qualname, {})
                answer = predictions.add(answer, reply.instances, splits)
            return JSON, json_columns.encode(answer)
        arrays = open_inference.wanted(flat(answer), reply.outputs)
        if reply.format == "protobuf":
            return PROTOBUF, protobuf.encode(arrays)
        return JSON, open_inference.encode(arrays, self._model_name, reply.id)


def flat(answer: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """One array a name.

    Several tensors of a name are `NAME.0`, `NAME.1` …; a masked one `NAME.values` and `NAME.mask`.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, value in answer.items():
        if isinstance(value, Mapping):
            arrays.update({f"{name}.{part}": np.asarray(array) for part, array in value.items()})
        elif isinstance(value, list) and value and isinstance(value[0], np.ndarray):
            arrays.update({f"{name}.{part}": array for part, array in enumerate(value)})
        else:
            arrays[name] = np.asarray(value)
    return arrays


def _body_format(raw: RawRequest) -> Literal["json", "protobuf"]:
    kind = CONTENT_TYPES.get(raw.content_type)
    if kind is None:
        expected = ", ".join(name for name in CONTENT_TYPES if name)
        message = (
            f"received content type {shortened(raw.content_type)!r}, expected one of {expected}"
        )
        if raw.content_type == FORM:
            message += "; with curl, add -H 'Content-Type: application/json'"
        raise UnsupportedMediaType(message)
    if kind != "bytes":
        return kind
    if not raw.body:
        message = "body: received nothing, expected a request"
        raise InvalidRequest(message)
    return "json" if raw.body[0] in JSON_STARTS else "protobuf"


def _reply(raw: RawRequest, own: Format, identifier: str | None) -> Reply:
    """The format that `Accept` names, else the request's own."""
    if not raw.accept:
        return Reply(format=own, id=identifier) if identifier is not None else OWN[own]
    accepted = [part.partition(";")[0].strip().lower() for part in raw.accept.split(",")]
    for name in accepted:
        kind = CONTENT_TYPES.get(name) if name else None
        if kind in ("protobuf", "bytes"):
            return Reply(format="protobuf")
        if kind == "json":
            return Reply(format="json" if own == "protobuf" else own, id=identifier)
    return Reply(format=own, id=identifier)
