"""The contract between archiver and handler: what lies where in an archive, and in which form.

Only the standard library is used, so that any tool can read an archive with this file alone.
Letters in shapes: B rows, F features, D width, N ids.
"""

import hashlib
import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, NoReturn, get_args, get_origin

from torchrec_handler.errors import ArchiveError

FORMAT_VERSION = "1.1"
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
SIGNATURE = "model.sig"
"""Of the index, so it is in no index."""

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

MOST = 2**63 - 1
"""Of any integer; files and tensors count no further."""
DEEPEST = 16
"""Lists in lists of an output's shape."""
MOST_SAID = 200
"""Letters of a wrong value in a message."""
LAYER_DTYPES = ("float32", "bfloat16", "int8")
"""What a layer may be decided to compute in."""

SPARSE_TYPES = ("sparse", "weighted_sparse")
BATCHING_TYPES = ("dense", *SPARSE_TYPES, "embedding")
RESULT_TYPES = ("dict_of_tensor", "dict_of_tensors", "dict_with_mask_tensor")


HASH_FUNCTIONS = ("xxh64",)
"""What turns a raw id into a row, see `torchrec_handler.hashing`."""
OUT_OF_RANGE = ("reject", "zero", "modulo", "drop")
"""What becomes of an id that a table does not have."""
LARGEST_FLOAT32 = 3.4028234663852886e38


@dataclass(frozen=True, kw_only=True)
class Hashed:
    """How a feature's raw ids, strings or any integers of 64 bits, become rows."""

    function: str
    """One of `HASH_FUNCTIONS`."""
    rows: int
    """They are hashed to 0 to `rows` - 1."""
    seed: int


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
    hashed: tuple[Hashed | None, ...] = ()
    """For sparse inputs, per feature how ids are hashed; None: they are rows already. Empty where
    no feature is hashed."""
    out_of_range: tuple[str | None, ...] = ()
    """For sparse inputs, per feature one of `OUT_OF_RANGE`; None: what the options say. Empty where
    the options say it of all."""
    defaults: tuple[float | None, ...] = ()
    """For dense inputs, per feature what stands for a missing value; None: it may not be missing.
    Empty where no feature has a default."""


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
class Sizes:
    """Of batches."""

    least: int
    """Rows."""
    most: int | None = None
    """Rows; None: any number."""


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
    sizes: tuple[Sizes, ...] = ()
    """Of batches that the kernel computes, and the module others; nothing where it computes all."""


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
class DenseDtypes:
    """What `dense.dtype: auto` decided, layer by layer, where the archive was built."""

    dtypes: Mapping[str, str]
    """Parameter, as a checkpoint names it -> one of `LAYER_DTYPES`: the least precise type that
    layers made of it may compute in. Those that are not here compute in float32."""
    allowed: float
    """The largest absolute difference that an output was allowed."""
    max_error: float
    """The largest absolute difference to float32 that an output had, all layers together."""
    mean_error: float
    """The mean one."""
    rows: int
    """How many different rows that was measured on."""
    instructions: tuple[str, ...]
    """What the processor had of those that the types need."""


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
    dense: DenseDtypes | None = None
    """In which types layers compute; None where nothing but the options says so."""

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
        except (ValueError, RecursionError) as error:
            message = f"{INDEX}: is not JSON ({error}); build the archive again"
            raise ArchiveError(message) from error
        if not isinstance(document, dict) or "format_version" not in document:
            message = f"{INDEX}: has no format_version; build the archive again"
            raise ArchiveError(message)
        version = _said(document["format_version"], str)
        if version.partition(".")[0] != FORMAT_VERSION.partition(".")[0]:
            message = f"{INDEX}: received format version {version}, expected {FORMAT_VERSION}"
            hint = "build the archive again with this version of torchrec-serve"
            raise ArchiveError(message, hint=hint)
        index: Index = _read(cls, document, "")
        _expect_one_of(RESULT_TYPES, index.signature.result_metadata, "signature.result_metadata")
        for at, known in enumerate(index.signature.inputs):
            _expect_one_of(BATCHING_TYPES, known.type, f"signature.inputs[{at}].type")
            _check_raw(known, f"signature.inputs[{at}]")
        _check_splits(index.signature)
        for at, entry in enumerate(index.tables):
            _check_table(entry, f"tables[{at}]")
        _check_layout(index.tables)
        for name, dtype in index.dense.dtypes.items() if index.dense else ():
            _expect_one_of(LAYER_DTYPES, dtype, f"dense.dtypes[{name!r}]")
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
        _check_any(value, where, DEEPEST)
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
    return _read_plain(kind, value, where)


