"""From an archive's folder to a predictor: the steps of loading, in order."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torchrec.distributed.types import ShardingPlan
from torchrec.inference.modules import BatchingMetadata, QualNameMetadata

from torchrec_handler.archive.format import (
    DENSE,
    INDEX,
    SAMPLES,
    TABLES,
    Index,
    Report,
    Signature,
    TableKey,
)
from torchrec_handler.archive.samples import read_samples
from torchrec_handler.archive.verify import verify
from torchrec_handler.errors import ArchiveError, FactoryError
from torchrec_handler.kernels.kernel import Target
from torchrec_handler.kernels.registry import check_names, replace_forwards
from torchrec_handler.load.attach import attach
from torchrec_handler.load.dense import lower
from torchrec_handler.load.factory import FactoryOutput, run_factory, run_weights_dependent
from torchrec_handler.load.package import Package, open_package
from torchrec_handler.load.process import unchanged_process
from torchrec_handler.load.quantize import (
    FloatTable,
    float_tables,
    quantize,
    to_meta,
    unpackable,
    widen,
)
from torchrec_handler.load.requirements import check_requirements
from torchrec_handler.load.self_test import self_test
from torchrec_handler.load.shard import shard
from torchrec_handler.load.signature.inputs import observe_signature
from torchrec_handler.load.signature.outputs import observe_outputs
from torchrec_handler.load.signature.reach import (
    Collections,
    find_collections,
    guard,
    lets_rows_pass,
)
from torchrec_handler.load.signature.recorded import check_metadata, check_model, check_rows
from torchrec_handler.load.versions import warn_of_versions
from torchrec_handler.load.weights import load_dense, table_names
from torchrec_handler.options import Options
from torchrec_handler.ranks import init_process_group
from torchrec_handler.tables.store import TableStore, is_sharded, layout, quantized_rows

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A model that is ready to serve."""

    module: torch.nn.Module
    signature: Signature
    batching: Mapping[str, BatchingMetadata]
    qualnames: Mapping[str, QualNameMetadata]
    result_metadata: str
    device: torch.device
    tables: TableStore | None
    """None for a module that its factory sharded, and for one without tables."""
    plan: ShardingPlan | None
    """None when nothing was left to shard."""
    report: Report = field(default_factory=Report)
    """What kernels replaced."""
    index: Index | None = None
    """What the archive says of itself; None for a plain one."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A module that has its dense weights and whose tables are on `meta`."""

    module: torch.nn.Module
    tables: list[FloatTable]
    """Its float tables; those that the factory quantized itself are not among them."""
    own_rows: Mapping[TableKey, torch.Tensor]
    """Float rows [rows, D] that the factory itself brought."""
    collections: Collections
    """As they were before quantizing and sharding."""
    hidden: Mapping[str, torch.Tensor]
    """Checkpoint name -> rows [rows, D] of float tables that the factory's transformations took out
    of their collections, by tracing or scripting them: dense weights, which stay as they are."""


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A module that has its dense weights and whose collections are quantized."""

    module: torch.nn.Module
    own_rows: Mapping[TableKey, torch.Tensor]
    """Rows that the factory itself brought, float or encoded."""
    collections: Collections
    """As they were before quantizing and sharding."""


def load(folder: Path, options: Options, device: torch.device) -> Predictor:
    """Load an archive's folder; the process is left as it was, see `process`.

    Args:
        folder: where TorchServe extracted the archive, or a `no-archive` folder.
        options: from the archive's model-config.yaml.
        device: where to serve.

    Raises:
        LoadError: see the steps.
    """
    with unchanged_process():
        return _load(folder, options, device)


def _load(folder: Path, options: Options, device: torch.device) -> Predictor:
    check_names(options.kernels)
    archive = verify(folder, full=options.verify == "full")
    if archive.index:
        warn_of_versions(archive.index.versions)
    check_requirements(folder)
    init_process_group()
    package = open_package(archive.package)
    output = run_factory(package.factory, device, options.sharding.world_size)
    index = archive.index
    dense = load_file(folder / DENSE) if index and DENSE in index.sha256 else None
    loaded = load_weights(output, dense, options, device)
    if index:
        archived = {entry.key: entry.dtype for entry in index.tables}
        widened = {
            table.key.table: archived[table.key]
            for table in unpackable(loaded.tables, options.tables)
            if table.key in archived
        }
    else:
        widened = widen(loaded.tables, options.tables, loaded.own_rows)
    quantized = quantize_tables(loaded, options, widened)
    if index:
        _check_index(index, quantized.module)
    if index and index.tables:
        store: TableStore | None = TableStore.map(folder / TABLES, index.tables)
    elif is_sharded(quantized.module):
        store = None
    else:
        store = TableStore.encode(layout(quantized.module), quantized.own_rows)
    signature = index.signature if index else None
    if signature:
        check_metadata(signature, output)
        check_rows(signature, quantized.collections.largest)
    predictor = make_ready(package, output, quantized, store, signature, options, device)
    samples = read_samples(folder / SAMPLES) if index and SAMPLES in index.sha256 else []
    if index and len(samples) != index.samples:
        message = (
            f"{SAMPLES}: received {len(samples)} samples, expected {index.samples}; "
            "the archive was altered or damaged, build or copy it again"
        )
        raise ArchiveError(message)
    if options.self_test:
        metadata = output.result_metadata
        self_test(predictor.module, samples, metadata, options.precision, device)
    if predictor.signature.splits is None:
        predictor = _see_outputs(
            predictor, output, options, must_answer=options.self_test and not index
        )
    else:
        check_model(predictor.signature, output, predictor.module, device, samples)
    return replace(predictor, index=index)


def _check_index(index: Index, module: torch.nn.Module) -> None:
    """See that weights and tables are the archive's own, but for what the factory shards itself."""
    if is_sharded(module):
        return
    tables = layout(module)
    if tables and not index.tables:
        message = (
            f"{INDEX}: lists no tables, but the module has {len(tables)}; the archive was altered "
            "or damaged, build or copy it again"
        )
        raise ArchiveError(message)
    if DENSE not in index.sha256:
        message = (
            f"{DENSE}: {INDEX} does not list it, but the module's weights are not its factory's; "
            "the archive was altered or damaged, build or copy it again"
        )
        raise ArchiveError(message)


