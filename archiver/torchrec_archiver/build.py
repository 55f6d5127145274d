"""From a factory and its checkpoint to a model archive: the steps of building, in order."""

import hashlib
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch.package.importer import Importer
from torchrec.inference.model_packager import PredictFactoryPackager
from torchrec.inference.modules import PredictFactory

from torchrec_archiver.factory import find_factory, find_packager
from torchrec_archiver.mar import (
    choose_format,
    make_manifest,
    staging,
    write_archive,
)
from torchrec_archiver.model import Model, write_model
from torchrec_archiver.model_config import read_model_config
from torchrec_archiver.package import DefaultPackager, read_bytes, read_config, save_package
from torchrec_archiver.store import ArchiveFormat, check_arguments, find_place
from torchrec_handler.archive.format import (
    FORMAT_VERSION,
    INDEX,
    MANIFEST,
    MODEL_CONFIG,
    PACKAGE,
    REQUIREMENTS,
    Index,
    sha256,
)
from torchrec_handler.errors import BuildError
from torchrec_handler.load.process import unchanged_process
from torchrec_handler.load.requirements import INSTALLING
from torchrec_handler.load.versions import installed

logger = logging.getLogger(__name__)

AUTO_FORMATS: tuple[ArchiveFormat, ...] = ("zip-store", "no-archive")
"""What `auto` may choose."""


def build_archive(  # noqa: PLR0913  the command line's options
    *,
    model_name: str,
    version: str,
    factory: str | type[PredictFactory],
    export_path: str | Path,
    configs: Mapping[str, Any] | None = None,
    weights: str | Path | Mapping[str, Any] | None = None,
    weights_map: Mapping[str, str] | None = None,
    weights_key: str | None = None,
    ignore_weights: Sequence[str] = (),
    samples: str | Path | None = None,
    max_output_error: float | None = None,
    allow_invalid_rows: Collection[str] = (),
    allow_failing_samples: bool = False,
    extra_files: Mapping[str, str | bytes | Path] | None = None,
    packager: str | type[PredictFactoryPackager] = DefaultPackager,
    loader_code: str | None = None,
    package_importer: Importer | list[Importer] | None = None,
    config_file: str | Path | None = None,
    requirements_file: str | Path | None = None,
    archive_format: ArchiveFormat | Literal["auto"] = "auto",
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
        weights: a checkpoint by the model's own names, or its tensors: see
            `checkpoint.read_checkpoint` for the formats; None when the factory brings
            its weights itself.
        weights_map: prefixes of the checkpoint's names to replace, OLD -> NEW.
        weights_key: the part of the checkpoint that is the model's, its keys with dots between;
            found by itself where one part fits.
        ignore_weights: patterns (`fnmatch`) of the checkpoint's names to leave out.
        samples: a file of requests, one JSON body a line, whose outputs a worker must reproduce
            before it is ready; drawn by the signature when not given.
        max_output_error: fail when quantizing changes an output of the samples by more.
        allow_invalid_rows: names of tables that may hold NaN, infinity, or what is too large for
            their data type; a build fails on any other such row.
        allow_failing_samples: build even where a method raises on every sample, or `forward` on
            one; what raised is not recorded.
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
        archive_format: auto (by size: see `mar.choose_format`), default (zip, deflated), zip-store,
            no-archive or tgz.
        force: whether to replace this version of the model, or, where it is new, what has the
            model's plain name; without it another version joins as NAME-VERSION.
        progress: whether to show progress bars.

    Returns:
        The archive's path.

    Raises:
        BuildError: an argument is wrong or a step failed; nothing is left in the model store.
        LoadError: the factory cannot be served; the build runs the code that will serve.
    """
    export_path = Path(export_path)
    check_arguments(model_name, version, export_path, archive_format)
    formats = AUTO_FORMATS if archive_format == "auto" else (archive_format,)
    find_place(model_name, version, export_path, formats, force=force)
    arguments = {"loader_code": loader_code, "package_importer": package_importer}
    model_config, options = read_model_config(config_file)
    with unchanged_process():
        factory = find_factory(factory)
        if guessed := getattr(factory, "guessed", None):
            logger.warning("factory: guessed: %s", guessed)
        packager = find_packager(packager)
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
            logger.info("%s: TorchServe installs it only where it has %s", REQUIREMENTS, INSTALLING)
        with staging(export_path) as folder:
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
            scratch = folder / ".scratch"
            scratch.mkdir()
            model = write_model(
                content,
                scratch,
                weights=Path(weights) if isinstance(weights, str) else weights,
                weights_map=weights_map or {},
                weights_key=weights_key,
                ignore_weights=ignore_weights,
                samples=None if samples is None else Path(samples),
                options=options,
                progress=progress,
                allow_invalid_rows=allow_invalid_rows,
                allow_failing_samples=allow_failing_samples,
            )
            _check_change(model, max_output_error)
            packed = None if requirements is None else REQUIREMENTS
            manifest = make_manifest(model_name, version, packed)
            _write_index(content, model, tuple(packed_files), manifest)
            if archive_format == "auto":
                archive_format, reason = choose_format(content)
                logger.info("archive format: %s, since %s", archive_format, reason)
            place = find_place(model_name, version, export_path, (archive_format,), force=force)
            if place.beside:
                name = place.path(archive_format).name
                logger.info("%s: version %s goes beside it as %s", place.beside, version, name)
            return write_archive(content, manifest, place, archive_format)


def _write_index(content: Path, model: Model, extra_files: tuple[str, ...], manifest: str) -> None:
    digests = {path.name: sha256(path) for path in sorted(content.iterdir())}
    digests[MANIFEST] = hashlib.sha256(manifest.encode()).hexdigest()
    index = Index(
        format_version=FORMAT_VERSION,
        versions=installed(),
        signature=model.signature,
        tables=model.tables,
        extra_files=extra_files,
        sha256=digests,
        samples=model.samples,
        plan=model.plan,
        output_change={
            name: change if math.isfinite(change) else None
            for name, change in model.output_change.items()
        },
        kernels=model.kernels,
        dense=model.dense,
    )
    (content / INDEX).write_text(index.dumps(), encoding="utf-8")


def _check_change(model: Model, most: float | None) -> None:
    if most is None:
        return
    if not model.output_change:
        message = (
            "max output error: there is nothing to compare with: the factory gives quantized "
            "tables, or no samples were recorded"
        )
        raise BuildError(message)
    qualname, change = max(model.output_change.items(), key=lambda item: item[1])
    if not change <= most:
        worst = max(model.tables, key=lambda entry: entry.max_error or 0.0)
        message = (
            f"max output error: quantizing changes an output of {qualname} by {change:.3g}, "
            f"expected at most {most:.3g}; the largest error of a table is {worst.max_error:.3g} "
            f"({worst.name}, {worst.dtype})"
        )
        raise BuildError(message)
