"""The contract between archiver and handler: what lies where in an archive, and in which form.

Only the standard library is used, so that any tool can read an archive with this file alone.
Letters in shapes: B rows, F features, D width, N ids.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, get_args, get_origin

from torchrec_handler.errors import ArchiveError

FORMAT_VERSION = "1.0"
"""Major.minor. Another major is refused; a newer minor is served with a warning."""

MANIFEST = "MAR-INF/MANIFEST.json"
PACKAGE = "predict_factory.pt"
MODEL_CONFIG = "model-config.yaml"
INDEX = "archive.json"
DENSE = "dense.safetensors"
TABLES = "tables.bin"
SAMPLES = "samples.safetensors"
SAMPLES_KEY = "samples"
"""Of its metadata: method and rows of each call, as JSON."""

REQUIREMENTS = "requirements.txt"
"""What TorchServe installs for the model; only where --requirements-file gave one."""

TABLE_ALIGNMENT = 128
"""Every table's block in `tables.bin` starts at a multiple of this many bytes (a cache line pair,
as FBGEMM aligns its tables)."""

HANDLER = "torchrec_handler.handler"
"""The handler's module, as the manifest names it."""

ROW_BITS: Mapping[str, int] = {"float32": 32, "float16": 16, "int8": 8, "int4": 4, "int2": 2}
"""Data type of a table -> bits of one value. A row ends with a whole byte."""
SCALE_BIAS_BYTES = 4
"""Two float16 in front of a row of the integer types."""

BATCHING_TYPES = ("dense", "sparse", "weighted_sparse", "embedding")
RESULT_TYPES = ("dict_of_tensor", "dict_of_tensors", "dict_with_mask_tensor")


@dataclass(frozen=True, kw_only=True)
class InputSignature:
    """One input of the predict module, as `batching_metadata` names it."""

    name: str
    type: str
    """One of `BATCHING_TYPES`."""
    num_features: int | None = None
    """F; None when it is known to the model alone."""
    features: tuple[str, ...] = ()
    """The F feature names in the order of the lengths; empty when unknown."""
    ids_below: tuple[int | None, ...] = ()
    """For sparse inputs, per feature the first id that is out of range; None: any id is good."""
    longest: tuple[int | None, ...] = ()
    """For sparse inputs, per feature how many ids of a row have a position weight; None: any number
    of ids is good. Empty where no feature has such weights."""
    is_wide: bool = False
    """Whether a sparse input's ids go to the model as int64, up to 2^63 - 1; else as int32."""
    width: int | None = None
    """D of an embedding input."""


@dataclass(frozen=True, kw_only=True)
class Count:
    """What the first axis of an output counts, and how many values it holds of each."""

    factor: int
    """k: the axis is k times as long as there are rows, or ids."""
    input: str | None = None
    """The sparse input whose ids are counted; None: rows are."""
    features: tuple[int, ...] = ()
    """Positions of the features whose ids are counted, in the order in which the axis holds them,
    each with the ids of all rows; empty: all of the input's, in its own order."""


@dataclass(frozen=True, kw_only=True)
class OutputSplit:
    """How one tensor of a method's result is cut among the requests of a batch."""

    counts: tuple[Count, ...]
    """Several where no call could tell them apart; then they have to agree on where to cut."""
    shape: tuple[int, ...]
    """Behind the first axis."""


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What can be asked of a model and what it answers."""

    inputs: tuple[InputSignature, ...]
    methods: Mapping[str, bool]
    """qualname -> need_preproc."""
    result_metadata: str
    """One of `RESULT_TYPES`."""
    outputs: Mapping[str, Any] = field(default_factory=dict)
    """Output name -> shape for one row, as observed on one."""
    changes_ids: bool = False
    """Whether the model looks up rows that nobody sent, which have to be checked."""
    splits: Mapping[str, Mapping[str, tuple[OutputSplit, ...]]] | None = None
    """qualname -> output name -> how each of its tensors is cut; of a value and its mask only the
    value is, unless the mask is longer in larger batches. A method that is not in it is called once
    a request; None: nobody has looked yet."""


class TableKey(NamedTuple):
    """Which table of a model: two collections may each have one of the same name."""

    collection: str
    """The path of its embedding collection inside the predict module."""
    table: str


@dataclass(frozen=True, kw_only=True)
class TableEntry:
    """Where one quantized table lies in `tables.bin`."""

    collection: str
    """The path of its embedding collection inside the predict module."""
    name: str
    rows: int
    width: int
    """D, in values."""
    dtype: str
    """float32, float16, int8, int4 or int2. Rows of the integer types start with scale and bias
    (two float16), as FBGEMM's inference lookup reads them."""
    row_bytes: int
    offset: int
    """In bytes, from the start of `tables.bin`."""
    max_error: float | None = None
    """Largest absolute difference to the float rows; None where there were none."""
    mean_error: float | None = None
    """Mean absolute difference to the float rows."""

    @property
    def key(self) -> TableKey:
        """Which table it is."""
        return TableKey(self.collection, self.name)

    @property
    def nbytes(self) -> int:
        """Size of the block, without the padding behind it."""
        return self.rows * self.row_bytes


