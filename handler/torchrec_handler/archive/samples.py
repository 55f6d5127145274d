"""Recorded calls: `samples.safetensors`, written and read.

Letters in shapes: B rows, F features, D width, N ids.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from torchrec_handler.archive.format import SAMPLES, SAMPLES_KEY
from torchrec_handler.errors import ArchiveError

UNREADABLE = (
    *(SafetensorError, OSError, KeyError, TypeError, ValueError),
    *(AttributeError, OverflowError, RecursionError),
)
"""What reading raises of a file that is something else."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One recorded forward call."""

    qualname: str
    rows: int
    """B"""
    inputs: Mapping[str, torch.Tensor]
    """What the method got; embedding inputs as one tensor [F, B, D]."""
    outputs: Mapping[str, tuple[torch.Tensor, ...]]
    """Output name -> its tensors."""


def save_samples(samples: Sequence[Sample], path: Path) -> None:
    """Write samples as safetensors: `N/inputs/NAME` and `N/outputs/NAME/PART`."""
    tensors: dict[str, torch.Tensor] = {}
    for number, sample in enumerate(samples):
        for name, value in sample.inputs.items():
            # Methods that were recorded with the same inputs share them, which the file cannot.
            tensors[f"{number}/inputs/{name}"] = value.clone(memory_format=torch.contiguous_format)
        for name, parts in sample.outputs.items():
            for part, value in enumerate(parts):
                tensors[f"{number}/outputs/{name}/{part}"] = value.clone(
                    memory_format=torch.contiguous_format
                )
    calls = [{"qualname": sample.qualname, "rows": sample.rows} for sample in samples]
    path.write_bytes(save(tensors, metadata={SAMPLES_KEY: json.dumps(calls)}))


def read_samples(path: Path) -> list[Sample]:
    """Read what `save_samples` wrote.

    Raises:
        ArchiveError: the file is something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            calls = json.loads(file.metadata()[SAMPLES_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return [_sample(number, entry, tensors) for number, entry in enumerate(calls)]
    except UNREADABLE as error:
        message = f"{SAMPLES}: cannot be read ({error}); the archive was altered or damaged"
        raise ArchiveError(message) from error


def _sample(number: int, entry: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Sample:
    inputs, outputs = f"{number}/inputs/", f"{number}/outputs/"
    parts: dict[str, dict[int, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(outputs):
            output, _, part = name.removeprefix(outputs).rpartition("/")
            parts.setdefault(output, {})[int(part)] = value
    return Sample(
        qualname=str(entry["qualname"]),
        rows=int(entry["rows"]),
        inputs={
            name.removeprefix(inputs): value
            for name, value in tensors.items()
            if name.startswith(inputs)
        },
        outputs={
            name: tuple(found[part] for part in sorted(found)) for name, found in parts.items()
        },
    )