def _read_plain(kind: type, value: Any, where: str) -> Any:
    """A text, a number or a truth value; JSON has one kind of number."""
    _check_number(value, where)
    plain = float(value) if kind is float and type(value) is int else value
    _expect(kind, plain, where)
    return plain


def _check_number(value: Any, where: str) -> None:
    if type(value) is int and abs(value) > MOST:
        _refuse(value, "at most 2^63 - 1", where)
    if type(value) is float and not math.isfinite(value):  # 1e999 is
        _refuse(value, "a finite number", where)


def _check_any(value: Any, where: str, left: int) -> None:
    """See that what may be anything can be shown and written again."""
    if left == 0:
        message = f"{INDEX}: {where}: lists and objects are more than {DEEPEST} deep"
        raise ArchiveError(message)
    _check_number(value, where)
    for item in value.values() if type(value) is dict else value if type(value) is list else ():
        _check_any(item, where, left - 1)


def _expect(kind: type, value: Any, where: str) -> None:
    if type(value) is not kind:
        _refuse(value, kind.__name__, where)


def _expect_one_of(known: Collection[str], value: str, where: str) -> None:
    if value not in known:
        _refuse(value, f"one of {', '.join(known)}", where)


def _refuse(value: Any, expected: str, where: str) -> NoReturn:
    message = f"{INDEX}: {where}: received {_said(value)}, expected {expected}"
    raise ArchiveError(message)


def _said(value: Any, say: Callable[[Any], str] = repr) -> str:
    """A wrong value, of which only the beginning is said where it is long."""
    try:
        said = say(value)
    except (RecursionError, ValueError):  # more digits, or deeper, than Python says
        return f"a {type(value).__name__}"
    return said if len(said) <= MOST_SAID else f"{said[:MOST_SAID]}…"


def _check_raw(entry: InputSignature, where: str) -> None:
    """See that what is said of raw values is said of features that may have them."""
    kinds = {"hashed": SPARSE_TYPES, "out_of_range": SPARSE_TYPES, "defaults": ("dense",)}
    for name, types in kinds.items():
        said = getattr(entry, name)
        if said and (entry.type not in types or len(said) != len(entry.features)):
            message = (
                f"{INDEX}: {where}.{name}: is said of {len(said)} features, the {entry.type} input "
                f"has {len(entry.features) if entry.type in types else 'none'} that may be"
            )
            raise ArchiveError(message)
    for at, hashed in enumerate(entry.hashed):
        if hashed is not None:
            _check_hashed(hashed, f"{where}.hashed[{at}]")
    for at, policy in enumerate(entry.out_of_range):
        if policy is not None:
            _expect_one_of(OUT_OF_RANGE, policy, f"{where}.out_of_range[{at}]")
    for at, default in enumerate(entry.defaults):
        if default is not None and not abs(default) <= LARGEST_FLOAT32:
            message = (
                f"{INDEX}: {where}.defaults[{at}]: received {default}, expected a finite float32"
            )
            raise ArchiveError(message)


def _check_hashed(hashed: Hashed, where: str) -> None:
    _expect_one_of(HASH_FUNCTIONS, hashed.function, f"{where}.function")
    for name, least in (("rows", 1), ("seed", 0)):
        number, most = getattr(hashed, name), 2**63 - 1 + least
        if not least <= number <= most:
            message = f"{INDEX}: {where}.{name}: received {number}, expected {least} to {most}"
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
    for name in ("rows", "width", "offset", "max_error", "mean_error"):
        if (getattr(entry, name) or 0) < 0:
            _refuse(getattr(entry, name), "0 or more", f"{where}.{name}")
    scale_bias = SCALE_BIAS_BYTES if entry.dtype.startswith("int") else 0
    row_bytes = -(-entry.width * ROW_BITS[entry.dtype] // 8) + scale_bias
    if entry.row_bytes != row_bytes:
        message = (
            f"{INDEX}: {where}.row_bytes: received {entry.row_bytes}, "
            f"expected {row_bytes} for {entry.width} values in {entry.dtype}"
        )
        raise ArchiveError(message)
    if entry.nbytes > MOST:
        _refuse(entry.nbytes, "at most 2^63 - 1 bytes", where)


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
