"""What a delta is: changed rows and dense weights of an archive, one generation a file.

In shapes K is changed rows of a table.
"""

import math
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

from torchrec_handler.archive.format import MOST_SAID, TableKey
from torchrec_handler.errors import DeltaError

FORMAT_VERSION = "1.0"
"""Major.minor. Another major is refused; fields that a newer minor adds are ignored."""
SUFFIX = ".delta"
SIGNATURE_SUFFIX = ".sig"
"""Behind the whole name of a delta: a signature over its head."""
SIGNED = "delta.json"
"""What the signature calls the head."""
UPDATE, ROLLBACK = "update", "rollback"
KINDS = (UPDATE, ROLLBACK)
NAME = re.compile(r"(?:(\d{8,18})-)?(\d{8,18})\.delta")
"""SEQUENCE.delta, and FROM-SEQUENCE.delta of a squashed one."""
NO_DIGEST = "0" * 64
_HEXADECIMAL = re.compile(r"[0-9a-f]{64}")
DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""What tensors of a delta may be, by safetensors' names."""

Outputs = tuple[Mapping[str, tuple[torch.Tensor, ...]], ...]
"""Of each of the archive's samples, in their order: output name -> its tensors."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """What a delta says of itself."""

    base: str
    """sha256 of the archive's `archive.json`."""
    run: str
    """A UUID: the line of deltas that it belongs to."""
    sequence: int
    """The generation that it leads to; the archive is 0."""
    from_sequence: int
    """The first that it covers; its own but in a squashed one."""
    previous: str
    """`digest` of the delta before `from_sequence`; `base` before the first."""
    created: float
    """Seconds since 1970, at the trainer."""
    kind: str
    """One of `KINDS`."""
    sha256: str
    """Of the file, with zeros in the place of this digest."""
    format_version: str = FORMAT_VERSION
    covered: tuple[str, ...] = ()
    """Of a squashed delta, `sha256` of each that it stands for, `from_sequence` first."""

    @property
    def digest(self) -> str:
        """What the next delta calls `previous`."""
        return self.covered[-1] if self.covered else self.sha256

    def digest_at(self, sequence: int) -> str | None:
        """The digest of a generation, as far as it tells; that of generation 0 is the base."""
        if sequence == self.from_sequence - 1:
            return self.previous
        if sequence == self.sequence:
            return self.digest
        inside = self.from_sequence <= sequence < self.sequence
        return self.covered[sequence - self.from_sequence] if inside else None

    def follows(self, sequence: int, digest: str) -> bool:
        """Whether it leads on from a generation, given with its digest.

        A squashed delta does so from each generation that it covers but the last: rows are whole.
        """
        return sequence < self.sequence and self.digest_at(sequence) == digest


@dataclass(frozen=True, kw_only=True)
class TableRows:
    """Changed rows of one table."""

    key: TableKey
    ids: np.ndarray
    """[K] int64, strictly ascending."""
    rows: np.ndarray
    """[K, row_bytes] uint8, as `tables.bin` holds them."""


@dataclass(frozen=True, kw_only=True)
class Delta:
    """A delta file, opened."""

    path: Path
    head: Head
    tables: tuple[TableRows, ...]
    """Mapped from the file."""
    dense: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Name in `dense.safetensors` -> the whole tensor."""
    outputs: Outputs | None = None
    """What the archive's samples give at this generation."""


def name_of(head: Head) -> str:
    """What the file of a delta is called."""
    last = f"{head.sequence:08d}{SUFFIX}"
    return last if head.from_sequence == head.sequence else f"{head.from_sequence:08d}-{last}"


def sequence_of(path: Path) -> int:
    """The generation that a delta of `list_deltas` leads to, by its name."""
    return int(path.name.removesuffix(SUFFIX).rpartition("-")[2])


def list_deltas(folder: Path) -> list[Path]:
    """The deltas of a folder by sequence, a squashed one behind the one that it ends with.

    Raises:
        DeltaError: the folder cannot be read.
    """
    try:
        found = [
            (match, entry) for entry in folder.iterdir() if (match := NAME.fullmatch(entry.name))
        ]
    except OSError as error:
        refuse(folder, f"cannot be read: {error.strerror}", "damaged")
    order = {entry: (int(match[2]), -int(match[1] or match[2])) for match, entry in found}
    return sorted(order, key=lambda entry: order[entry])


def check_head(head: Head) -> None:
    """Raises: ValueError: a field is wrong."""
    texts = (head.base, head.run, head.previous, head.kind, head.sha256, head.format_version)
    if not all(type(text) is str for text in (*texts, *head.covered)):
        message = "a text is none"
        raise ValueError(message)
    major = FORMAT_VERSION.partition(".")[0]
    if head.format_version.partition(".")[0] != major:
        message = f"format version {head.format_version}, expected {FORMAT_VERSION}"
        raise ValueError(message)
    for digest in (head.base, head.previous, head.sha256, *head.covered):
        if not _HEXADECIMAL.fullmatch(digest):
            message = f"received {digest!r}, expected a sha256"
            raise ValueError(message)
    if str(uuid.UUID(head.run)) != head.run:
        message = f"run: received {head.run!r}, expected a UUID"
        raise ValueError(message)
    numbers = (head.from_sequence, head.sequence)
    if not all(type(number) is int for number in numbers) or not (
        1 <= head.from_sequence <= head.sequence < 10**18
    ):
        message = f"received the generations {numbers}, expected from 1 on"
        raise ValueError(message)
    count = head.sequence - head.from_sequence + 1
    if len(head.covered) != (count if count > 1 else 0):
        message = f"covered: received {len(head.covered)} digests of {count} generations"
        raise ValueError(message)
    if type(head.created) not in {int, float} or not 0 <= head.created < math.inf:
        message = f"created: received {head.created!r}, expected seconds since 1970"
        raise ValueError(message)
    if head.kind not in KINDS:
        message = f"kind: received {head.kind!r}, expected one of {', '.join(KINDS)}"
        raise ValueError(message)


def refuse(path: Path, why: str, reason: str) -> NoReturn:
    """Raises: DeltaError: of a file, with one word for metrics."""
    message = f"{path.name}: {why}"
    raise DeltaError(message, reason=reason)


def said(text: str) -> str:
    """A text of the file, of which only the beginning is said where it is long."""
    return text if len(text) <= MOST_SAID else f"{text[:MOST_SAID]}…"
