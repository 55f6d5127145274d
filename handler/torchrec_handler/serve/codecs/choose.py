"""Which codec reads a request and which writes its answer."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torchrec_handler.archive.format import InputSignature, Signature
from torchrec_handler.errors import InvalidRequest, UnsupportedMediaType
from torchrec_handler.options import Limits
from torchrec_handler.serve.codecs import content_encoding, json_values
from torchrec_handler.serve.codecs.codec import NOTHING, Arguments, Asked, Body, Codec, Model
from torchrec_handler.serve.codecs.columns import columns
from torchrec_handler.serve.codecs.json_columns import JsonColumns
from torchrec_handler.serve.codecs.json_document import JsonParser, shortened
from torchrec_handler.serve.codecs.json_features import INSTANCES
from torchrec_handler.serve.codecs.json_rows import Instances, JsonRows
from torchrec_handler.serve.codecs.json_together import MOST, Together, forms, is_short, plain_names
from torchrec_handler.serve.codecs.open_inference import OpenInference
from torchrec_handler.serve.codecs.protobuf import Protobuf
from torchrec_handler.serve.codecs.rows_together import OPENING, RowsTogether
from torchrec_handler.serve.request import Columns, RawRequest, Response

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

    codec: Codec
    asked: Asked = NOTHING


class Group(NamedTuple):
    """What bodies hold that were read together."""

    read: Columns
    reply: Reply
    """To each of them."""
    together: Together | RowsTogether
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
        readers: dict[str, list[Reply]] = {}
        for reply in map(Reply, codecs):
            for name in reply.codec.content_types:
                readers.setdefault(name, []).append(reply)
        self._writers = {name: found[-1] for name, found in readers.items()}
        any_codec = list(map(Reply, codecs))
        readers.update((name, any_codec) for name in UNTYPED)
        self._readers = {name: (found[:-1], found[-1]) for name, found in readers.items()}
        """Content type -> those that are asked, and the one that reads what they do not; each with
        what most of its requests want."""

    def decode(self, raw: RawRequest) -> tuple[Columns, Reply]:
        """Read a request's input tensors.

        Raises:
            UnsupportedMediaType: no codec reads its content type or encoding.
            InvalidRequest: the codec could not read the body.
            RequestTooLarge: the body holds more than the limits allow.
        """
        own, body = self._open(raw, self._most_names)
        read, asked = own.codec.decode(body)
        return read, self._reply(raw.accept, own, asked)

    def group(self, requests: Sequence[RawRequest]) -> list[list[int]]:
        """Positions of requests that may be decoded together; most formats' are alone."""
        groups: list[list[int]] = []
        short: list[int] = []
        for at, raw in enumerate(requests):
            if raw.content_encoding or not is_short(raw.body):
                groups.append([at])
            else:
                short.append(at)
        alike: dict[Hashable, list[int]] = {}
        for at, form in zip(short, forms([requests[at].body for at in short]), strict=False):
            _, content_type, _, accept, qualname = requests[at]
            alike.setdefault((content_type, accept, qualname, form), []).append(at)
        for own in alike.values():
            groups += [own[start : start + MOST] for start in range(0, len(own), MOST)]
        return groups

    def decode_together(self, requests: Sequence[RawRequest]) -> Group:
        """Read the input tensors of a group at once.

        Raises:
            UnsupportedMediaType, InvalidRequest, RequestTooLarge: not all of them can be read,
                each of which is to be told of its own.
        """
        bodies = [raw.body for raw in requests]
        is_rows = not self._has_instances and bodies[0].startswith(OPENING)
        together = RowsTogether(bodies) if is_rows else Together(bodies, self._plain_names)
        read, reply = self.decode(requests[0]._replace(body=together.body))
        if isinstance(reply.asked, Instances):
            rows = reply.asked.rows // len(requests)
            reply = reply._replace(asked=replace(reply.asked, rows=rows))
        return Group(read, reply, together, self._inputs)

    def decode_arguments(self, raw: RawRequest) -> tuple[Arguments, Reply]:
        """Read the keyword arguments of a method without `need_preproc`.

        A JSON object's values as they are; of any other format the input tensors by name.

        Raises:
            UnsupportedMediaType, InvalidRequest, RequestTooLarge: as `decode`.
        """
        own, body = self._open(raw, MOST_ARGUMENTS)
        read, asked = own.codec.arguments(body)
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

    def _open(self, raw: RawRequest, most_names: int) -> tuple[Reply, Body]:
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
            if own.codec.reads(body):
                return own, body
        return other, body

    def _unsupported(self, content_type: str) -> UnsupportedMediaType:
        is_form = content_type == FORM
        return UnsupportedMediaType(
            received=f"content type {shortened(content_type)!r}",
            expected=f"one of {', '.join(name for name in self._readers if name)}",
            hint="with curl, add -H 'Content-Type: application/json'" if is_form else None,
        )

    def _reply(self, accept: str, own: Reply, asked: Asked) -> Reply:
        """With the codec that `Accept` names, else the request's own."""
        reply = self._accepted(accept, own) if accept else own
        return reply if asked is NOTHING else Reply(reply.codec, asked)

    def _accepted(self, accept: str, own: Reply) -> Reply:
        for part in accept.split(","):
            name = part.partition(";")[0].strip().lower()
            if name in own.codec.content_types:
                return own
            if name in self._writers:
                return self._writers[name]
        return own
