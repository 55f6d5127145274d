"""Coverage-guided fuzzing of the four decoders and the validation behind them.

    python -m tests.fuzz.decoders CORPUS -max_total_time=60 -rss_limit_mb=1024

Any exception that is no RequestError, and memory beyond the limit, ends it with a non-zero status.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["torchrec_handler.serve", "torchrec_handler.errors"]):
    from torchrec_handler.errors import RequestError
    from torchrec_handler.options import Limits, Options
    from torchrec_handler.serve.codecs.choose import Codecs
    from torchrec_handler.serve.request import RawRequest
    from torchrec_handler.serve.validate import Validator

from tests.support.one_request import BODIES, SIGNATURE

CONTENT_TYPES = ("application/json", "application/x-protobuf", "")
OPTIONS = Options(limits=Limits(rows_per_request=100, ids_per_request=1000))
CODECS = Codecs("fuzzed", SIGNATURE, OPTIONS.limits)
VALIDATE = Validator(SIGNATURE, OPTIONS)


def one(data: bytes) -> None:
    """The first byte chooses the content type, the rest is the body."""
    if not data:
        return
    kind = CONTENT_TYPES[data[0] % len(CONTENT_TYPES)]
    try:
        columns, _ = CODECS.decode(RawRequest(body=data[1:], content_type=kind))
        request = VALIDATE(columns)
    except RequestError:
        return
    assert 1 <= request.rows <= OPTIONS.limits.rows_per_request


def write_seeds(folder: Path) -> None:
    """One good body of each format."""
    for number, body in enumerate(BODIES.values()):
        for kind in range(len(CONTENT_TYPES)):
            (folder / f"{number}-{kind}").write_bytes(bytes([kind]) + body)


def main() -> None:
    write_seeds(Path(sys.argv[1]))
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
