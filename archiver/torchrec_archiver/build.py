"""From a factory and its checkpoint to a model archive: the steps of building, in order."""

import importlib.metadata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from safetensors.torch import save_file
from torch.package.importer import Importer
from torchrec.inference.model_packager import PredictFactoryPackager
from torchrec.inference.modules import PredictFactory

from torchrec_archiver.checkpoint import fit, read_checkpoint
from torchrec_archiver.factory import find_factory, find_packager
from torchrec_archiver.mar import ArchiveFormat, check_target, staging, write_archive
from torchrec_archiver.package import DefaultPackager, read_bytes, read_config, save_package
from torchrec_archiver.tables import write_tables
from torchrec_handler.archive import (
    DENSE,
    FORMAT_VERSION,
    INDEX,
    MODEL_CONFIG,
    PACKAGE,
    REQUIREMENTS,
    TABLES,
    Index,
    TableEntry,
    sha256,
)
from torchrec_handler.errors import BuildError
from torchrec_handler.load.factory import run_factory
from torchrec_handler.load.loader import Predictor, Quantized, load_weights, make_ready
from torchrec_handler.load.package import open_package
from torchrec_handler.load.process_group import init_process_group
from torchrec_handler.load.tables import TableStore, is_sharded, layout
from torchrec_handler.load.weights import dense_state
from torchrec_handler.options import Options, read_options

DEFAULT_MODEL_CONFIG = {
    "minWorkers": 1,
    "maxWorkers": 1,
    "batchSize": 64,
    "maxBatchDelay": 2,
}
"""TorchServe's settings of an archive that is built without a --config-file."""

DISTRIBUTIONS = ("torchrec-serve", "torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu")


def build_archive(  # noqa: PLR0913  the command line's options
    *,
    model_name: str,
    version: str,
    factory: str | type[PredictFactory],
    export_path: str | Path,
    configs: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    extra_files: Mapping[str, str | bytes | Path] | None = None,
    packager: str | type[PredictFactoryPackager] = DefaultPackager,
    loader_code: str | None = None,
    package_importer: Importer | list[Importer] | None = None,
    config_file: str | Path | None = None,
    requirements_file: str | Path | None = None,
    archive_format: ArchiveFormat = "default",
    force: bool = False,
    progress: bool = False,
) -> Path:
    """Build a model archive.

    Args:
        model_name: TorchServe's name of the model.
        version: TorchServe's version of the model.
        factory: a PredictFactory class, or its `module:Class`.
        export_path: the model store.
        configs: name -> object; a `Path` is read, unpickled where it ends in `.pkl`, as text else.
        weights: a `torch.save` checkpoint by the model's own names; None when the factory brings
            its weights itself.
        extra_files: name -> content; a `Path` is read as bytes. The factory reads them with
            `torch_package_importer.load_text("extra_files", name)` or `load_binary`, after an
            `import torch_package_importer` inside of the method: only packaged code has it.
        packager: a PredictFactoryPackager subclass, or its `module:Class`.
        loader_code: for `save_predict_factory`, whose own makes an instance of the factory.
        package_importer: for `save_predict_factory`: where the factory and the configs come from
            when they came out of another torch.package, as
            `[PackageImporter(…), torch.package.sys_importer]`.
        config_file: model-config.yaml: TorchServe's settings, and ours under `torchrec:`.
        requirements_file: Python requirements that TorchServe installs for the model.
        archive_format: default (zip, deflated), zip-store, no-archive or tgz.
        force: whether to replace an archive of the same name.
        progress: whether to show progress bars.

    Returns:
        The archive's path.

    Raises:
        BuildError: an argument is wrong or a step failed; nothing is left in the model store.
        LoadError: the factory cannot be served; the build runs the code that will serve.
    """
    export_path = Path(export_path)
    target = check_target(model_name, export_path, archive_format, force=force)
    factory = find_factory(factory)
    packager = find_packager(packager)
    arguments = {"loader_code": loader_code, "package_importer": package_importer}
    model_config, options = _read_model_config(config_file)
    packed_configs = {
        name: read_config(name, value) if isinstance(value, Path) else value
        for name, value in (configs or {}).items()
    }
    packed_files = {
        name: read_bytes(f"extra file {name}", value) if isinstance(value, Path) else value
        for name, value in (extra_files or {}).items()
    }
    requirements = None
    if requirements_file is not None:
        requirements = read_bytes("requirements file", Path(requirements_file))
    with staging(export_path) as folder, _unchanged_process():
        content = folder / model_name
        content.mkdir()
        save_package(
            packager,
            factory,
            packed_configs,
            packed_files,
            content / PACKAGE,
            **{name: value for name, value in arguments.items() if value is not None},
        )
        (content / MODEL_CONFIG).write_bytes(model_config)
        if requirements is not None:
            (content / REQUIREMENTS).write_bytes(requirements)
        predictor = _write_weights(content, weights, options, progress=progress)
        _write_index(content, predictor, tuple(packed_files))
        write_archive(
            content,
            target,
            model_name=model_name,
            version=version,
            archive_format=archive_format,
            requirements_file=REQUIREMENTS if requirements is not None else None,
        )
    return target


