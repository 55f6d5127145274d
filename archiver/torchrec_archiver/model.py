"""From a package and a checkpoint to the archive's members that hold the model.

Runs the worker's own steps of loading, with the archive's writing in between.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save

from torchrec_archiver.changes import Changes
from torchrec_archiver.checkpoint.entries import Checkpoint
from torchrec_archiver.checkpoint.read import read_checkpoint
from torchrec_archiver.dense import check_dense
from torchrec_archiver.dtypes import decide
from torchrec_archiver.fit import fit
from torchrec_archiver.lookup import can_look_up, looked_up
from torchrec_archiver.record import (
    Recorded,
    call_together,
    check_failures,
    check_hidden,
    output_change,
    record,
    record_drawn,
)
from torchrec_archiver.samples import read_requests
from torchrec_archiver.tables import check_sharded, write_tables
from torchrec_handler.archive.format import (
    DENSE,
    PACKAGE,
    SAMPLES,
    TABLES,
    DenseDtypes,
    OutputSplit,
    Report,
    Signature,
    TableEntry,
    TableKey,
)
from torchrec_handler.archive.samples import save_samples
from torchrec_handler.errors import BuildError
from torchrec_handler.load.dense import lower
from torchrec_handler.load.factory import FactoryOutput
from torchrec_handler.load.loader import load_weights, make, make_ready
from torchrec_handler.load.package import Package, open_package
from torchrec_handler.load.placing import Placed, Placing
from torchrec_handler.load.quantize import widen
from torchrec_handler.load.signature.inputs import observe_signature
from torchrec_handler.load.signature.outputs import observe_outputs
from torchrec_handler.load.states import Quantized, Weighted
from torchrec_handler.load.weights import dense_state, table_names
from torchrec_handler.options import AUTO, DenseDtype, Options
from torchrec_handler.ranks import init_process_group
from torchrec_handler.tables.collection import Collections
from torchrec_handler.tables.rows import check_kind
from torchrec_handler.tables.store import TableStore, layout

CPU = torch.device("cpu")

logger = logging.getLogger(__name__)

Rows = dict[TableKey, torch.Tensor]
Splits = Mapping[str, Mapping[str, tuple[OutputSplit, ...]]]


@dataclass(frozen=True, kw_only=True)
class Model:
    """What was written."""

    signature: Signature
    tables: tuple[TableEntry, ...]
    plan: str | None
    samples: int
    """How many calls were recorded."""
    output_change: Mapping[str, float]
    """qualname -> largest absolute difference that quantizing made to an output of the samples;
    empty where there is no float model to compare with."""
    kernels: Report
    """What kernels replaced on this machine."""
    dense: DenseDtypes | None
    """What was decided by layer."""


class _Fitted(NamedTuple):
    """A module with its weights."""

    weighted: Weighted
    dense: Mapping[str, torch.Tensor]
    """Checkpoint name -> what the worker will load."""
    rows: Rows


@dataclass(frozen=True, kw_only=True)
class _Reference:
    """The float model, asked before it is quantized."""

    signature: Signature
    recorded: Recorded


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What the models are asked."""

    samples: Path | None
    """A file of requests; None to draw them."""
    may_fail: bool
    """Whether the model may raise on all of them."""
    options: Options


def write_model(  # noqa: PLR0913
    content: Path,
    scratch: Path,
    *,
    weights: Path | Mapping[str, Any] | None,
    weights_map: Mapping[str, str],
    weights_key: str | None,
    ignore_weights: Sequence[str],
    samples: Path | None,
    options: Options,
    progress: bool,
    allow_invalid_rows: Collection[str],
    allow_failing_samples: bool,
) -> Model:
    """Write dense weights, tables and samples beside the package.

    Args:
        content: the staged folder, which holds the package.
        scratch: for temporary files.
        weights: a checkpoint, or its tensors; None when the factory brings them.
        weights_map: prefixes of the checkpoint's names to replace, OLD -> NEW.
        weights_key: the part of the checkpoint that is the model's.
        ignore_weights: patterns of names to leave out.
        samples: a file of requests to record; None to draw them.
        options: as the worker will read them.
        progress: whether to show bars.
        allow_invalid_rows: names of tables whose rows their data type need not hold, and of dense
            weights that need not be finite.
        allow_failing_samples: whether the model may raise on samples.

    Raises:
        BuildError: weights and module do not fit, or the samples cannot be recorded.
        LoadError: the worker's own steps failed.
    """
    init_process_group()
    package = open_package(content / PACKAGE)
    if weights is None:
        fitted = _with_own_weights(package, options, allow_invalid_rows)
        logger.info("weights: none are given, so those that the factory makes are packed")
    else:

        def read() -> Checkpoint:
            checkpoint = read_checkpoint(weights, scratch)
            if weights_key is not None:
                checkpoint = checkpoint.under(weights_key)
            return checkpoint.without(ignore_weights).renamed(weights_map)

        fitted = _with_weights(package, read, options, allow_invalid_rows, progress=progress)
    weighted, dense, rows = fitted
    output = weighted.made.output
    if weighted.hidden:
        logger.warning(
            "tables: the factory's transformations trace or script %s, so they stay as they are, "
            "among the dense weights, neither quantized nor shared by workers",
            ", ".join(weighted.hidden),
        )
    asked = _Asked(samples=samples, may_fail=allow_failing_samples, options=options)
    reference = _ask_float_model(weighted, rows, asked)

    def write(quantized: Quantized) -> TableStore | None:
        collections = quantized.collections
        entries = [] if collections.is_sharded else layout(collections)
        _check_allowed(allow_invalid_rows, dense, collections)
        if collections.is_sharded:
            check_sharded(collections, allow_invalid_rows)
            return None
        _save_dense(dense, content / DENSE)
        if not entries:
            return None
        measured = write_tables(
            content / TABLES,
            entries,
            {**quantized.own_rows, **rows},
            progress=progress,
            allowed=allow_invalid_rows,
        )
        return TableStore.map(content / TABLES, measured)

    in_float32: Splits | None = None

    def choose(placing: Placing) -> Placed:
        nonlocal in_float32
        module, signature = placing.module, placing.signature
        choice = placing.choice({}, is_open=True)
        placing.put(choice)
        recorded = _record(module, output, signature, reference, asked)
        # Nothing but the rows of a batch changes an output then.
        in_float32 = _splits(module, signature, output, recorded, asked, precision="float32")
        return decide(placing, choice, Changes(module, output, signature, recorded))

    predictor = make_ready(
        weighted,
        widen(weighted.collections.float_tables, options.tables, rows),
        write,
        reference.signature if reference else None,
        choose=choose if options.dense.dtype == AUTO else Placing.put,
    )
    store = predictor.tables
    recorded = _record(predictor.module, output, predictor.signature, reference, asked)
    if recorded.samples:
        save_samples(list(recorded.samples.values()), content / SAMPLES)
    splits = in_float32 or _splits(
        predictor.module, predictor.signature, output, recorded, asked, precision=options.precision
    )
    return Model(
        signature=replace(predictor.signature, splits=splits),
        tables=tuple(store.entries.values()) if store else (),
        plan=str(predictor.plan) if predictor.plan else None,
        samples=len(recorded.samples),
        output_change=output_change(reference.recorded, recorded) if reference else {},
        kernels=predictor.report,
        dense=predictor.dense,
    )


