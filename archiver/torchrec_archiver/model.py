"""From a package and a checkpoint to the archive's members that hold the model.

Runs the worker's own steps of loading, with the archive's writing in between.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
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
from torchrec_archiver.record import output_change
from torchrec_archiver.reference import (
    Asked,
    Splits,
    ask_float_model,
    observe_splits,
    record_samples,
)
from torchrec_archiver.tables import check_sharded, write_tables
from torchrec_handler.archive.format import (
    DENSE,
    PACKAGE,
    SAMPLES,
    TABLES,
    DenseDtypes,
    Report,
    Signature,
    TableEntry,
    TableKey,
)
from torchrec_handler.archive.samples import save_samples
from torchrec_handler.errors import BuildError
from torchrec_handler.load.package import Package, open_package
from torchrec_handler.load.placing import Placed, Placing
from torchrec_handler.load.quantize import widen
from torchrec_handler.load.states import Quantized, Weighted
from torchrec_handler.load.steps import lay_out, load_weights, make, make_ready
from torchrec_handler.load.weights import dense_state, table_names
from torchrec_handler.options import AUTO, Options
from torchrec_handler.ranks import init_process_group
from torchrec_handler.tables.collection import Collections
from torchrec_handler.tables.rows import check_kind
from torchrec_handler.tables.store import TableStore, layout

CPU = torch.device("cpu")

logger = logging.getLogger(__name__)

Rows = dict[TableKey, torch.Tensor]


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


@dataclass(frozen=True, kw_only=True)
class WeightsOf:
    """A checkpoint, and which of it to read under which names."""

    source: Path | Mapping[str, Any]
    """A checkpoint, or its tensors."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Prefixes of the checkpoint's names to replace, OLD -> NEW."""
    key: str | None = None
    """The part of the checkpoint that is the model's."""
    ignored: Sequence[str] = ()
    """Patterns of names to leave out."""

    def read(self, scratch: Path) -> Checkpoint:
        """Read it, with a folder for temporary files.

        Raises:
            BuildError: it cannot be read.
        """
        checkpoint = read_checkpoint(self.source, scratch)
        if self.key is not None:
            checkpoint = checkpoint.under(self.key)
        return checkpoint.without(self.ignored).renamed(self.renamed)


class Fitted(NamedTuple):
    """A module with its weights."""

    weighted: Weighted
    dense: Mapping[str, torch.Tensor]
    """Checkpoint name -> what the worker will load."""
    rows: Rows


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
        given = WeightsOf(
            source=weights, renamed=weights_map, key=weights_key, ignored=ignore_weights
        )
        read = partial(given.read, scratch)
        fitted = fit_weights(package, read, options, allow_invalid_rows, progress=progress)
    weighted, dense, rows = fitted
    output = weighted.made.output
    if weighted.hidden:
        logger.warning(
            "tables: the factory's transformations trace or script %s, so they stay as they are, "
            "among the dense weights, neither quantized nor shared by workers",
            ", ".join(weighted.hidden),
        )
    asked = Asked(samples=samples, may_fail=allow_failing_samples, options=options)
    reference = ask_float_model(weighted, rows, asked)

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
        recorded = record_samples(module, output, signature, reference, asked)
        # Nothing but the rows of a batch changes an output then.
        in_float32 = observe_splits(module, signature, output, recorded, asked, precision="float32")
        return decide(placing, choice, Changes(module, output, signature, recorded))

    widened = widen(weighted.collections.float_tables, options.tables, rows)
    predictor = make_ready(
        weighted,
        lay_out(weighted, widened, write),
        reference.signature if reference else None,
        choose=choose if options.dense.dtype == AUTO else Placing.put,
    )
    store = predictor.tables
    recorded = record_samples(predictor.module, output, predictor.signature, reference, asked)
    if recorded.samples:
        save_samples(list(recorded.samples.values()), content / SAMPLES)
    splits = in_float32 or observe_splits(
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


def _with_own_weights(package: Package, options: Options, allowed: Collection[str]) -> Fitted:
    made = make(package, options, CPU)
    module = made.output.module
    # Before the transformations that the worker will run on them again.
    own = dense_state(module, made.collections)
    dense = {name: value.clone() for name, value in own.items()}
    check_dense(dense, module, allowed)
    weighted = load_weights(made, None)
    dense |= {name: value.clone() for name, value in weighted.hidden.items()}
    return Fitted(weighted, dense, dict(weighted.own_rows))


def fit_weights(
    package: Package,
    read: Callable[[], Checkpoint],
    options: Options,
    allowed: Collection[str],
    *,
    progress: bool,
) -> Fitted:
    """Find the weights of a package's module in a checkpoint.

    Args:
        package: of the archive.
        read: reads the checkpoint, once the module is there.
        options: as the worker will read them.
        allowed: names of dense weights that need not be finite.
        progress: whether to show bars.

    Raises:
        BuildError: weights and module do not fit.
        LoadError: the worker's own steps failed.
    """
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
    return Fitted(weighted, dense, {**weighted.own_rows, **rows})


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


def _save_dense(dense: Mapping[str, torch.Tensor], path: Path) -> None:
    if absent := [name for name, value in dense.items() if value.is_meta]:
        message = f"weights: the factory leaves {', '.join(absent)} on meta; give --weights"
        raise BuildError(message)
    # Not save_file, which makes a file that nobody else may read.
    path.write_bytes(save({name: value.clone().contiguous() for name, value in dense.items()}))
