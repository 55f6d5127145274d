"""Which codec reads a request and which writes its answer."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torchrec_handler.archive.format import InputSignature, Signature
from torchrec_handler.errors import InvalidRequest, UnsupportedMediaType
from torchrec_handler.options import Limits
from torchrec_handler.serve.codecs import content_encoding, json_values
from torchrec_handler.serve.codecs.codec import (
    NOTHING,
    Arguments,
    Asked,
    Body,
    Codec,
    Model,
    Writer,
    as_tensors,
)
from torchrec_handler.serve.codecs.columns import columns
from torchrec_handler.serve.codecs.json_columns import JsonColumns
from torchrec_handler.serve.codecs.json_document import JsonParser, shortened
from torchrec_handler.serve.codecs.json_features import INSTANCES
from torchrec_handler.serve.codecs.json_rows import Instances, JsonRows
from torchrec_handler.serve.codecs.json_together import MOST, Together, forms, is_short, plain_names
from torchrec_handler.serve.codecs.open_inference import OpenInference
from torchrec_handler.serve.codecs.protobuf import Protobuf
from torchrec_handler.serve.codecs.rows_together import OPENING, RowsTogether
from torchrec_handler.serve.codecs.typed import Typed, TypedTogether
from torchrec_handler.serve.request import (
    AnyRequest,
    Columns,
    RawRequest,
    Response,
    TypedRequest,
)

CODECS: list[Callable[[Model], Codec]] = [JsonRows, OpenInference, JsonColumns, Protobuf]
"""The most particular first: of those that may read a body the first does that says so, or else the
last, which also writes, of those of a content type, what is accepted by another one's client."""

OCTET_STREAM = "application/octet-stream"
UNTYPED = frozenset({"", OCTET_STREAM})
"""Content types that leave it to the bytes what they are."""

FORM = "application/x-www-form-urlencoded"

MOST_NAMES = 64
"""Of a JSON body, beside one for each array that the model knows."""

MOST_ARGUMENTS = 1_024
"""Of a method that is called alone."""


class Reply(NamedTuple):
    """How one request wants to be answered."""

    codec: Writer
    asked: Asked = NOTHING


class Group(NamedTuple):
    """What bodies hold that were read together."""

    read: Columns
    reply: Reply
    """To each of them."""
    together: Together | RowsTogether | TypedTogether
    inputs: Sequence[InputSignature]

    def each(self) -> list[Columns]:
        """By body."""
        return self.together.cut(self.read)

    def rows(self) -> Columns:
        """As one request's, of a row of each body.

        Raises:
            InvalidRequest: a body has more, or something else that it has alone.
        """
        return self.together.rows(self.read, self.inputs)


