"""Small bodies of JSON rows, put together into one body: the rows of all.

{"instances": [{"a": 1}]} and {"instances": [{"a": 2}]} -> {"instances": [{"a": 1},{"a": 2}]}

As `json_together` does with JSON columns, and for the same reasons. What a body's rows do not give
although others do is as empty for them as where nobody gives it.

Letters in shapes: R bodies, B rows of each, F features, D width, N ids.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy.typing as npt

from torchrec_handler.archive.format import InputSignature
from torchrec_handler.serve.codecs.json_together import SPACES, unlike
from torchrec_handler.serve.codecs.single_rows import not_single
from torchrec_handler.serve.request import Columns
from torchrec_handler.serve.transposed import transposed

OPENING = b'{"instances"'

Array = npt.NDArray[Any]


class RowsTogether:
    """Bodies of one form as one."""

    def __init__(self, bodies: Sequence[bytes | bytearray]) -> None:
        """Put them together.

        Raises:
            InvalidRequest: they hold other things than rows.
        """
        self._bodies = len(bodies)
        opened = [bytes(body).partition(b"[") for body in bodies]
        closed = [rest.rpartition(b"]") for _, _, rest in opened]
        around = {start + end for (start, *_), (*_, end) in zip(opened, closed, strict=True)}
        # With these, brackets in one body's names would be brackets of another one's.
        is_open = bodies[0].count(b'"') % 2 or b"\\" in bodies[0]
        if is_open or {text.translate(None, SPACES) for text in around} != {OPENING + b":}"}:
            raise unlike()
        self.body = b'{"instances":[%b]}' % b",".join([inside for inside, _, _ in closed])

    def rows(self, read: Columns, inputs: Sequence[InputSignature]) -> Columns:  # noqa: ARG002
        """What was read of all as one request's, of a row of each body.

        Raises:
            InvalidRequest: a body has more.
        """
        if read.batch_size != self._bodies:
            raise not_single()
        # What no row gives is empty in all of them.
        return read._replace(shared={})

    def cut(self, read: Columns) -> list[Columns]:
        """Each body's own rows of what was read of all."""
        rows = (read.batch_size or 0) // self._bodies
        parts: dict[str, Sequence[Array]] = {}
        for name in read.shared:
            lengths = read.arrays[f"{name}.lengths"].reshape(-1, self._bodies, rows)
            counts = lengths.sum(axis=2)
            order = transposed(counts)
            ends = list(accumulate(counts.sum(axis=0).tolist()))
            parts[f"{name}.lengths"] = list(lengths.swapaxes(0, 1).reshape(self._bodies, -1))
            for kind in ("weights", "values"):
                array = read.arrays.get(f"{name}.{kind}")
                if array is not None:
                    moved = array[order]
                    parts[f"{name}.{kind}"] = [
                        moved[start:end] for start, end in zip([0, *ends], ends, strict=False)
                    ]
        for name, array in read.arrays.items():
            if name in parts:
                continue
            # Dense inputs [R * B, F], embedding ones [F, R * B, D].
            blocks = array.reshape(*array.shape[:-2], self._bodies, rows, array.shape[-1])
            parts[name] = list(blocks if blocks.ndim == 3 else blocks.swapaxes(0, 1))
        by_body = zip(*[parts[name] for name in read.arrays], strict=True)
        return [
            Columns(dict(zip(read.arrays, own, strict=True)), read.shared, rows) for own in by_body
        ]