@dataclass(frozen=True, kw_only=True)
class Replaced:
    """A module whose forward is a kernel's."""

    path: str
    """Inside the predict module."""
    type: str
    """The module's."""
    kernel: str
    """What `kernels.off` calls it."""
    dtype: str | None
    """The least precise type that it computes in; None: it gives bit for bit what it gave."""


@dataclass(frozen=True, kw_only=True)
class Declined:
    """A module that a kernel knows and could not take."""

    path: str
    kernel: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """What kernels made of a module on one machine."""

    replaced: tuple[Replaced, ...] = ()
    declined: tuple[Declined, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Index:
    """`archive.json`."""

    format_version: str
    versions: Mapping[str, str]
    """Distribution -> version the archive was built with."""
    signature: Signature
    tables: tuple[TableEntry, ...]
    extra_files: tuple[str, ...]
    """Names of the package's extra files."""
    sha256: Mapping[str, str]
    """Member -> digest, of every other member, the manifest included."""
    samples: int
    """How many calls `samples.safetensors` holds; the member is left out where it is 0."""
    plan: str | None = None
    """The sharding plan, for a reader; a worker makes or reads its own."""
    output_change: Mapping[str, float | None] = field(default_factory=dict)
    """qualname -> largest absolute difference that quantizing made to an output of the samples;
    None where one alone is not finite."""
    kernels: Report = Report()
    """What the build's machine replaced, for a reader; a worker's own machine decides anew."""

    def dumps(self) -> str:
        """The document, as it is written."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)

    @classmethod
    def loads(cls, text: str) -> "Index":
        """Read a document; fields that it does not know are ignored.

        Raises:
            ArchiveError: it is not JSON, of another major format version, or a field is missing or
                wrong; the message holds the path to the field.
        """
        try:
            document = json.loads(text, parse_constant=_refuse_constant)
        except ValueError as error:
            message = f"{INDEX}: is not JSON ({error}); build the archive again"
            raise ArchiveError(message) from error
        if not isinstance(document, dict) or "format_version" not in document:
            message = f"{INDEX}: has no format_version; build the archive again"
            raise ArchiveError(message)
        version = document["format_version"]
        if str(version).partition(".")[0] != FORMAT_VERSION.partition(".")[0]:
            message = (
                f"{INDEX}: received format version {version}, expected {FORMAT_VERSION}; "
                "build the archive again with this version of torchrec-serve"
            )
            raise ArchiveError(message)
        index: Index = _read(cls, document, "")
        _expect_one_of(RESULT_TYPES, index.signature.result_metadata, "signature.result_metadata")
        for at, known in enumerate(index.signature.inputs):
            _expect_one_of(BATCHING_TYPES, known.type, f"signature.inputs[{at}].type")
        _check_splits(index.signature)
        for at, entry in enumerate(index.tables):
            _check_table(entry, f"tables[{at}]")
        _check_layout(index.tables)
        return index

    @property
    def is_newer(self) -> bool:
        """Whether a newer minor version wrote it."""
        return _minor(self.format_version) > _minor(FORMAT_VERSION)


def _refuse_constant(name: str) -> None:
    message = f"{name} is no number of JSON"
    raise ValueError(message)


def sha256(path: Path) -> str:
    """The hexadecimal digest of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def align(offset: int) -> int:
    """The next offset at which a table may start."""
    return -(-offset // TABLE_ALIGNMENT) * TABLE_ALIGNMENT


def _minor(version: str) -> int:
    minor = version.partition(".")[2]
    return int(minor) if minor.isdigit() else 0


def _read(kind: Any, value: Any, where: str) -> Any:
    """Read parsed JSON as a dataclass of this file, or as what one of its fields may hold."""
    if kind is Any:
        return value
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return None if value is None else _read(inner[0], value, where)
    if isinstance(kind, type) and is_dataclass(kind):
        _expect(dict, value, where)
        read = {}
        for known in fields(kind):
            path = f"{where}.{known.name}".lstrip(".")
            if known.name in value:
                read[known.name] = _read(known.type, value[known.name], path)
            elif known.default is MISSING and known.default_factory is MISSING:
                message = f"{INDEX}: {path}: is missing; build the archive again"
                raise ArchiveError(message)
        return kind(**read)
    if origin is tuple:
        _expect(list, value, where)
        return tuple(_read(inner[0], item, f"{where}[{at}]") for at, item in enumerate(value))
    if origin is Mapping:
        _expect(dict, value, where)
        return {name: _read(inner[1], item, f"{where}[{name!r}]") for name, item in value.items()}
    # JSON has one kind of number.
    plain = float(value) if kind is float and type(value) is int else value
    _expect(kind, plain, where)
    return plain


def _expect(kind: type, value: Any, where: str) -> None:
    if type(value) is not kind:
        message = f"{INDEX}: {where}: received {value!r}, expected {kind.__name__}"
        raise ArchiveError(message)


def _expect_one_of(known: Collection[str], value: str, where: str) -> None:
    if value not in known:
        message = f"{INDEX}: {where}: received {value!r}, expected one of {', '.join(known)}"
        raise ArchiveError(message)


def _check_splits(signature: Signature) -> None:
    """See that what outputs count is there to be counted."""
    features = {
        entry.name: entry.num_features for entry in signature.inputs if "sparse" in entry.type
    }
    for qualname, outputs in (signature.splits or {}).items():
        for name, parts in outputs.items():
            where = f"{INDEX}: signature.splits[{qualname!r}][{name!r}]"
            for count in (count for part in parts for count in part.counts):
                if count.factor < 1:
                    message = f"{where}: received the factor {count.factor}, expected 1 or more"
                    raise ArchiveError(message)
                if count.input is None:
                    continue
                _expect_one_of(features, count.input, f"signature.splits[{qualname!r}][{name!r}]")
                known = features[count.input] or 0
                if not all(0 <= position < known for position in count.features):
                    message = (
                        f"{where}: received the features {list(count.features)}, "
                        f"{count.input} has {known}"
                    )
                    raise ArchiveError(message)


def _check_table(entry: TableEntry, where: str) -> None:
    """Hold an entry to its row layout: a lookup trusts it and reads outside of the file else."""
    _expect_one_of(ROW_BITS, entry.dtype, f"{where}.dtype")
    for name in ("rows", "width", "offset"):
        if getattr(entry, name) < 0:
            message = (
                f"{INDEX}: {where}.{name}: received {getattr(entry, name)}, expected 0 or more"
            )
            raise ArchiveError(message)
    scale_bias = SCALE_BIAS_BYTES if entry.dtype.startswith("int") else 0
    row_bytes = -(-entry.width * ROW_BITS[entry.dtype] // 8) + scale_bias
    if entry.row_bytes != row_bytes:
        message = (
            f"{INDEX}: {where}.row_bytes: received {entry.row_bytes}, "
            f"expected {row_bytes} for {entry.width} values in {entry.dtype}"
        )
        raise ArchiveError(message)


def _check_layout(entries: Collection[TableEntry]) -> None:
    """See that every table is there once, and its block behind the others' with nothing between."""
    known: set[TableKey] = set()
    end, before = 0, "from 0 on"
    for entry in sorted(entries, key=lambda entry: entry.offset):
        where = f"{INDEX}: table {entry.name!r} of {entry.collection!r}"
        if entry.key in known:
            message = f"{where}: is there twice; the archive was altered, build or copy it again"
            raise ArchiveError(message)
        known.add(entry.key)
        if entry.offset != align(end):
            message = (
                f"{where}: received offset {entry.offset}, expected {align(end)}, the next "
                f"multiple of {TABLE_ALIGNMENT} {before}; "
                "the archive was altered, build or copy it again"
            )
            raise ArchiveError(message)
        end, before = entry.offset + entry.nbytes, f"behind {entry.name!r}"
