"""Archives as a Triton model repository: configurations, and the archives' members in place."""

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from torchrec_archiver.model_config import DEFAULT_MODEL_CONFIG
from torchrec_archiver.serving import recorded
from torchrec_archiver.serving.archive import Model, open_all
from torchrec_handler.archive.format import (
    MODEL_CONFIG,
    SPARSE_TYPES,
    InputSignature,
    Signature,
)
from torchrec_handler.archive.repository import (
    ARCHIVE,
    BODY,
    CONTENT_TYPE,
    ENDED,
    MODEL_FILE,
    version_parameter,
)
from torchrec_handler.errors import ServeError
from torchrec_handler.options import Options, read_options

CONFIG = "config.pbtxt"
NO_CACHE = "__pycache__"
"""A file where Python would make a folder, whose time Triton would take for a changed model."""

DELAY_MICROSECONDS = 500
"""How long the first of a batch waits for others. Where processors are short, 64 connections get a
third more answers with it than with 100, as batches are larger.

No `default_queue_policy` stands beside it: with one, of whatever length, Triton 24.10 lets requests
wait half a second every now and then (docs/servers.md).
"""

MODEL_PY = '''\
"""Made by torchrec-archiver triton-repository: what lies in archive/ is answered by its engine."""

from torchrec_handler.front.triton.instance import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''

KINDS = {"cpu": "KIND_CPU", "cuda": "KIND_GPU", "auto": "KIND_AUTO"}
"""`torchrec.device` -> Triton's name of it."""

TYPES: Mapping[str, str] = {
    "bool": "TYPE_BOOL",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
}
"""numpy's names -> Triton's."""

Shape = tuple[int, ...]
Tensor = tuple[str, str, Sequence[int]]
"""Name, Triton's type, and sizes behind the first axis, -1 for any."""


class Written(NamedTuple):
    """A model's version in a repository."""

    model: Model
    place: Path
    """The version's folder, whose name is its number."""

    @property
    def archive(self) -> Path:
        """The folder of the archive's members."""
        return self.place / ARCHIVE


def write_repository(
    archives: Sequence[Path],
    output: Path,
    *,
    instances: int | None = None,
    keys: Sequence[Path] = (),
    force: bool = False,
) -> list[Written]:
    """Write a repository, or models into one that is there.

    A folder is served in place, by a link; a .mar or .tar.gz is unpacked into the repository, once.

    Args:
        archives: .mar or .tar.gz files, or folders; those of one model are its versions.
        output: the repository; Triton's `--model-repository`.
        instances: of each model; as its archive says when not given.
        keys: public keys, of which one has to have signed each archive.
        force: replace models that are there.

    Returns:
        What was written, model by model.

    Raises:
        ArchiveError: as `open_all`.
        ServeError: an archive has no signature, versions of a model take or give different tensors,
            or a model is there already.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        # Beside the models, so that each is put into place at once, and Triton sees no half of one.
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as temp:
            models: dict[str, list[Model]] = defaultdict(list)
            for model in open_all(archives, Path(temp, "archives"), keys):
                models[model.name].append(model)
            for name in models:
                if (output / name).exists() and not force:
                    message = f"{output / name} is there already"
                    raise ServeError(message, hint="--force replaces it")
            for name, versions in models.items():
                _write_model(Path(temp, name), versions, Path(temp, "archives"), instances)
            for name in models:
                if (output / name).exists():
                    (output / name).rename(Path(temp, f"{name}-before"))
                Path(temp, name).rename(output / name)
    except OSError as error:
        message = f"{output} cannot be written: {error.strerror} ({error.filename})"
        raise ServeError(message) from error
    return [
        Written(model, output / name / str(number))
        for name, versions in models.items()
        for number, model in enumerate(versions, start=1)
    ]


def _write_model(
    folder: Path, versions: Sequence[Model], scratch: Path, instances: int | None
) -> None:
    """Write a model, whose versions are numbered in their order: Triton's are whole numbers."""
    texts = []
    for number, model in enumerate(versions, start=1):
        place = folder / str(number)
        place.mkdir(parents=True)
        texts.append(config(model, versions, instances))
        (place / MODEL_FILE).write_text(MODEL_PY, encoding="utf-8")
        (place / NO_CACHE).touch()
        (place / ENDED).touch()
        if model.folder.is_relative_to(scratch):
            model.folder.rename(place / ARCHIVE)
        else:
            (place / ARCHIVE).symlink_to(model.folder)
    first, *_ = versions
    for model, text in zip(versions, texts, strict=True):
        if text != texts[0]:
            message = (
                f"{first} and {model} take or give different tensors, or are served with other "
                f"settings, which versions of one model of Triton's cannot be"
            )
            raise ServeError(message, hint="give each a repository of its own")
    (folder / CONFIG).write_text(texts[0], encoding="utf-8")


def config(model: Model, versions: Sequence[Model], instances: int | None = None) -> str:
    """A model's config.pbtxt.

    Args:
        model: whose signature and options it is of.
        versions: all of the model.
        instances: in the place of those of the archive.

    Raises:
        ServeError: it has no signature, or one with a name that is taken.
    """
    if model.index is None:
        message = f"{model} has no signature, of which Triton's configuration is made"
        raise ServeError(message, hint="build it with torchrec-archiver build")
    settings, options = _settings(model.folder)
    signature = model.index.signature
    outputs = list(_outputs(model.folder, signature))
    inputs = list(tensors(signature))
    for what, names in (("input", inputs), ("output", outputs)):
        if {BODY, CONTENT_TYPE}.intersection(name for name, _, _ in names):
            message = f"{model} has an {what} called {BODY} or {CONTENT_TYPE}, which is taken here"
            raise ServeError(message)
    inputs.append((BODY, "TYPE_STRING", [1]))
    outputs += [(BODY, "TYPE_STRING", [1]), (CONTENT_TYPE, "TYPE_STRING", [1])]
    count = instances or max(1, settings["minWorkers"])
    lines = [
        "# Made by torchrec-archiver triton-repository from the archive's signature and options.",
        "# Batches are of requests: a first axis of 1 is a request, of any number of rows.",
        f"name: {_quoted(model.name)}",
        'backend: "python"',
        f"max_batch_size: {settings['batchSize']}",
        "dynamic_batching {",
        f"  max_queue_delay_microseconds: {DELAY_MICROSECONDS}",
        "}",
        f"instance_group [ {{ kind: {KINDS[options.device]} count: {count} }} ]",
        "version_policy { all { } }",
        _parameter("FORCE_CPU_ONLY_INPUT_TENSORS", "yes"),
        *(
            _parameter(version_parameter(number), str(one))
            for number, one in enumerate(versions, start=1)
        ),
        *_tensors("input", inputs, " allow_ragged_batch: true optional: true"),
        *_tensors("output", outputs, ""),
    ]
    return "\n".join(lines) + "\n"


def _settings(folder: Path) -> tuple[dict[str, Any], Options]:
    """TorchServe's settings of an archive, of which Triton's are made, and our options."""
    path = folder / MODEL_CONFIG
    document = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None
    given = document or {}
    return {**DEFAULT_MODEL_CONFIG, **given}, read_options(given)


def tensors(signature: Signature) -> Iterator[Tensor]:
    """What a model takes, as TorchRec's columns have it."""
    for entry in signature.inputs:
        yield from _inputs(entry)


def _inputs(entry: InputSignature) -> Iterator[Tensor]:
    """The tensors of an input, as TorchRec's columns have them."""
    features = -1 if entry.num_features is None else entry.num_features
    if entry.type == "dense":
        yield entry.name, "TYPE_FP32", [-1, features]
    elif entry.type == "embedding":
        yield entry.name, "TYPE_FP32", [features, -1, -1 if entry.width is None else entry.width]
    else:
        is_wide = entry.is_wide or bool(entry.hashed)
        yield f"{entry.name}.lengths", "TYPE_INT32", [-1]
        yield f"{entry.name}.values", "TYPE_INT64" if is_wide else "TYPE_INT32", [-1]
        if entry.type == SPARSE_TYPES[1]:
            yield f"{entry.name}.weights", "TYPE_FP32", [-1]


def _outputs(folder: Path, signature: Signature) -> Iterator[Tensor]:
    """The outputs of all methods, of the types that were recorded.

    Sizes are open where nobody knows them, as of a method that is called one request at a time, and
    where methods give an output of other ones.
    """
    shapes: dict[str, list[Shape]] = {}
    types: dict[str, list[str]] = {}
    for splits in (signature.splits or {}).values():
        for name, parts in splits.items():
            _open(shapes, name, [part.shape for part in parts])
    for sample in recorded.read(folder):
        for name, arrays in sample.outputs.items():
            types.setdefault(name, [TYPES.get(array.dtype.name, "TYPE_FP32") for array in arrays])
            shapes.setdefault(name, [(-1,) * max(0, array.ndim - 1) for array in arrays])
    for name, found in shapes.items():
        yield from _tensors_of(signature.result_metadata, name, found, types.get(name, []))


def _open(shapes: dict[str, list[Shape]], name: str, found: Sequence[Shape]) -> None:
    """Take the shapes of an output's tensors behind the first axis; Triton knows no size of 0."""
    known = shapes.setdefault(name, [tuple(size or -1 for size in shape) for shape in found])
    for at, (own, shape) in enumerate(zip(known, found, strict=False)):
        if len(own) == len(shape):
            sizes = zip(own, shape, strict=True)
            known[at] = tuple(one if one == other else -1 for one, other in sizes)


def _tensors_of(
    result_metadata: str, name: str, shapes: Sequence[Shape], types: Sequence[str]
) -> Iterator[Tensor]:
    """An output's tensors, by the names that answers have them under."""
    given = [[-1, *shape] for shape in shapes]
    found = [types[at] if at < len(types) else "TYPE_FP32" for at in range(len(shapes))]
    if result_metadata == "dict_of_tensor":
        yield name, found[0], given[0]
    elif result_metadata == "dict_of_tensors":
        for at, (kind, shape) in enumerate(zip(found, given, strict=True)):
            yield f"{name}.{at}", kind, shape
    else:
        yield f"{name}.values", found[0], given[0]
        yield f"{name}.mask", "TYPE_BOOL", [-1]


def _parameter(key: str, value: str) -> str:
    text = _quoted(value)
    return f"parameters {{ key: {_quoted(key)} value: {{ string_value: {text} }} }}"


def _tensors(what: str, told: Sequence[Tensor], more: str) -> Iterator[str]:
    yield f"{what} ["
    for at, (name, kind, shape) in enumerate(told):
        end = "," if at + 1 < len(told) else ""
        sizes = ", ".join(map(str, shape))
        yield f"  {{ name: {_quoted(name)} data_type: {kind} dims: [ {sizes} ]{more} }}{end}"
    yield "]"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
