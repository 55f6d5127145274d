"""Fuzzes a real TorchServe: good requests get their answers, whatever arrives beside them.

    python -m tests.fuzz.served --requests 300000

In all formats, over HTTP and gRPC, up to the largest size. It ends with a non-zero status when a
good request is failed or answered wrongly, when a bad one gets anything but an error of its own,
when the worker is another process afterwards, or when its memory has grown by more than 5 %.
"""

import argparse
import http.client
import json
import logging
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil

from tests.fuzz.requests import PROTOBUF, Call, bad_call, good_calls, hostile_calls
from tests.support.factories.fuzzed import FuzzedPredictFactory
from tests.support.grpc_client import GrpcClient
from torchrec_archiver import build_archive
from torchrec_archiver.server import TorchServe
from torchrec_handler.message.predictor_pb2 import PredictionResponse

logger = logging.getLogger(__name__)

NAME = "fuzzed"
CLIENTS = 16
GOOD = 0.5
"""The share of good requests."""
HOSTILE = 0.0005
GRPC = 0.25
"""The share of those that gRPC can carry which go over it."""
MOST_GROWTH = 0.05
WARM_SHARE = 0.25
"""Of the requests, those before the worker's memory is looked at first."""
LONGEST_MESSAGE = 3_000
ANSWERS = frozenset({200, 400, 404, 413, 415, 503})
MOST_TRIES = 100
MOST_FAULTS = 50
TOLERANCE = 1e-4


@dataclass(kw_only=True)
class Tally:
    """What clients saw."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    done: int = 0


def fuzz(
    folder: Path, *, requests: int, seed: int = 0, environment: Mapping[str, str] | None = None
) -> tuple[Tally, list[int], list[int]]:
    """Serve the model and send requests.

    Returns:
        The tally; the workers' pids before and after; their memory (USS, bytes) once warm and
        after.
    """
    archive = build_archive(
        model_name=NAME,
        version="1.0",
        factory=FuzzedPredictFactory,
        export_path=folder,
        config_file=_config(folder),
    )
    good = good_calls(300, seed)
    hostile = hostile_calls()
    with TorchServe(folder / "server", environment=environment) as server:
        answer = server.register(archive)
        assert answer.is_success, answer.text
        pids = [worker["pid"] for worker in server.workers(NAME)]
        process = psutil.Process(int(pids[0]))
        address = str(server.inference.base_url).removeprefix("http://").rstrip("/")
        memory = []
        tally = Tally()
        channel = GrpcClient(server.grpc_address, folder)
        # All that a worker may ever have to hold comes first.
        _send(address, channel, iter([*hostile, *good]), tally)
        for number, share in enumerate((WARM_SHARE, 1 - WARM_SHARE)):
            dice = random.Random(f"{seed} {number}")  # noqa: S311  no secret
            drawn = (_draw(good, hostile, dice) for _ in range(int(requests * share)))
            _send(address, channel, drawn, tally)
            memory.append(int(process.memory_full_info().uss))
        channel.close()
        after = [worker["pid"] for worker in server.workers(NAME)]
    return tally, [int(pids[0]), int(after[0])], memory


def _config(folder: Path) -> Path:
    path = folder / "model-config.yaml"
    path.write_text("torchrec:\n  tables:\n    dtype: float32\n", encoding="utf-8")
    return path


def _send(address: str, channel: GrpcClient, calls: Iterator[Call], tally: Tally) -> None:
    """Send from some threads at once."""
    lock = threading.Lock()

    def client() -> None:
        connection = http.client.HTTPConnection(address, timeout=120)
        while True:
            with lock:
                call = next(calls, None)
            if call is None:
                connection.close()
                return
            if call.over_grpc:
                status, fault = _call(channel, call)
            else:
                status, fault, connection = _ask(connection, address, call)
            kind = "good" if call.expected is not None else "bad"
            with lock:
                tally.done += 1
                tally.statuses[f"{kind} over gRPC" if call.over_grpc else kind, status] += 1
                if fault and len(tally.faults) < MOST_FAULTS:
                    tally.faults.append(fault)

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _draw(good: list[Call], hostile: list[Call], dice: random.Random) -> Call:
    call = _drawn(good, hostile, dice)
    return replace(call, over_grpc=call.fits_grpc and dice.random() < GRPC)


def _drawn(good: list[Call], hostile: list[Call], dice: random.Random) -> Call:
    chance = dice.random()
    if chance < HOSTILE:
        return dice.choice(hostile)
    call = dice.choice(good)
    if call.rows > 1_000 and dice.random() < 0.9:
        call = dice.choice(good)
    if chance < GOOD:
        return call
    while call.rows > 300:
        call = dice.choice(good)
    return bad_call(call, dice)


def _ask(
    connection: http.client.HTTPConnection, address: str, call: Call
) -> tuple[int, str | None, http.client.HTTPConnection]:
    """The status, what is wrong with the answer, and the connection to go on with."""
    for _ in range(MOST_TRIES):
        try:
            connection.request(
                "POST", f"/predictions/{NAME}{call.path}", call.body, dict(call.headers)
            )
            answer = connection.getresponse()
            status, content = answer.status, answer.read()
            content_type = answer.headers.get("Content-Type", "")
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            connection = http.client.HTTPConnection(address, timeout=120)
            return 0, f"no answer ({error!r}) to {_shown(call)}", connection
        if status != 503 or not call.may_wait:
            break
        time.sleep(0.1)
    fault = _judge(call, status, content_type, content)
    return status, fault, connection


def _call(channel: GrpcClient, call: Call) -> tuple[int, str | None]:
    """The status, which TorchServe's gRPC leaves to the body, and what is wrong with the answer."""
    for _ in range(MOST_TRIES):
        try:
            content = channel.predict(NAME, data=call.body, qualname=call.qualname.encode())
        except grpc.RpcError as error:
            return 0, f"no answer ({error!r}) to {_shown(call)}"
        said = json.loads(content) if content.startswith(b"{") else {}
        status = int(said.get("code", 200))
        if status != 503 or not call.may_wait:
            break
        time.sleep(0.1)
    return status, _judge(call, status, call.headers["Content-Type"], content)


