"""The contract between archiver and handler: what lies where in an archive, and in which form.

Only the standard library is used, so that any tool can read an archive with this file alone.
Letters in shapes: B rows, F features, D width, N ids.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torchrec_handler.errors import ArchiveError

FORMAT_VERSION = "1.0"
"""Major.minor. Another major is refused; a newer minor is served with a warning."""

MANIFEST = "MAR-INF/MANIFEST.json"
PACKAGE = "predict_factory.pt"
MODEL_CONFIG = "model-config.yaml"
INDEX = "archive.json"
DENSE = "dense.safetensors"
TABLES = "tables.bin"

CODE_MEMBERS = (PACKAGE, MODEL_CONFIG, DENSE)
"""Members whose digest is checked before anything in them is imported, unpickled or obeyed."""

TABLE_ALIGNMENT = 128
"""Every table's block in `tables.bin` starts at a multiple of this many bytes (a cache line pair,
as FBGEMM aligns its tables)."""

HANDLER = "torchrec_handler.handler"
"""The handler's module, as the manifest names it."""

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
    rows: tuple[int | None, ...] = ()
    """For sparse inputs, per feature the first id that is out of range; None: any id is good."""
    width: int | None = None
    """D of an embedding input."""


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

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Signature":
        """Read what `asdict` wrote."""
        inputs = tuple(
            InputSignature(
                **{
                    **entry,
                    "features": tuple(entry["features"]),
                    "rows": tuple(entry["rows"]),
                }
            )
            for entry in document["inputs"]
        )
        return cls(**{**document, "inputs": inputs})


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

    @property
    def nbytes(self) -> int:
        """Size of the block, without the padding behind it."""
        return self.rows * self.row_bytes


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
    """Member -> digest, of every other member that the archiver wrote."""

    def dumps(self) -> str:
        """The document, as it is written."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def loads(cls, text: str) -> "Index":
        """Read a document.

        Raises:
            ArchiveError: it is not JSON, of another major format version, or lacks a field.
        """
        try:
            document = json.loads(text)
            version = str(document["format_version"])
        except (ValueError, KeyError, TypeError) as error:
            message = f"{INDEX}: not an archive index ({error!r}); build the archive again"
            raise ArchiveError(message) from error
        if version.split(".", maxsplit=1)[0] != FORMAT_VERSION.split(".", maxsplit=1)[0]:
            message = (
                f"{INDEX}: received format version {version}, expected {FORMAT_VERSION}; "
                "build the archive again with this version of torchrec-serve"
            )
            raise ArchiveError(message)
        try:
            known = {name: document[name] for name in cls.__dataclass_fields__}
            return cls(
                **{
                    **known,
                    "signature": Signature.from_json(document["signature"]),
                    "tables": tuple(TableEntry(**entry) for entry in document["tables"]),
                    "extra_files": tuple(document["extra_files"]),
                }
            )
        except (KeyError, TypeError) as error:
            message = f"{INDEX}: a field is missing or unknown ({error}); build the archive again"
            raise ArchiveError(message) from error

    @property
    def is_newer(self) -> bool:
        """Whether a newer minor version wrote it."""
        return _minor(self.format_version) > _minor(FORMAT_VERSION)


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