class Codecs:
    """Reads requests for one model, writes its answers."""

    def __init__(self, model_name: str, signature: Signature, limits: Limits) -> None:
        known = columns(signature, limits)
        model = Model(name=model_name, signature=signature, limits=limits, columns=known)
        codecs = [make(model) for make in CODECS]
        self._inputs = signature.inputs
        self._most_names = len(known) + MOST_NAMES
        self._plain_names = plain_names(known)
        self._has_instances = INSTANCES in known
        self._parser = JsonParser()
        self._typed = Typed(model)
        readers: dict[str, list[Codec]] = {}
        for codec in codecs:
            for name in codec.content_types:
                readers.setdefault(name, []).append(codec)
        self._writers = {name: found[-1] for name, found in readers.items()}
        readers.update((name, codecs) for name in UNTYPED)
        self._readers = {name: (found[:-1], found[-1]) for name, found in readers.items()}
        """Content type -> those that are asked, and the one that reads what they do not."""

    def decode(self, raw: AnyRequest) -> tuple[Columns, Reply]:
        """Read a request's input tensors.

        Raises:
            UnsupportedMediaType: no codec reads its content type or encoding.
            InvalidRequest: the codec could not read the body.
            RequestTooLarge: the body holds more than the limits allow.
        """
        if isinstance(raw, TypedRequest):
            return self._typed.decode(raw), Reply(self._typed)
        own, body = self._open(raw, self._most_names)
        read, asked = own.decode(body)
        return read, self._reply(raw.accept, own, asked)

    def group(self, requests: Sequence[AnyRequest]) -> list[list[int]]:
        """Positions of requests that may be decoded together; most formats' are alone."""
        groups: list[list[int]] = []
        short: list[tuple[int, RawRequest]] = []
        alike: dict[Hashable, list[int]] = {}
        for at, raw in enumerate(requests):
            if isinstance(raw, TypedRequest):
                if self._typed.is_row(raw):
                    alike.setdefault((raw.qualname, *raw.arrays), []).append(at)
                else:
                    groups.append([at])
            elif raw.content_encoding or not is_short(raw.body):
                groups.append([at])
            else:
                short.append((at, raw))
        of_bodies = forms([raw.body for _, raw in short])
        for (at, raw), form in zip(short, of_bodies, strict=False):
            _, content_type, _, accept, qualname = raw
            alike.setdefault((content_type, accept, qualname, form), []).append(at)
        for own in alike.values():
            groups += [own[start : start + MOST] for start in range(0, len(own), MOST)]
        return groups

    def decode_together(self, requests: Sequence[AnyRequest]) -> Group:
        """Read the input tensors of a group at once.

        Args:
            requests: more than one, all typed or none.

        Raises:
            UnsupportedMediaType, InvalidRequest, RequestTooLarge: not all of them can be read,
                each of which is to be told of its own.
        """
        raws = [raw for raw in requests if isinstance(raw, RawRequest)]
        if not raws:
            typed = TypedTogether([raw.arrays for raw in requests if isinstance(raw, TypedRequest)])
            columns = self._typed.read(typed.joined)
            return Group(columns, Reply(self._typed), typed, self._inputs)
        bodies = [raw.body for raw in raws]
        is_rows = not self._has_instances and bodies[0].startswith(OPENING)
        together = RowsTogether(bodies) if is_rows else Together(bodies, self._plain_names)
        read, reply = self.decode(raws[0]._replace(body=together.body))
        if isinstance(reply.asked, Instances):
            rows = reply.asked.rows // len(requests)
            reply = reply._replace(asked=replace(reply.asked, rows=rows))
        return Group(read, reply, together, self._inputs)

    def decode_arguments(self, raw: AnyRequest) -> tuple[Arguments, Reply]:
        """Read the keyword arguments of a method without `need_preproc`.

        A JSON object's values as they are; of any other format the input tensors by name.

        Raises:
            UnsupportedMediaType, InvalidRequest, RequestTooLarge: as `decode`.
        """
        if isinstance(raw, TypedRequest):
            return as_tensors(self._typed.decode(raw)), Reply(self._typed)
        own, body = self._open(raw, MOST_ARGUMENTS)
        read, asked = own.arguments(body)
        return read, self._reply(raw.accept, own, asked)

    def encode(self, answer: Any, reply: Reply) -> Response:
        """Write an answer; one that is no mapping of outputs is JSON.

        Args:
            answer: output name -> array, list of arrays, or values and mask; of a method without
                `need_preproc` anything.
            reply: from `decode`.

        Raises:
            PredictError: the answer cannot be written in that format.
            InvalidRequest: the request wants an output that the model does not have.
        """
        if not isinstance(answer, dict):
            return json_values.encode(answer)
        return reply.codec.encode(reply.asked.select(answer), reply.asked)

    def _open(self, raw: RawRequest, most_names: int) -> tuple[Codec, Body]:
        if raw.content_encoding:
            raw = content_encoding.decode(raw)
        readers = self._readers.get(raw.content_type)
        if readers is None:
            raise self._unsupported(raw.content_type)
        if not raw.body and raw.content_type in UNTYPED:
            raise InvalidRequest(where="body", received="nothing", expected="a request")
        body = Body(raw, self._parser, most_names)
        asked, other = readers
        for own in asked:
            if own.reads(body):
                return own, body
        return other, body

    def _unsupported(self, content_type: str) -> UnsupportedMediaType:
        is_form = content_type == FORM
        return UnsupportedMediaType(
            received=f"content type {shortened(content_type)!r}",
            expected=f"one of {', '.join(name for name in self._readers if name)}",
            hint="with curl, add -H 'Content-Type: application/json'" if is_form else None,
        )

    def _reply(self, accept: str, own: Codec, asked: Asked) -> Reply:
        """With the codec that `Accept` names, else the request's own."""
        return Reply(self._accepted(accept, own) if accept else own, asked)

    def _accepted(self, accept: str, own: Codec) -> Codec:
        for part in accept.split(","):
            name = part.partition(";")[0].strip().lower()
            if name in own.content_types:
                return own
            if name in self._writers:
                return self._writers[name]
        return own