def _judge(call: Call, status: int, content_type: str, content: bytes) -> str | None:
    if call.expected is None:
        if status not in ANSWERS:
            return f"status {status}, {content[:300]!r} to {_shown(call)}"
        if status != 200 and len(content) > LONGEST_MESSAGE:
            return f"status {status} with {len(content)} bytes to {_shown(call)}"
        return None
    if status != 200:
        return f"a good request got {status}, {content[:300]!r}: {_shown(call)}"
    outputs = _outputs(content_type, content)
    for name, expected in call.expected.items():
        received = np.asarray(outputs.get(name, ()), np.float64)
        if received.shape != expected.shape or not np.allclose(
            received, expected, rtol=TOLERANCE, atol=TOLERANCE
        ):
            return f"a wrong answer, {name} {received[:5]} for {expected[:5]}: {_shown(call)}"
    return None


def _outputs(content_type: str, content: bytes) -> dict[str, Any]:
    if content_type.startswith(PROTOBUF):
        message = PredictionResponse.FromString(content)
        return {name: list(vector.data) for name, vector in message.predictions.items()}
    document: dict[str, Any] = json.loads(content)
    if "outputs" in document:
        return {output["name"]: output["data"] for output in document["outputs"]}
    return document


def _shown(call: Call) -> str:
    return f"{call.path} {dict(call.headers)} {len(call.body)} bytes {call.body[:200]!r}"


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=300_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tally, pids, memory = fuzz(Path(folder), requests=options.requests, seed=options.seed)
    took = time.monotonic() - begun
    logger.info("%d requests in %.0f s: %s", tally.done, took, dict(tally.statuses))
    logger.info("worker %d -> %d, memory %d -> %d bytes", *pids, *memory)
    for fault in tally.faults:
        logger.error("%s", fault)
    grown = memory[1] > memory[0] * (1 + MOST_GROWTH)
    return int(bool(tally.faults) or pids[0] != pids[1] or grown)


if __name__ == "__main__":
    sys.exit(main())
