"""Clients of single rows beside clients whose few bytes ask for as many rows as they may.

    python -m tests.fuzz.neighbours --seconds 20

On a real TorchServe with the Criteo DLRM. A request of some 270 bytes shares its one row with
`batch_size` others; 64 connections send those while 64 send single rows.
"""

import argparse
import http.client
import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.criteo import DENSE_FEATURES, CriteoConfig, CriteoPredictFactory, make_weights
from torchrec_archiver import build_archive
from torchrec_archiver.server import TorchServe
from torchrec_handler.options import Limits

NAME = "criteo"
ROWS = (1000,) * 26
CLIENTS = 64
REFUSED_ROWS = 65_536


@dataclass(kw_only=True)
class Seen:
    """What one kind of client saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    def p99(self) -> float:
        """Seconds."""
        return float(np.percentile(self.seconds, 99))


def small_request(rows: int) -> bytes:
    """One row for all, in a few hundred bytes."""
    body = {
        "batch_size": rows,
        "float_features": [[0.5] * DENSE_FEATURES],
        "id_list_features.lengths": [1] * len(ROWS),
        "id_list_features.values": [1] * len(ROWS),
    }
    return json.dumps(body, separators=(",", ":")).encode()


def serve_both(folder: Path, rows: int, seconds: float) -> Mapping[str, Seen]:
    """Let both kinds of clients ask for some seconds.

    Args:
        folder: empty.
        rows: `batch_size` of the small requests.
        seconds: how long.

    Returns:
        "good" and "greedy" -> what they saw.
    """
    archive = build_archive(
        model_name=NAME,
        version="1.0",
        factory=CriteoPredictFactory,
        configs={"config.pkl": CriteoConfig(rows=ROWS)},
        weights=make_weights(CriteoConfig(rows=ROWS)),
        export_path=folder,
    )
    seen = {"good": Seen(), "greedy": Seen()}
    bodies = {"good": small_request(1), "greedy": small_request(rows)}
    with TorchServe(folder / "server") as server:
        answer = server.register(archive)
        assert answer.is_success, answer.text
        address = str(server.inference.base_url).removeprefix("http://").rstrip("/")
        stop = time.monotonic() + seconds
        threads = [
            threading.Thread(target=_client, args=(address, bodies[kind], seen[kind], stop))
            for kind in seen
            for _ in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return seen


def _client(address: str, body: bytes, seen: Seen, stop: float) -> None:
    connection = http.client.HTTPConnection(address, timeout=120)
    while time.monotonic() < stop:
        began = time.perf_counter()
        headers = {"Content-Type": "application/json"}
        connection.request("POST", f"/predictions/{NAME}", body, headers)
        answer = connection.getresponse()
        answer.read()
        seen.seconds.append(time.perf_counter() - began)
        seen.statuses[answer.status] += 1
    connection.close()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.neighbours", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    arguments = parser.parse_args()
    for rows in (REFUSED_ROWS, Limits().rows_per_request):
        with tempfile.TemporaryDirectory() as folder:
            seen = serve_both(Path(folder), rows, arguments.seconds)
        size = len(small_request(rows))
        for kind, one in seen.items():
            slowest = max(one.seconds)
            print(  # noqa: T201
                f"{size} bytes, batch_size {rows}: {kind}: {dict(one.statuses)}, "
                f"p99 {one.p99():.3f} s, slowest {slowest:.3f} s"
            )


if __name__ == "__main__":
    main()
