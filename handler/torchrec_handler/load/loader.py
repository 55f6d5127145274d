"""From an archive's folder to a predictor: the steps of loading, in order."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from torchrec_handler.archive.format import (
    DENSE,
    INDEX,
    SAMPLES,
    TABLES,
    Index,
    Signature,
)
from torchrec_handler.archive.samples import Sample, read_samples
from torchrec_handler.archive.verify import Archive, verify
from torchrec_handler.errors import ArchiveError, FactoryError, WeightsError
from torchrec_handler.kernels.graph.methods import with_weights
from torchrec_handler.kernels.kernel import Target
from torchrec_handler.kernels.registry import check_names
from torchrec_handler.load.attach import attach
from torchrec_handler.load.call import no_gradients
from torchrec_handler.load.dense import lower
from torchrec_handler.load.factory import run_factory, run_weights_dependent
from torchrec_handler.load.graphs import Trials, as_graphs
from torchrec_handler.load.package import Package, open_package
from torchrec_handler.load.placing import Choose, Placing, as_recorded
from torchrec_handler.load.process import unchanged_process
from torchrec_handler.load.quantize import (
    quantize,
    to_meta,
    unpackable,
    widen,
)
from torchrec_handler.load.requirements import check_requirements
from torchrec_handler.load.self_test import self_test, tolerance_of
from torchrec_handler.load.shard import shard
from torchrec_handler.load.signature.inputs import observe_signature
from torchrec_handler.load.signature.outputs import observe_outputs
from torchrec_handler.load.signature.reach import (
    guard,
    lets_rows_pass,
)
from torchrec_handler.load.signature.recorded import check_metadata, check_model, check_rows
from torchrec_handler.load.states import Made, Predictor, Quantized, Weighted
from torchrec_handler.load.versions import warn_of_versions
from torchrec_handler.load.weights import load_dense, table_names
from torchrec_handler.options import GRAPH, Options
from torchrec_handler.ranks import init_process_group
from torchrec_handler.tables.collection import Collections
from torchrec_handler.tables.find import find_collections
from torchrec_handler.tables.rows import quantized_rows
from torchrec_handler.tables.store import TableStore, layout

logger = logging.getLogger(__name__)


def load(
    folder: Path, options: Options, device: torch.device, keys: Sequence[Path] = ()
) -> Predictor:
    """Load an archive's folder; the process is left as it was, see `process`.

    Args:
        folder: where TorchServe extracted the archive, or a `no-archive` folder.
        options: from the archive's model-config.yaml.
        device: where to serve.
        keys: public keys, of which one has to have signed it; none where it needs no signature.

    Raises:
        LoadError: see the steps.
    """
    with unchanged_process():
        check_names(options.kernels)
        archive = verify(folder, full=options.verify == "full", keys=keys)
        try:
            return _load(archive, options, device)
        except SystemExit as error:  # a program that looks at an archive must not end, even well
            message = f"{archive.package.name}: its code calls sys.exit, which ends a worker"
            raise FactoryError(message) from error


def _load(archive: Archive, options: Options, device: torch.device) -> Predictor:
    folder = archive.folder
    if archive.index:
        warn_of_versions(archive.index.versions)
    check_requirements(folder)
    init_process_group()
    index = archive.index
    made = make(open_package(archive.package), options, device)
    dense = read_dense(folder / DENSE) if index and DENSE in index.sha256 else None
    weighted = load_weights(made, dense)
    if index:
        check_metadata(index.signature, made.output)
        check_rows(index.signature, weighted.collections.largest)
    samples = read_samples(folder / SAMPLES) if index and SAMPLES in index.sha256 else []
    if index and len(samples) != index.samples:
        message = (
            f"{SAMPLES}: received {len(samples)} samples, expected {index.samples}; "
            "the archive was altered or damaged, build or copy it again"
        )
        raise ArchiveError(message)
    predictor = make_ready(
        weighted,
        _widened(weighted, index),
        lambda quantized: _read_tables(quantized, folder, index),
        index.signature if index else None,
        samples,
        choose=as_recorded(index.dense if index else None),
    )
    if options.self_test:
        metadata, tolerance = predictor.result_metadata, tolerance_of(options, predictor.dense)
        self_test(predictor.module, samples, metadata, tolerance, device)
    if predictor.signature.splits is None:
        predictor = _see_outputs(predictor, made, must_answer=options.self_test and not index)
    else:
        check_model(predictor.signature, made.output, predictor.module, device, samples)
    return replace(predictor, index=index)


def load_again(
    predictor: Predictor, options: Options, dense: Mapping[str, torch.Tensor]
) -> Predictor:
    """The model of an archive with other dense weights, which looks rows up where the first does.

    Methods that are graphs stay that, but for the odd one. None is followed again, as that is done
    with changes of the whole process, beside which another thread cannot serve.

    Args:
        predictor: what `load` gave, of an archive with tables.
        options: those it was loaded with.
        dense: the archive's names -> tensors.

    Raises:
        LoadError: see the steps.
    """
    package, index = predictor.package, predictor.index
    if package is None or index is None:
        message = "a plain archive's weights are its factory's"
        raise WeightsError(message)
    kernels = options.kernels
    if kernels.allow(GRAPH):
        kernels = kernels.model_copy(update={"off": [*kernels.off, GRAPH]})
    without = options.model_copy(update={"kernels": kernels})
    weighted = load_weights(make(package, without, predictor.device), dense)
    made = make_ready(
        weighted,
        _widened(weighted, index),
        lambda _: predictor.tables,
        predictor.signature,
        choose=as_recorded(index.dense),
    )
    graphs = {}
    for qualname, old in predictor.graphs.items():
        mode = partial(no_gradients, made.module)
        try:
            method = with_weights(old, predictor.module, made.module, mode)
        except Exception:
            logger.warning("kernels: graph raised on %s", qualname, exc_info=True)
            continue
        if method is not None:
            setattr(made.module, qualname, method)
            graphs[qualname] = method
    replaced = [
        one for one in predictor.report.replaced if one.kernel == GRAPH and one.path in graphs
    ]
    report = replace(made.report, replaced=(*replaced, *made.report.replaced))
    return replace(made, graphs=graphs, report=report, index=index)


def read_dense(path: Path) -> dict[str, torch.Tensor]:
    """An archive's dense weights.

    Raises:
        ArchiveError: the file is damaged.
    """
    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError) as error:
        message = f"{DENSE}: cannot be read ({error}); the archive was altered or damaged"
        raise ArchiveError(message) from error


def _widened(weighted: Weighted, index: Index | None) -> dict[str, str]:
    """Data types of tables that cannot be packed as wanted: those that the build chose."""
    tables, options = weighted.collections.float_tables, weighted.made.options.tables
    if index is None:
        return widen(tables, options, weighted.own_rows)
    archived = {entry.key: entry.dtype for entry in index.tables}
    return {
        table.key.table: archived[table.key]
        for table in unpackable(tables, options)
        if table.key in archived
    }


def _read_tables(quantized: Quantized, folder: Path, index: Index | None) -> TableStore | None:
    """The archive's own tables, or of a plain one the factory's, encoded here."""
    collections = quantized.collections
    if index:
        _check_index(index, collections)
    if index and index.tables:
        return TableStore.map(folder / TABLES, index.tables)
    if collections.is_sharded:
        return None
    return TableStore.encode(layout(collections), quantized.own_rows)


def _check_index(index: Index, collections: Collections) -> None:
    """See that weights and tables are the archive's own, but for what the factory shards itself."""
    if collections.is_sharded:
        return
    tables = layout(collections)
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


