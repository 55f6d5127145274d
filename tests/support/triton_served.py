"""A Triton on archives whose factories are the tests' own."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT
from torchrec_archiver.serving import settings, triton
from torchrec_archiver.serving.running import Running


@contextmanager
def serving(archives: Sequence[Path], **arguments: Any) -> Iterator[Running]:
    """Serve them on free ports, with the tests' modules to be imported by instances."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    try:
        ports = settings.free_ports(settings.TRITON_PORTS)
        with triton.running(archives, ports=ports, **arguments) as running:
            yield running
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
