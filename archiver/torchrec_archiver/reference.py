"""What models answer to samples: the float one, and the quantized one to what that was given."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from torchrec_archiver.lookup import can_look_up, looked_up
from torchrec_archiver.record import (
    Recorded,
    call_together,
    check_failures,
    check_hidden,
    record,
    record_drawn,
)
from torchrec_archiver.samples import read_requests
from torchrec_handler.archive.format import OutputSplit, Signature, TableKey
from torchrec_handler.errors import BuildError
from torchrec_handler.load.dense import lower
from torchrec_handler.load.factory import FactoryOutput
from torchrec_handler.load.signature.inputs import observe_signature
from torchrec_handler.load.signature.outputs import observe_outputs
from torchrec_handler.load.states import Weighted
from torchrec_handler.options import DenseDtype, Options

CPU = torch.device("cpu")

Splits = Mapping[str, Mapping[str, tuple[OutputSplit, ...]]]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The float model, asked before it is quantized."""

    signature: Signature
    recorded: Recorded


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the models are asked."""

    samples: Path | None
    """A file of requests; None to draw them."""
    may_fail: bool
    """Whether the model may raise on all of them."""
    options: Options


def ask_float_model(
    weighted: Weighted, rows: Mapping[TableKey, torch.Tensor], asked: Asked
) -> Reference | None:
    """Run the float model on the samples; its tables are the checkpoint's own mapped rows.

    Returns:
        None where there is no float model to ask: a module that its factory quantized, tables
        without rows, or that cannot be looked up without a copy.
    """
    output, module, collections = weighted.made.output, weighted.module, weighted.collections
    tables = collections.float_tables
    sources = {table: rows[table.key] for table in tables if table.key in rows}
    if collections.is_sharded or not sources or len(sources) < len(tables):
        return None
    if not all(can_look_up(table, source) for table, source in sources.items()):
        return None
    with looked_up(sources):
        lower(module, Options(threads=asked.options.threads), CPU)
        signature = observe_signature(output, module, collections, CPU)
        recorded = record_samples(module, output, signature, None, asked)
    return Reference(signature=signature, recorded=recorded)


def record_samples(
    module: torch.nn.Module,
    output: FactoryOutput,
    signature: Signature,
    reference: Reference | None,
    asked: Asked,
) -> Recorded:
    """Call the model on the samples; the quantized one on those that the float one was given.

    Raises:
        BuildError: the samples cannot be read, or the model fails on them and may not.
    """
    if reference is not None:
        recorded = record(module, output, reference.recorded.requests)
    elif asked.samples is not None:
        recorded = record(module, output, read_requests(asked.samples, signature, asked.options))
    else:
        if not asked.may_fail:
            check_hidden(module, output, signature)
        recorded = record_drawn(module, output, signature)
    check_failures(recorded, are_drawn=asked.samples is None, are_allowed=asked.may_fail)
    return recorded


def observe_splits(  # noqa: PLR0913
    module: torch.nn.Module,
    signature: Signature,
    output: FactoryOutput,
    recorded: Recorded,
    asked: Asked,
    *,
    precision: DenseDtype,
) -> Splits:
    """How results are cut.

    Raises:
        BuildError: that cannot be told of an output, which is not served then.
    """
    samples = list(recorded.samples.values())
    if asked.samples is not None:
        samples += call_together(module, output, recorded.requests)
    seen = observe_outputs(output, signature, module, CPU, samples=samples, precision=precision)
    if seen.untold:
        message = "outputs: " + "\n  ".join(seen.untold.values())
        raise BuildError(message)
    seen.warn()
    return seen.splits
