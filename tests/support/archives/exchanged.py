"""An archive of the ranking model for another environment: `python -m` this builds and scores it.

python -m tests.support.archives.exchanged build FOLDER   # prints its path
python -m tests.support.archives.exchanged score ARCHIVE  # prints its scores and loading's warnings
"""

import json
import logging
import sys
from pathlib import Path

from tests.support.archives import good


def main(action: str, path: str) -> None:
    """Print one line of JSON."""
    if action == "build":
        sys.stdout.write(json.dumps(str(good.build(Path(path), archive_format="no-archive"))))
        return
    warnings: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("torchrec_handler").addHandler(handler)
    scores = good.scores(good.load_folder(Path(path)).module)
    sys.stdout.write(json.dumps({"scores": scores.tolist(), "warnings": warnings}))


if __name__ == "__main__":
    main(*sys.argv[1:])
