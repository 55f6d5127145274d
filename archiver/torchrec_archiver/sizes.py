"""The sizes of tables, out of an archive's index or of a file that somebody wrote."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from torchrec_archiver.near import near_path
from torchrec_handler.archive.format import ROW_BITS, SCALE_BIAS_BYTES, TableEntry, TableKey
from torchrec_handler.errors import TorchRecServeError
from torchrec_handler.options import TableDtype

COLLECTION = "tables"
"""Of the tables of a file, which names none."""
MOST_BYTES = 2**24
"""Of a file."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """One table."""

    key: TableKey
    rows: int
    width: int
    """D"""
    dtype: str
    """As stored: one of `ROW_BITS`."""
    row_bytes: int
    features: int = 1
    """How many are looked up in it."""
    pooling_factor: float
    """Ids of a row and feature, in the mean; TorchRec's name for it."""

    def stored_as(self, dtype: str) -> "Sizes":
        """The same table in another data type."""
        return replace(self, dtype=dtype, row_bytes=row_bytes(self.width, dtype))


class _Table(BaseModel):
    """An entry of a file; a name and a count make many."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, Field(pattern=r"^[^.]+$")]
    rows: Annotated[int, Field(ge=1)]
    width: Annotated[int, Field(ge=1)]
    dtype: TableDtype = "int8"
    features: Annotated[int, Field(ge=1)] = 1
    pooling_factor: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    count: Annotated[int, Field(ge=1, le=10_000)] = 1


def row_bytes(width: int, dtype: str) -> int:
    """Bytes of a row as lookups read it."""
    scale_bias = SCALE_BIAS_BYTES if dtype.startswith("int") else 0
    return -(-width * ROW_BITS[dtype] // 8) + scale_bias


def of_index(entries: Iterable[TableEntry], pooling_factor: float) -> list[Sizes]:
    """The tables of an archive, which does not say how many features each has: one each."""
    return [
        Sizes(
            key=entry.key,
            rows=entry.rows,
            width=entry.width,
            dtype=entry.dtype,
            row_bytes=entry.row_bytes,
            pooling_factor=pooling_factor,
        )
        for entry in entries
    ]


def of_file(path: Path, pooling_factor: float) -> list[Sizes]:
    """The tables that a YAML or JSON file lists.

    Args:
        path: of a list of mappings: `name`, `rows`, `width`; and `dtype`, `features`,
            `pooling_factor`, and `count` for as many tables of one kind, where they differ from
            int8, 1, `pooling_factor` and 1.
        pooling_factor: of tables that say none.

    Raises:
        TorchRecServeError: the file cannot be read, or is not that.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            message = f"--tables: {path} is longer than {MOST_BYTES:,} bytes, expected a few"
            raise TorchRecServeError(message)
        entries = TypeAdapter(list[_Table]).validate_python(yaml.safe_load(text))
    except OSError as error:
        message = f"--tables: {path} cannot be read: {error.strerror}"
        raise TorchRecServeError(message, hint=near_path(path)) from error
    except (RecursionError, UnicodeDecodeError, yaml.YAMLError) as error:
        message = f"--tables: {path} is no YAML: {' '.join(str(error).split())}"
        raise TorchRecServeError(message) from error
    except ValidationError as error:
        message = f"--tables: {path}: {_explain(error)}"
        raise TorchRecServeError(message) from None
    tables = [
        Sizes(
            key=TableKey(COLLECTION, f"{entry.name}_{number}" if entry.count > 1 else entry.name),
            rows=entry.rows,
            width=entry.width,
            dtype=entry.dtype,
            row_bytes=row_bytes(entry.width, entry.dtype),
            features=entry.features,
            pooling_factor=entry.pooling_factor or pooling_factor,
        )
        for entry in entries
        for number in range(entry.count)
    ]
    if twice := [key.table for key, many in Counter(one.key for one in tables).items() if many > 1]:
        message = f"--tables: {path}: two tables are called {twice[0]!r}, expected a name each"
        raise TorchRecServeError(message)
    return tables


def _explain(error: ValidationError) -> str:
    """The first fault: where, received, expected."""
    fault = error.errors()[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = ", ".join(_Table.model_fields)
        return f"tables{where}: is not known, expected one of {known}"
    if fault["type"] == "missing":
        return f"tables{where}: is missing"
    expected = fault["msg"].removeprefix("Input should be ")
    received = repr(fault["input"])
    received = received if len(received) < 100 else f"{received[:100]}…"
    return f"tables{where}: received {received}, expected {expected}"
