"""What each data type of tables can hold: any other row would be looked up as another one."""

import math
from dataclasses import dataclass

import torch

from torchrec_handler.archive.format import SCALE_BIAS_BYTES


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
