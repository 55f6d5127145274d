"""The form that every codec has, and what it is given: a body, and the model to read it for."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import simdjson
import torch

from torchrec_handler.archive.format import Signature
from torchrec_handler.options import Limits
from torchrec_handler.serve.codecs.columns import Column
from torchrec_handler.serve.codecs.json_document import JsonParser, names
from torchrec_handler.serve.request import Columns, RawRequest, Response

JSON_STARTS = frozenset(b" \t\r\n{[\xef")
"""What a JSON body starts with, its byte order mark too; no PredictionRequest does."""

Arguments = Mapping[str, Any]
"""Of a method that is called alone, by keyword."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """What codecs know of the model that they read for."""

    name: str
    """As the server knows it."""
    signature: Signature
    limits: Limits
    columns: Mapping[str, Column]
    """Every array that a body may hold, by name."""


class Body:
    """A request's bytes; as JSON they are parsed once, by whoever asks first."""

    _document: simdjson.Object | None = None
    _names: Sequence[str] | None = None

    def __init__(self, raw: RawRequest, parser: JsonParser, most_names: int) -> None:
        """Keep the bytes.

        Args:
            raw: not compressed.
            parser: reads one body at a time, so the last one must be gone.
            most_names: that a JSON object may give.
        """
        self.content = raw.body
        self.qualname = raw.qualname
        """The method that is asked for."""
        self._parser = parser
        self._most_names = most_names

    @property
    def is_json(self) -> bool:
        """Whether it can be nothing else."""
        return bool(self.content) and self.content[0] in JSON_STARTS

    @property
    def document(self) -> simdjson.Object:
        """The JSON object.

        Raises:
            InvalidRequest: not JSON, or not an object.
            RequestTooLarge: more values than can be read safely.
        """
        if self._document is None:
            self._document = self._parser.parse(self.content)
        return self._document

    @property
    def names(self) -> Sequence[str]:
        """What the JSON object calls its values; nothing where it is no JSON.

        Raises:
            InvalidRequest, RequestTooLarge: as `document`; and for a name that is given twice.
        """
        found = self._names
        if found is None:
            # simdjson's own `in` raises and catches a KeyError for a name that is not there.
            is_json = self.is_json
            found = names("body", self.document, self._most_names) if is_json else ()
            self._names = found
        return found


class Asked:
    """What a request asks of its answer. A codec whose requests ask for something has its own."""

    __slots__ = ()

    def select(self, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        """What of an answer is to be written, in whichever format.

        Raises:
            InvalidRequest: the request wants an output that the model does not have.
        """
        return answer


NOTHING = Asked()


class Writer(Protocol):
    """What writes answers."""

    @property
    def name(self) -> str:
        """Of the format."""

    @property
    def content_types(self) -> Collection[str]:
        """What `Accept` calls its answers."""

    def encode(self, answer: Mapping[str, Any], asked: Asked) -> Response:
        """Write an answer.

        Args:
            answer: output name -> array, list of arrays, or values and mask; of a method without
                `need_preproc` anything.
            asked: what this codec read, or what another one did.

        Raises:
            PredictError: the answer cannot be written in this format.
        """


class Codec(Protocol):
    """A format of requests and answers: a class made for each model, an entry in `choose.CODECS`.

    Letters in shapes: B rows, F features, D width, N ids.
    """

    @property
    def name(self) -> str:
        """Of the format."""

    @property
    def content_types(self) -> Collection[str]:
        """What its requests are sent as, and what `Accept` calls its answers."""

    def reads(self, body: Body) -> bool:
        """Whether a body is in this format, where its content type leaves that open."""

    def decode(self, body: Body) -> tuple[Columns, Asked]:
        """Read a request's input tensors.

        Returns:
            Arrays by TorchRec's names (dense [B, F], lengths [F * B] or [F, B], values and weights
            [N], embeddings [F, B, D]; integers for lengths and values), not checked against each
            other; and what the request asks of its answer.

        Raises:
            InvalidRequest: not in this format, or not what the model takes.
            RequestTooLarge: more than the limits allow.
        """

    def arguments(self, body: Body) -> tuple[Arguments, Asked]:
        """Read the keyword arguments of a method without `need_preproc`.

        Raises:
            InvalidRequest, RequestTooLarge: as `decode`.
        """

    def encode(self, answer: Mapping[str, Any], asked: Asked) -> Response:
        """Write an answer, as `Writer` does."""


def as_tensors(columns: Columns) -> dict[str, torch.Tensor]:
    """Input tensors as arguments, which may be written to."""
    return {name: torch.from_numpy(np.array(array)) for name, array in columns.arrays.items()}


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
