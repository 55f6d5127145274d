"""One server under load: the requests, its scores beside the reference, its figures."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

import httpx
import numpy as np
import psutil

from benchmarks.bodies import Body, Format, Scores, write_http
from benchmarks.contenders import Contender
from benchmarks.environments import environment
from benchmarks.load import Figures, load
from benchmarks.peers.stock import Inputs, StockModel, random_inputs
from benchmarks.starting import Material, Running

BODIES = 200

LOADS: Mapping[int, tuple[int, ...]] = {1: (1, 16, 64), 100: (1, 4, 16), 1000: (1, 4, 16)}
"""Rows of a request -> connections."""

CHECKED_ROWS = 4000
"""How many rows of requests of one size are compared with the reference."""

CHECK_CONNECTIONS = 16

LEAST_DEVIATION = 0.05
"""Of the scores: where all rows score the same, equal scores show nothing."""

START_SECONDS = 60

FIRST_WARM_UP_SECONDS = 10
"""Of a server: Java compiles what runs often meanwhile; the others lose nothing."""

WARM_UP_SECONDS = 1


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is asked, and what must be answered."""

    loads: Mapping[int, Sequence[int]]
    """Rows of a request -> connections."""
    inputs: Mapping[int, Sequence[Inputs]]
    """Rows of a request -> the distinct requests."""
    scores: Mapping[int, Sequence[Scores]]
    """Rows of a request -> the scores of the first of them, at most `CHECKED_ROWS` rows."""


@dataclass(frozen=True, kw_only=True)
class Point(Figures):
    """One load on one server."""

    format: str
    rows: int
    connections: int
    rows_per_second: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """One server's figures, or why there are none."""

    name: str
    title: str
    workers: int
    measured_at: str
    machine_load: float
    """What else ran: the load average of the minute before."""
    problem: str = ""
    first_answer_seconds: float = 0.0
    """From starting the server to its first answer."""
    largest_difference: float = 0.0
    """Of its scores to the reference."""
    memory_mb: float = 0.0
    """Proportional memory (PSS) of all its processes, after the load."""
    points: tuple[Point, ...] = ()


class Failure(Exception):
    """A server does not what it must."""


PROBLEMS = (
    Failure,
    RuntimeError,
    OSError,
    subprocess.SubprocessError,
    psutil.Error,
    httpx.HTTPError,
)
"""What becomes a line of the report, and does not end the run."""