def _see_outputs(
    predictor: Predictor, output: FactoryOutput, options: Options, *, must_answer: bool
) -> Predictor:
    """Find out how results are cut, where the archive does not tell."""
    signature = predictor.signature
    module, device = predictor.module, predictor.device
    seen = observe_outputs(output, signature, module, device, precision=options.precision)
    for qualname, fault in seen.raised.items():
        message = (
            f"{qualname} {fault}, whatever was drawn for the inputs "
            f"{', '.join(entry.name for entry in signature.inputs)}; if PredictFactory."
            "model_inputs_data can tell more of them, let it; torchrec.self_test: false serves the "
            "model all the same"
        )
        if must_answer:
            raise FactoryError(message)
        logger.warning("outputs: %s", message)
    seen.warn()
    return replace(predictor, signature=replace(signature, splits=seen.splits))


def load_weights(
    output: FactoryOutput,
    dense: Mapping[str, torch.Tensor] | None,
    options: Options,
    device: torch.device,
) -> Loaded:
    """Give the module its dense weights and transform it; rows are left to `tables`.

    Args:
        output: what the factory gave.
        dense: checkpoint name -> tensor; None when the factory brought its own weights, tables
            included.
        options: all options.
        device: where dense weights go that the factory left on `meta`.
    """
    mapped = options.tables.quantization_mapping
    named = table_names(output.module, mapped)
    if dense is not None:
        to_meta([table for name, table in named.items() if name not in dense])
        load_dense(output.module, dense, device, mapped)
    given = {name: table.weight.detach() for name, table in named.items()}
    before = find_collections(output.module) if named else None
    module = run_weights_dependent(output)
    tables = float_tables(module, mapped)
    collections = find_collections(module)
    left = {table.key.table for table in tables} | {entry.name for entry in layout(module)}
    hidden = {name: given[name] for name, table in named.items() if table.key.table not in left}
    if hidden and before is not None:
        collections = collections.beside(before)
    return Loaded(
        module=module,
        tables=tables,
        own_rows=to_meta(tables),
        collections=collections,
        hidden=hidden,
    )


def quantize_tables(loaded: Loaded, options: Options, widened: Mapping[str, str]) -> Quantized:
    """Swap the module's float collections for quantized ones without rows, in place.

    Args:
        loaded: what `load_weights` gave.
        options: all options.
        widened: table name -> data type, of those that are `unpackable`.
    """
    quantize(loaded.module, loaded.tables, options.tables, widened)
    return Quantized(
        module=loaded.module,
        own_rows={**loaded.own_rows, **quantized_rows(loaded.module)},
        collections=loaded.collections,
    )


def make_ready(  # noqa: PLR0913, PLR0917  the results of all earlier steps
    package: Package,
    output: FactoryOutput,
    quantized: Quantized,
    store: TableStore | None,
    signature: Signature | None,
    options: Options,
    device: torch.device,
) -> Predictor:
    """Shard, give the lookups their rows, fit to the machine.

    Args:
        package: for a sharding plan in it.
        output: what the factory gave.
        quantized: what `quantize_tables` made of it.
        store: the tables; None for a module that its factory sharded.
        signature: as recorded; None to observe it.
        options: all options.
        device: where to serve.
    """
    name = options.sharding.plan
    given = package.load_config(name) if name else None
    module, plan = shard(quantized.module, options.sharding, given, device)
    if store is not None:
        attach(module, store, device)
    lower(module, options, device)
    # Before the kernels, after which modules no longer meet their inputs one by one.
    signature = signature or observe_signature(output, module, quantized.collections, device)
    if lets_rows_pass(signature):
        guard(module, quantized.collections)
    target = Target(device=device, dtype=options.kernel_dtype)
    report = replace_forwards(module, target, options.kernels)
    return Predictor(
        module=module,
        signature=signature,
        batching=output.batching,
        qualnames=output.qualnames,
        result_metadata=output.result_metadata,
        device=device,
        tables=store,
        plan=plan,
        report=report,
    )