@contextmanager
def _unchanged_process() -> Iterator[None]:
    """Undo what a worker's steps change in a process that goes on after the build."""
    threads = torch.get_num_threads()
    grouped = dist.is_initialized()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if dist.is_initialized() and not grouped:
            dist.destroy_process_group()


def _write_weights(
    content: Path, weights: str | Path | None, options: Options, *, progress: bool
) -> Predictor:
    """Write the dense weights and the tables, then make the model ready from what was written."""
    init_process_group()
    device = torch.device("cpu")
    package = open_package(content / PACKAGE)
    output = run_factory(package.factory, device, options.sharding.world_size)
    mapped = options.tables.quantization_mapping
    if weights is not None:
        if is_sharded(output.module):
            message = (
                "weights: the factory returns a sharded module, which keeps its own weights; "
                "leave --weights out, or let the factory return the module unsharded"
            )
            raise BuildError(message)
        fitted = fit(read_checkpoint(Path(weights)), output.module, mapped)
        quantized = load_weights(output, fitted.dense, options)
        dense, rows = fitted.dense, {**quantized.own_rows, **fitted.rows}
    else:
        # Before the transformations that the worker will run on them again.
        own = dense_state(output.module, mapped)
        dense = {name: value.clone() for name, value in own.items()}
        quantized = load_weights(output, None, options)
        rows = dict(quantized.own_rows)
    if is_sharded(quantized.module):
        return make_ready(package, output, quantized, None, None, options, device)
    _save_dense(dense, content / DENSE)
    store = _save_tables(content / TABLES, quantized, rows, progress=progress)
    return make_ready(package, output, quantized, store, None, options, device)


def _save_dense(dense: Mapping[str, torch.Tensor], path: Path) -> None:
    if absent := [name for name, value in dense.items() if value.is_meta]:
        message = f"weights: the factory leaves {', '.join(absent)} on meta; give --weights"
        raise BuildError(message)
    save_file({name: value.clone().contiguous() for name, value in dense.items()}, path)


def _save_tables(
    path: Path,
    quantized: Quantized,
    rows: Mapping[tuple[str, str], torch.Tensor],
    *,
    progress: bool,
) -> TableStore | None:
    entries: list[TableEntry] = layout(quantized.module)
    if not entries:
        return None
    write_tables(path, entries, rows, progress=progress)
    return TableStore.map(path, entries)


def _write_index(content: Path, predictor: Predictor, extra_files: tuple[str, ...]) -> None:
    tables = tuple(predictor.tables.entries.values()) if predictor.tables else ()
    index = Index(
        format_version=FORMAT_VERSION,
        versions=_versions(),
        signature=predictor.signature,
        tables=tables,
        extra_files=extra_files,
        sha256={path.name: sha256(path) for path in sorted(content.iterdir())},
    )
    (content / INDEX).write_text(index.dumps(), encoding="utf-8")


def _read_model_config(path: str | Path | None) -> tuple[bytes, Options]:
    if path is None:
        return yaml.safe_dump(DEFAULT_MODEL_CONFIG, sort_keys=False).encode(), Options()
    content = read_bytes("config file", Path(path))
    try:
        document = yaml.safe_load(content)
    except yaml.YAMLError as error:
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
            said = f"line {error.problem_mark.line + 1}: {error.problem}"
        else:
            said = " ".join(str(error).split())
        message = f"config file: {path} is not YAML: {said}"
        raise BuildError(message) from error
    if not isinstance(document, dict):
        message = f"config file: {path} holds a {type(document).__name__}, expected a mapping"
        raise BuildError(message)
    return content, read_options(document)


def _versions() -> dict[str, str]:
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
