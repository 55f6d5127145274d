"""JSON columns: TorchRec's input tensors by name.

{"float_features": [[...F numbers...], ...B rows...],
 "id_list_features.lengths": [...F*B...], "id_list_features.values": [...N...]}
"""

from collections.abc import Mapping
from typing import Any

from torchrec_handler.errors import InvalidRequest
from torchrec_handler.serve.codecs import json_values
from torchrec_handler.serve.codecs.codec import NOTHING, Arguments, Asked, Body, Model
from torchrec_handler.serve.codecs.json_arrays import count_lists, read_array, refuse_nested
from torchrec_handler.serve.codecs.json_document import shortened, shown
from torchrec_handler.serve.codecs.json_raw import RawIds, check_features
from torchrec_handler.serve.request import Columns, Response

BATCH_SIZE = "batch_size"


class JsonColumns:
    """Reads every JSON object that is in no other format."""

    name = "json_columns"
    content_types = json_values.CONTENT_TYPES

    def __init__(self, model: Model) -> None:
        self._columns = model.columns

    def reads(self, body: Body) -> bool:
        """Whether it is JSON."""
        return body.is_json

    def decode(self, body: Body) -> tuple[Columns, Asked]:
        """Read a body.

        Raises:
            InvalidRequest: an unknown name, or not an array of numbers.
            RequestTooLarge: an array holds more than the limits allow.
        """
        document, columns = body.document, self._columns
        arrays: dict[str, Any] = {}
        raw: list[RawIds] = []
        lists = 0
        batch_size: int | None = None
        for name in body.names:
            column = columns.get(name)
            if column is not None:
                arrays[name] = array = read_array(name, document[name], column, raw)
                lists += count_lists(array.shape)
            elif name == BATCH_SIZE:
                batch_size = _batch_size(document[name])
            else:
                raise InvalidRequest(
                    said="unknown input",
                    where=shortened(name) or '""',
                    expected=f"{', '.join(columns)} or {BATCH_SIZE} (or instances, or inputs)",
                )
        if body.content.count(b"[") != lists:
            refuse_nested(
                (name, document[name], columns[name], array.shape) for name, array in arrays.items()
            )
        if raw:
            check_features(raw, arrays)
        return Columns(arrays=arrays, batch_size=batch_size), NOTHING

    def arguments(self, body: Body) -> tuple[Arguments, Asked]:
        """A JSON object's values as they are."""
        return json_values.arguments(body)

    def encode(self, answer: Mapping[str, Any], asked: Asked) -> Response:  # noqa: ARG002
        """Write arrays as lists, by the names that the model gave them."""
        return json_values.encode(answer)


def _batch_size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidRequest(where=BATCH_SIZE, received=shown(value), expected="a positive integer")
    return value