def _with_own_weights(package: Package, options: Options, allowed: Collection[str]) -> _Fitted:
    made = make(package, options, CPU)
    module = made.output.module
    # Before the transformations that the worker will run on them again.
    own = dense_state(module, made.collections)
    dense = {name: value.clone() for name, value in own.items()}
    check_dense(dense, module, allowed)
    weighted = load_weights(made, None)
    dense |= {name: value.clone() for name, value in weighted.hidden.items()}
    return _Fitted(weighted, dense, dict(weighted.own_rows))


def _with_weights(
    package: Package,
    read: Callable[[], Checkpoint],
    options: Options,
    allowed: Collection[str],
    *,
    progress: bool,
) -> _Fitted:
    made = make(package, options, CPU)
    module = made.output.module
    if made.collections.is_sharded:
        message = (
            "weights: the factory returns a sharded module, which keeps its own weights; "
            "leave --weights out, or let the factory return the module unsharded"
        )
        raise BuildError(message)
    named = table_names(module, made.collections)
    fitted = fit(read(), module, made.collections, progress=progress)
    dense, rows = dict(fitted.dense), dict(fitted.rows)
    check_dense(dense, module, allowed)
    weighted = load_weights(made, dense)
    if weighted.hidden:
        # What took them out of their collections was not given their rows.
        for name in weighted.hidden:
            dense[name] = rows.pop(named[name].key)
        weighted = load_weights(make(package, options, CPU), dense)
    for key, source in rows.items():
        check_kind(key.table, source, encoded=False)
    return _Fitted(weighted, dense, {**weighted.own_rows, **rows})


def _check_allowed(
    allowed: Collection[str], dense: Collection[str], collections: Collections
) -> None:
    known = {spec[0] for found in collections.lookups for spec in found.operator.embedding_specs}
    if unknown := sorted(set(allowed) - known - set(dense)):
        message = (
            f"allow invalid rows: names {', '.join(unknown)}, but the tables are "
            f"{', '.join(sorted(known)) or 'none'}"
        )
        raise BuildError(message)


def _ask_float_model(weighted: Weighted, rows: Rows, asked: _Asked) -> _Reference | None:
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
        recorded = _record(module, output, signature, None, asked)
    return _Reference(signature=signature, recorded=recorded)


def _record(
    module: torch.nn.Module,
    output: FactoryOutput,
    signature: Signature,
    reference: _Reference | None,
    asked: _Asked,
) -> Recorded:
    """Call the model on the samples; the quantized one on those that the float one was given."""
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


def _splits(  # noqa: PLR0913
    module: torch.nn.Module,
    signature: Signature,
    output: FactoryOutput,
    recorded: Recorded,
    asked: _Asked,
    *,
    precision: DenseDtype,
) -> Splits:
    """How results are cut; what cannot be told is not served."""
    samples = list(recorded.samples.values())
    if asked.samples is not None:
        samples += call_together(module, output, recorded.requests)
    seen = observe_outputs(output, signature, module, CPU, samples=samples, precision=precision)
    if seen.untold:
        message = "outputs: " + "\n  ".join(seen.untold.values())
        raise BuildError(message)
    seen.warn()
    return seen.splits


def _save_dense(dense: Mapping[str, torch.Tensor], path: Path) -> None:
    if absent := [name for name, value in dense.items() if value.is_meta]:
        message = f"weights: the factory leaves {', '.join(absent)} on meta; give --weights"
        raise BuildError(message)
    # Not save_file, which makes a file that nobody else may read.
    path.write_bytes(save({name: value.clone().contiguous() for name, value in dense.items()}))