def _see_outputs(predictor: Predictor, made: Made, *, must_answer: bool) -> Predictor:
    """Find out how results are cut, where the archive does not tell."""
    signature = predictor.signature
    module, device = predictor.module, predictor.device
    precision = made.options.precision
    seen = observe_outputs(made.output, signature, module, device, precision=precision)
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


def make(package: Package, options: Options, device: torch.device) -> Made:
    """Run a package's factory, and see what collections it made."""
    output = run_factory(package.factory, device, options.sharding.world_size)
    collections = find_collections(output.module, options.tables.quantization_mapping)
    return Made(
        package=package, options=options, device=device, output=output, collections=collections
    )


def load_weights(made: Made, dense: Mapping[str, torch.Tensor] | None) -> Weighted:
    """Give the module its dense weights and transform it; rows are left to `make_ready`.

    Args:
        made: what `make` gave.
        dense: checkpoint name -> tensor; None when the factory brought its own weights, tables
            included.
    """
    module = made.output.module
    named = table_names(module, made.collections)
    if dense is not None:
        to_meta([table for name, table in named.items() if name not in dense])
        load_dense(module, made.collections, dense, made.device)
    given = {name: table.weight.detach() for name, table in named.items()}
    module = run_weights_dependent(made.output)
    collections = find_collections(module, made.options.tables.quantization_mapping)
    left = {table.key.table for table in collections.float_tables}
    left |= {entry.name for entry in layout(collections)}
    hidden = {name: given[name] for name, table in named.items() if table.key.table not in left}
    if hidden:
        collections = collections.beside(made.collections)
    return Weighted(
        made=made,
        module=module,
        collections=collections,
        own_rows=to_meta(collections.float_tables),
        hidden=hidden,
    )


def make_ready(  # noqa: PLR0913
    weighted: Weighted,
    widened: Mapping[str, str],
    give_tables: Callable[[Quantized], TableStore | None],
    signature: Signature | None,
    samples: Sequence[Sample] = (),
    *,
    choose: Choose = Placing.put,
) -> Predictor:
    """Quantize, shard, give the lookups their rows and fit to the machine.

    Args:
        weighted: what `load_weights` gave.
        widened: table name -> data type, of those that are `unpackable`.
        give_tables: called once it is known what they are; gives None for a module that its
            factory sharded.
        signature: as recorded; None to observe it.
        samples: recorded calls, which graphs are tried on too.
        choose: puts kernels in place.
    """
    made, module = weighted.made, weighted.module
    output, options, device = made.output, made.options, made.device
    quantize(module, weighted.collections, options.tables, widened)
    collections = find_collections(module)
    own_rows = {**weighted.own_rows, **quantized_rows(collections)}
    store = give_tables(Quantized(weighted=weighted, collections=collections, own_rows=own_rows))
    name = options.sharding.plan
    given = made.package.load_config(name) if name else None
    module, plan = shard(module, collections, options.sharding, given, device)
    if store is not None:
        attach(find_collections(module), store, device)
    lower(module, options, device)
    # Before the kernels, after which modules no longer meet their inputs one by one.
    signature = signature or observe_signature(output, module, weighted.collections, device)
    if lets_rows_pass(signature):
        guard(module, weighted.collections)
    target = Target(device=device, dtype=options.kernel_dtype)
    trials = Trials(module, signature, samples)
    graphs = as_graphs(module, output.qualnames, trials, target, options.kernels)
    placed = choose(Placing(module, graphs, options, target))
    return Predictor(
        module=module,
        signature=signature,
        batching=output.batching,
        qualnames=output.qualnames,
        result_metadata=output.result_metadata,
        device=device,
        tables=store,
        plan=plan,
        report=placed.report,
        graphs=placed.graphs,
        dense=placed.dense,
        package=made.package,
    )
