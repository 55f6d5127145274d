"""Coverage-guided fuzzing of the four decoders and the validation behind them.

    python -m tests.fuzz.decoders CORPUS -max_total_time=60 -rss_limit_mb=1024

Any exception that is no RequestError, and memory beyond the limit, ends it with a non-zero status.
"""

import sys
from dataclasses import replace
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["torchrec_handler.serve", "torchrec_handler.errors"]):
    from torchrec_handler.errors import RequestError
    from torchrec_handler.options import Limits, Options
    from torchrec_handler.serve.codecs.choose import Codecs
    from torchrec_handler.serve.request import RawRequest
    from torchrec_handler.serve.validate import Validator

from tests.support.exact import DENSE, SPARSE
from tests.support.one_request import BODIES, SIGNATURE
from torchrec_handler.archive.format import Hashed

CONTENT_TYPES = ("application/json", "application/x-protobuf", "")
OPTIONS = Options(limits=Limits(rows_per_request=100, ids_per_request=1000))
HASH = Hashed(function="xxh64", rows=10, seed=0)
RAW = replace(
    SIGNATURE,
    inputs=(
        replace(DENSE, defaults=(None, 9.5, 23.0)),
        replace(SPARSE, hashed=(HASH, None, HASH), out_of_range=(None, "drop", None)),
        *SIGNATURE.inputs[2:],
    ),
)
"""The same inputs, which may be strings and missing."""
READERS = [
    (Codecs("fuzzed", signature, OPTIONS.limits), Validator(signature, OPTIONS))
    for signature in (SIGNATURE, RAW)
]


def one(data: bytes) -> None:
    """The first byte chooses the content type, the rest is the body."""
    if not data:
        return
    kind = CONTENT_TYPES[data[0] % len(CONTENT_TYPES)]
    for reader, validate in READERS:
        try:
            columns, _ = reader.decode(RawRequest(body=data[1:], content_type=kind))
            request = validate(columns)
        except RequestError:
            continue
        assert 1 <= request.rows <= OPTIONS.limits.rows_per_request


def write_seeds(folder: Path) -> None:
    """One good body of each format, and those that hold strings and miss numbers."""
    raw = [
        BODIES[name].replace(*change)
        for name, change in (
            ("json columns", (b"[7, 8, 3, 4, 1, 2, 3]", b'["u-1", 8, 3, 4, "[", 2, 3]')),
            ("json columns", (b"9.5, 23]", b"null, 23]")),
            ("json rows", (b'"user": 7', b'"user": "u-1"')),
            ("open inference", (b"[7, 8, 3, 4, 1, 2, 3]", b'["u-1", 8, 3, 4, "[", 2, 3]')),
        )
    ]
    for number, body in enumerate([*BODIES.values(), *raw]):
        for kind in range(len(CONTENT_TYPES)):
            (folder / f"{number}-{kind}").write_bytes(bytes([kind]) + body)


def main() -> None:
    write_seeds(Path(sys.argv[1]))
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
