"""From an archive's folder to a predictor, or to what a rank that follows needs."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from torchrec_handler.archive.format import (
    DENSE,
    INDEX,
    SAMPLES,
    TABLES,
    Index,
)
from torchrec_handler.archive.samples import read_samples
from torchrec_handler.archive.verify import Archive, verify
from torchrec_handler.errors import (
    ArchiveError,
    FactoryError,
    LoadError,
    OptionError,
    Unusable,
    WeightsError,
)
from torchrec_handler.kernels.graph.method import GraphMethod
from torchrec_handler.kernels.graph.methods import with_weights
from torchrec_handler.kernels.graph.part import PartForward, part_with_weights
from torchrec_handler.kernels.registry import check_names
from torchrec_handler.load.call import no_gradients
from torchrec_handler.load.dense import lower
from torchrec_handler.load.package import open_package
from torchrec_handler.load.placing import as_recorded
from torchrec_handler.load.process import unchanged_process
from torchrec_handler.load.quantize import (
    unpackable,
    widen,
)
from torchrec_handler.load.requirements import check_requirements
from torchrec_handler.load.self_test import self_test, tolerance_of
from torchrec_handler.load.signature.outputs import observe_outputs
from torchrec_handler.load.signature.recorded import check_metadata, check_model, check_rows
from torchrec_handler.load.states import LaidOut, Made, Predictor, Quantized, Weighted
from torchrec_handler.load.steps import (
    lay_out,
    load_weights,
    make,
    make_follower,
    make_leader,
    make_ready,
)
from torchrec_handler.load.versions import warn_of_versions
from torchrec_handler.options import GRAPH, Options
from torchrec_handler.ranks import Ranks, init_process_group
from torchrec_handler.tables.collection import Collections
from torchrec_handler.tables.exchange import Follower
from torchrec_handler.tables.store import TableStore, layout

T = TypeVar("T")

logger = logging.getLogger(__name__)


def load(
    folder: Path,
    options: Options,
    device: torch.device,
    keys: Sequence[Path] = (),
    ranks: Ranks | None = None,
) -> Predictor:
    """Load an archive's folder; the process is left as it was, see `process`.

    Args:
        folder: where TorchServe extracted the archive, or a `no-archive` folder.
        options: from the archive's model-config.yaml.
        device: where to serve.
        keys: public keys, of which one has to have signed it; none where it needs no signature.
        ranks: to spread the tables over; this one leads, the others `load_follower`.

    Raises:
        LoadError: see the steps.
    """
    with _opened(folder, options, keys) as archive:
        return _load(archive, options, device, ranks)


def load_follower(
    folder: Path,
    options: Options,
    device: torch.device,
    ranks: Ranks,
    keys: Sequence[Path] = (),
) -> Follower:
    """Load what a rank needs that looks up for another one, see `load`.

    Raises:
        LoadError: see the steps.
    """
    with _opened(folder, options, keys) as archive:
        _, _, laid = _lay_out_archive(archive, options, device, ranks)
        if laid.is_parallel:
            lower(laid.module, options, device)
        return make_follower(laid, options, ranks)


@contextmanager
def _opened(folder: Path, options: Options, keys: Sequence[Path]) -> Iterator[Archive]:
    with unchanged_process():
        check_names(options.kernels)
        archive = verify(folder, full=options.verify == "full", keys=keys)
        try:
            yield archive
        except SystemExit as error:  # a program that looks at an archive must not end, even well
            message = f"{archive.package.name}: its code calls sys.exit, which ends a worker"
            raise FactoryError(message) from error
        except Unusable as error:
            message = f"ranks: {error}"
            raise LoadError(message) from error


def _lay_out_archive(
    archive: Archive, options: Options, device: torch.device, ranks: Ranks | None
) -> tuple[Made, Weighted, LaidOut]:
    folder = archive.folder
    if archive.index:
        warn_of_versions(archive.index.versions)
    check_requirements(folder)
    init_process_group()
    index = archive.index
    if ranks:
        options = _over_ranks(options, device, ranks)
    made = make(open_package(archive.package), options, device)
    dense = read_dense(folder / DENSE) if index and DENSE in index.sha256 else None
    weighted = load_weights(made, dense)
    if index:
        check_metadata(index.signature, made.output)
        check_rows(index.signature, weighted.collections.largest)
    laid = lay_out(
        weighted,
        _widened(weighted, index),
        lambda quantized: _read_tables(quantized, folder, index),
        ranks,
    )
    if ranks:
        said = (index, laid.plan, torch.__version__)
        ranks.agree("archive, plan or version of torch", *said)
    return made, weighted, laid


def _load(
    archive: Archive, options: Options, device: torch.device, ranks: Ranks | None
) -> Predictor:
    folder, index = archive.folder, archive.index
    made, weighted, laid = _lay_out_archive(archive, options, device, ranks)
    samples = read_samples(folder / SAMPLES) if index and SAMPLES in index.sha256 else []
    if index and len(samples) != index.samples:
        message = (
            f"{SAMPLES}: received {len(samples)} samples, expected {index.samples}; "
            "the archive was altered or damaged, build or copy it again"
        )
        raise ArchiveError(message)
    if ranks:
        leader = make_leader(laid, options, ranks, made.output.qualnames)
    predictor = make_ready(
        weighted,
        laid,
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
    if ranks:
        leader.check()  # steps that go on after an error may have met it
        predictor = replace(predictor, leader=leader)
    return replace(predictor, index=index)


def _over_ranks(options: Options, device: torch.device, ranks: Ranks) -> Options:
    """Options for a plan whose devices are the ranks."""
    if device.type != "cpu":
        message = f"torchrec.device: received {device} with {ranks.size} ranks, expected the CPU"
        raise OptionError(message)
    given = options.sharding
    if given.world_size not in {1, ranks.size}:
        message = (
            f"torchrec.sharding.world_size: received {given.world_size}, expected it left out: "
            f"tables are laid over the {ranks.size} ranks that torchrun started"
        )
        raise OptionError(message)
    over = given.model_copy(update={"world_size": ranks.size})
    return options.model_copy(update={"sharding": over})


def load_again(
    predictor: Predictor,
    options: Options,
    dense: Mapping[str, torch.Tensor],
    watch: Callable[[torch.nn.Module], None] | None = None,
) -> Predictor:
    """The model of an archive with other dense weights, which looks rows up where the first does.

    Methods and parts that are graphs stay that, but for the odd one. None is followed again, as
    that is done with changes of the whole process, beside which another thread cannot serve.

    Args:
        predictor: what `load` gave, of an archive with tables.
        options: those it was loaded with.
        dense: the archive's names -> tensors.
        watch: called with the module before kernels are bound to its lookups.

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
    laid = lay_out(weighted, _widened(weighted, index), lambda _: predictor.tables)
    if watch:
        watch(laid.module)
    made = make_ready(weighted, laid, predictor.signature, choose=as_recorded(index.dense))
    graphs, parts = _with_weights(predictor, made.module)
    kept = {*graphs, *parts}
    replaced = [
        one for one in predictor.report.replaced if one.kernel == GRAPH and one.path in kept
    ]
    report = replace(made.report, replaced=(*replaced, *made.report.replaced))
    return replace(made, graphs=graphs, parts=parts, report=report, index=index)


def _with_weights(
    predictor: Predictor, module: torch.nn.Module
) -> tuple[dict[str, GraphMethod], dict[str, PartForward]]:
    """Put a predictor's graphs in place in a module that was made as its own was."""
    modules, mode = (predictor.module, module), partial(no_gradients, module)
    methods: dict[str, GraphMethod] = {}
    parts: dict[str, PartForward] = {}
    for name, old in predictor.graphs.items():
        method = _made(name, partial(with_weights, old, getattr(module, name), modules, mode))
        if method is not None:
            setattr(module, name, method)
            methods[name] = method
    for path, one in predictor.parts.items():
        part = _made(path, partial(part_with_weights, one, modules, mode))
        if part is not None:
            setattr(module.get_submodule(path), "forward", part)  # noqa: B010  its own
            parts[path] = part
    return methods, parts


def _made(path: str, make: Callable[[], T | None]) -> T | None:
    try:
        return make()
    except Exception:
        logger.warning("kernels: graph raised on %s", path, exc_info=True)
        return None


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