def make_workload(model: StockModel, loads: Mapping[int, Sequence[int]] = LOADS) -> Workload:
    """Draw the requests, seeded, and score them with TorchRec's own quantized module.

    Raises:
        Failure: scores differ too little from row to row to compare anything by them.
    """
    random = np.random.default_rng(0)
    inputs = {rows: [random_inputs(rows, random) for _ in range(BODIES)] for rows in loads}
    scores = {
        rows: [model(one) for one in requests[: max(1, CHECKED_ROWS // rows)]]
        for rows, requests in inputs.items()
    }
    for rows, some in scores.items():
        deviation = float(np.concatenate(some).std())
        if deviation < LEAST_DEVIATION:
            message = f"scores of {rows}-row requests: deviation {deviation}, expected more"
            raise Failure(message)
    return Workload(loads=loads, inputs=inputs, scores=scores)


def measure(contender: Contender, material: Material, workload: Workload, seconds: float) -> Result:
    """Start a server, check its scores, load it, stop it."""
    shutil.rmtree(material.folder, ignore_errors=True)
    material.folder.mkdir(parents=True)
    result = Result(
        name=contender.name,
        title=contender.title,
        workers=contender.workers,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine_load=os.getloadavg()[0],
    )
    try:
        if contender.peer:
            environment(contender.peer)
        began = time.perf_counter()
        with contender.start(material, contender.workers) as running:
            first = contender.formats[0]
            await_answer(running, first.write(workload.inputs[1][0]))
            to_first = time.perf_counter() - began
            warm_up(running, first, workload, material)
            difference = max(
                check(running, one, workload, contender.tolerance) for one in contender.formats
            )
            points = tuple(
                point
                for one in contender.formats
                for point in load_all(running, one, workload, material, seconds)
            )
            memory = sum(one.memory_full_info().pss for one in running.processes()) / 1e6
    except PROBLEMS as error:
        return replace(result, problem=f"{type(error).__name__}: {error}")
    return replace(
        result,
        first_answer_seconds=to_first,
        largest_difference=difference,
        memory_mb=memory,
        points=points,
    )


def warm_up(running: Running, format_: Format, workload: Workload, material: Material) -> None:
    """Load a server until what it compiles on the way is compiled."""
    requests = material.folder / "requests.bin"
    write_http(requests, running.target, [format_.write(one) for one in workload.inputs[1]])
    connections = max(workload.loads[1])
    load(running.address, requests, connections=connections, seconds=FIRST_WARM_UP_SECONDS)


def better(old: Result, new: Result) -> Result:
    """Of two rounds the better figures of each load, and what was worst in anything else."""
    if old.problem or new.problem:
        return old if old.problem else new
    return replace(
        new,
        first_answer_seconds=min(old.first_answer_seconds, new.first_answer_seconds),
        largest_difference=max(old.largest_difference, new.largest_difference),
        memory_mb=max(old.memory_mb, new.memory_mb),
        points=tuple(
            max(pair, key=lambda point: point.rows_per_second)
            for pair in zip(old.points, new.points, strict=True)
        ),
    )


def await_answer(running: Running, body: Body) -> None:
    """Ask until there is an answer.

    Raises:
        Failure: the server ended, or does not answer in time; with the end of its log.
    """
    began = time.perf_counter()
    said = ""
    with httpx.Client(base_url=running.address, timeout=60) as client:
        while time.perf_counter() - began < START_SECONDS and running.processes():
            try:
                answer = _ask(client, running, body)
                if answer.is_success:
                    return
                said = f" but {answer.status_code} ({answer.text[:500]})"
            except httpx.TransportError:
                pass
            time.sleep(0.05)
    waited = time.perf_counter() - began
    message = f"no answer{said} in {waited:.0f} s; its log ends with: {running.log()[-2000:]}"
    raise Failure(message)


def check(running: Running, format_: Format, workload: Workload, tolerance: float) -> float:
    """Compare scores with the reference, of requests that are sent at once and may share a batch.

    Returns:
        The largest difference.

    Raises:
        Failure: an error is answered, or a difference is larger than `tolerance`.
    """

    def difference(client: httpx.Client, inputs: Inputs, expected: Scores) -> float:
        answer = _ask(client, running, format_.write(inputs))
        if not answer.is_success:
            message = f"{format_.name}: answered {answer.status_code}: {answer.text[:500]}"
            raise Failure(message)
        scores = format_.read(answer)
        if not format_.has_scores:
            return 0.0
        if scores.shape != expected.shape:
            message = f"{format_.name}: {scores.shape} scores, expected {expected.shape}"
            raise Failure(message)
        return float(np.abs(scores - expected).max())

    largest = 0.0
    limits = httpx.Limits(max_connections=CHECK_CONNECTIONS)
    with (
        httpx.Client(base_url=running.address, timeout=60, limits=limits) as client,
        ThreadPoolExecutor(CHECK_CONNECTIONS) as pool,
    ):
        for rows, scores in workload.scores.items():
            inputs = workload.inputs[rows][: len(scores)]
            clients = [client] * len(scores)
            largest = max(largest, *pool.map(difference, clients, inputs, scores))
    if largest > tolerance:
        message = f"{format_.name}: scores differ by {largest:.2g}, at most {tolerance} is allowed"
        raise Failure(message)
    return largest


def load_all(
    running: Running, format_: Format, workload: Workload, material: Material, seconds: float
) -> Iterator[Point]:
    """Load a server with every number of rows and connections.

    Raises:
        Failure: a request got an error, or none was answered.
    """
    for rows, inputs in workload.inputs.items():
        requests = material.folder / "requests.bin"
        write_http(requests, running.target, [format_.write(one) for one in inputs])
        for connections in workload.loads[rows]:
            load(running.address, requests, connections=connections, seconds=WARM_UP_SECONDS)
            figures = load(running.address, requests, connections=connections, seconds=seconds)
            if figures.errors or not figures.requests_per_second:
                message = (
                    f"{format_.name}: {figures.errors} errors and "
                    f"{figures.requests_per_second:.0f} answers a second at {rows} rows and "
                    f"{connections} connections; the log ends with: {running.log()[-2000:]}"
                )
                raise Failure(message)
            yield Point(
                format=format_.name,
                rows=rows,
                connections=connections,
                rows_per_second=figures.requests_per_second * rows,
                **asdict(figures),
            )


def _ask(client: httpx.Client, running: Running, body: Body) -> httpx.Response:
    return client.post(running.target, content=body.content, headers=dict(body.headers))
