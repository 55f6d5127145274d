"""Rows, float or encoded: their data types, what each can hold, and the way from one to the other.

A row that its data type cannot hold would be looked up as another one.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_inference import rounded_row_size_in_bytes

from torchrec_handler.archive.format import ROW_BITS, SCALE_BIAS_BYTES, TableKey
from torchrec_handler.errors import WeightsError
from torchrec_handler.tables.collection import Collections, Lookup


@dataclass(frozen=True, kw_only=True)
class DataType:
    """A data type of tables, in others' words; its bits are in `ROW_BITS`."""

    torch: torch.dtype
    """As TorchRec's `QuantConfig` takes it."""
    fbgemm: SparseType
    width_multiple: int = 1
    """FBGEMM encodes rows of whole half-precision words only; the float types take any width."""


DATA_TYPES: Mapping[str, DataType] = {
    "float32": DataType(torch=torch.float32, fbgemm=SparseType.FP32),
    "float16": DataType(torch=torch.float16, fbgemm=SparseType.FP16),
    "int8": DataType(torch=torch.int8, fbgemm=SparseType.INT8, width_multiple=2),
    "int4": DataType(torch=torch.quint4x2, fbgemm=SparseType.INT4, width_multiple=4),
    "int2": DataType(torch=torch.quint2x4, fbgemm=SparseType.INT2, width_multiple=8),
}
NAMES: Mapping[SparseType, str] = {known.fbgemm: name for name, known in DATA_TYPES.items()}


@dataclass(frozen=True, kw_only=True)
class InvalidRow:
    """A row that its table's data type cannot hold."""

    row: int
    value: float
    """The first value that is the fault."""
    dtype: str
    """The table's."""

    def __str__(self) -> str:
        """Which row, what it holds and what was expected."""
        expected = "finite numbers"
        if math.isfinite(self.value):
            expected = f"at most {largest(self.dtype):,.6g} in size"
            if self.dtype.startswith("int"):
                expected += ", as scale and bias of a row are float16"
        return f"row {self.row} holds {self.value:g}, expected {expected}"


def largest(dtype: str) -> float:
    """The largest number that a table can hold."""
    return torch.finfo(torch.float32 if dtype == "float32" else torch.float16).max


def find_invalid(rows: torch.Tensor, dtype: str) -> InvalidRow | None:
    """Find the first row that a data type cannot hold.

    Args:
        rows: [rows, D] floating point, or [rows, row_bytes] uint8 that are encoded already.
        dtype: float32, float16, int8, int4 or int2.
    """
    values = rows
    if rows.dtype == torch.uint8:
        encoded = rows if dtype.startswith("float") else rows[:, :SCALE_BIAS_BYTES]
        values = encoded.contiguous().view(torch.float32 if dtype == "float32" else torch.float16)
    elif rows.element_size() == 1:  # float8, which torch does not compare
        values = rows.float()
    if not values.numel():
        return None
    most = largest(dtype)
    low, high = values.aminmax()  # both NaN where one value is
    if -most <= float(low) and float(high) <= most:
        return None
    bad = ~values.isfinite() | (values.abs() > most)
    row = int(bad.any(dim=1).int().argmax())
    return InvalidRow(row=row, value=float(values[row][bad[row]][0]), dtype=dtype)


def check_kind(name: str, rows: torch.Tensor, *, encoded: bool = True) -> None:
    """See that rows are floating point, or uint8 where they may be encoded already.

    Raises:
        WeightsError: they are something else, which to floats might be another number.
    """
    if not (rows.is_floating_point() or (encoded and rows.dtype == torch.uint8)):
        message = (
            f"table {name!r}: received rows of {str(rows.dtype).removeprefix('torch.')}, "
            "expected floating point"
        )
        raise WeightsError(message)


def encode_rows(rows: torch.Tensor, dtype: str) -> torch.Tensor:
    """Encode rows as the inference lookup reads them.

    The same FBGEMM operator as in TorchRec's `quantize_state_dict`; each row is encoded on its
    own, so a table may be encoded in pieces. The operator puts scale and bias behind the values,
    the lookup reads them in front.

    Args:
        rows: [rows, D] floating point, or [rows, row_bytes] uint8 that are encoded already.
        dtype: float32, float16, int8, int4 or int2.

    Returns:
        [rows, row_bytes] uint8, contiguous.
    """
    if rows.dtype == torch.uint8:
        return rows.contiguous()
    if dtype == "float32":
        return rows.float().contiguous().view(torch.uint8)
    if dtype == "float16":
        return rows.half().contiguous().view(torch.uint8)
    source = rows if rows.dtype in (torch.float32, torch.float16) else rows.float()
    encoded = torch.ops.fbgemm.FloatOrHalfToFusedNBitRowwiseQuantizedSBHalf(
        source.contiguous(), ROW_BITS[dtype]
    )
    return torch.roll(encoded, SCALE_BIAS_BYTES, dims=1)


def decode_rows(encoded: torch.Tensor, dtype: str) -> torch.Tensor:
    """What a lookup reads of encoded rows.

    Args:
        encoded: [rows, row_bytes] uint8, as `encode_rows` gives them.
        dtype: as there.

    Returns:
        [rows, D] float32.
    """
    if dtype == "float32":
        return encoded.view(torch.float32).clone()
    if dtype == "float16":
        return encoded.view(torch.float16).float()
    rows: torch.Tensor = torch.ops.fbgemm.FusedNBitRowwiseQuantizedSBHalfToFloat(
        torch.roll(encoded, -SCALE_BIAS_BYTES, dims=1), ROW_BITS[dtype]
    )
    return rows


def quantized_rows(collections: Collections) -> dict[TableKey, torch.Tensor]:
    """The rows that a factory quantized itself.

    Args:
        collections: quantized, not sharded.

    Returns:
        Encoded rows, [rows, row_bytes] uint8, views. Lookups that have no rows yet are left out.
    """
    return {
        TableKey(lookup.collection, name): rows
        for lookup in collections.lookups
        for name, _, rows in encoded_rows(lookup)
    }


def encoded_rows(lookup: Lookup) -> Iterator[tuple[str, str, torch.Tensor]]:
    """The rows that a lookup has already: table name, data type, [rows, row_bytes] uint8.

    Of rows that are padded for another alignment, without the padding.
    """
    operator = lookup.operator
    if not operator.weight_initialized or operator.weights_host.is_meta:
        return
    weights = operator.split_embedding_weights(split_scale_shifts=False)
    for spec, (rows, _) in zip(operator.embedding_specs, weights, strict=True):
        name, _, width, sparse_type, _ = spec
        row_bytes = rounded_row_size_in_bytes(
            width, sparse_type, 1, operator.scale_bias_size_in_bytes
        )
        yield name, NAMES[sparse_type], rows[:, :row_bytes].cpu()
