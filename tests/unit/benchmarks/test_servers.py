"""The parts of `make bench`, against a server of one answer."""

import json
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

import httpx
import numpy as np
import pytest

from benchmarks import load
from benchmarks.bodies import (
    COLUMNS,
    KSERVE_BINARY,
    KSERVE_JSON,
    PROTOBUF,
    TABLE,
    Format,
    write_http,
)
from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.measuring import (
    Failure,
    Point,
    Result,
    Workload,
    await_answer,
    better,
    check,
    measure,
)
from benchmarks.peers.stock import (
    FEATURES,
    Inputs,
    cut,
    merge,
)
from benchmarks.servers import HEADINGS, lines
from benchmarks.servers import merge as merge_results
from benchmarks.starting import Material, Running
from tests.support.answering import answering, some_inputs
from tests.support.paths import ROOT
from torchrec_handler.message.predictor_pb2 import PredictionRequest


@pytest.mark.parametrize("format_", [COLUMNS, PROTOBUF, KSERVE_JSON, KSERVE_BINARY, TABLE])
def test_a_body_holds_the_request(format_: Format) -> None:
    """Every format carries the same numbers, whichever layout a server wants."""
    inputs = some_inputs(3)
    body = format_.write(inputs)
    values = inputs.values.reshape(FEATURES, 3)
    if format_ is PROTOBUF:
        message = PredictionRequest.FromString(body.content)
        assert message.batch_size == 3
        assert message.float_features.values == inputs.dense.tobytes()
        assert message.id_list_features.lengths == inputs.lengths.tobytes()
        assert message.id_list_features.values == inputs.values.tobytes()
    elif format_ is KSERVE_BINARY:
        size = int(body.headers["Inference-Header-Content-Length"])
        shapes = [entry["shape"] for entry in json.loads(body.content[:size])["inputs"]]
        assert shapes == [[3, 13], [3, FEATURES], [3, FEATURES]]
        ids = np.frombuffer(body.content[-values.nbytes :], dtype=np.int32)
        np.testing.assert_array_equal(ids.reshape(3, FEATURES), values.T)
    else:
        document = json.loads(body.content)
        if format_ is COLUMNS:
            dense, ids = document["float_features"], document["id_list_features.values"]
            np.testing.assert_array_equal(ids, inputs.values)
        elif format_ is KSERVE_JSON:
            dense, _, ids = (entry["data"] for entry in document["inputs"])
            np.testing.assert_array_equal(np.reshape(ids, (3, FEATURES)), values.T)
        else:
            dense, ones, ids = np.split(np.array(document["rows"]), [13, 13 + FEATURES], axis=1)
            assert (ones == 1).all()
            np.testing.assert_array_equal(ids, values.T)
        np.testing.assert_allclose(np.reshape(dense, (3, 13)), inputs.dense, rtol=1e-6)


def test_scores_are_read_from_every_format() -> None:
    scores = np.array([0.25, 0.5], dtype=np.float32)
    header = b'{"outputs": []}'
    for format_, answer in (
        (COLUMNS, httpx.Response(200, content=b'{"default": [0.25, 0.5]}')),
        (KSERVE_JSON, httpx.Response(200, content=b'{"outputs": [{"data": [0.25, 0.5]}]}')),
        (
            KSERVE_BINARY,
            httpx.Response(
                200,
                content=header + scores.tobytes(),
                headers={"Inference-Header-Content-Length": str(len(header))},
            ),
        ),
        (TABLE, httpx.Response(200, content=b"[0.25, 0.5]")),
    ):
        np.testing.assert_array_equal(format_.read(answer), scores)


def test_requests_of_a_file_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "requests.bin"
    bodies = [COLUMNS.write(some_inputs(rows)) for rows in (1, 2)]
    write_http(path, "/predict", bodies)
    rest = path.read_bytes()
    for body in bodies:
        size = int.from_bytes(rest[:4], "little")
        head, _, content = rest[4 : 4 + size].partition(b"\r\n\r\n")
        assert content == body.content
        assert head.split(b"\r\n") == [
            b"POST /predict HTTP/1.1",
            b"Host: 127.0.0.1",
            b"Content-Type: application/json",
            b"Content-Length: %d" % len(content),
        ]
        rest = rest[4 + size :]
    assert not rest


def test_peers_batch_as_torchrec_does() -> None:
    """The ids of feature 0 of all requests come first, whatever each request holds of it."""
    first = Inputs(
        dense=np.zeros((1, 13), dtype=np.float32),
        lengths=np.array([2] + [0] * (FEATURES - 1), dtype=np.int32),
        values=np.array([7, 8], dtype=np.int32),
    )
    second = Inputs(
        dense=np.ones((2, 13), dtype=np.float32),
        lengths=np.array([0, 1, 1, 0] + [0] * (2 * FEATURES - 4), dtype=np.int32),
        values=np.array([1, 2], dtype=np.int32),
    )
    merged = merge([first, second])
    np.testing.assert_array_equal(merged.values, [7, 8, 1, 2])
    np.testing.assert_array_equal(merged.lengths[:6], [2, 0, 1, 0, 1, 0])
    assert merged.rows == 3
    parts = cut(np.arange(3, dtype=np.float32), [first, second])
    assert [part.tolist() for part in parts] == [[0.0], [1.0, 2.0]]


def test_a_wrong_score_is_a_failure() -> None:
    inputs = some_inputs(1)
    right = np.array([0.5], dtype=np.float32)
    for body, message in (
        (
            b'{"default": [0.5002]}',
            "JSON columns: scores differ by 0.0002, at most 0.0001 is allowed",
        ),
        (b'{"default": [0.5, 0.5]}', "JSON columns: (2,) scores, expected (1,)"),
    ):
        workload = Workload(loads={1: (1,)}, inputs={1: [inputs]}, scores={1: [right]})
        with answering(200, body) as running, pytest.raises(Failure) as failure:
            check(running, COLUMNS, workload, 1e-4)
        assert str(failure.value) == message
    with answering(200, b'{"default": [0.50005]}') as running:
        assert check(running, COLUMNS, workload, 1e-4) == pytest.approx(5e-5, rel=1e-2)


def test_an_error_is_a_failure() -> None:
    inputs = some_inputs(1)
    workload = Workload(
        loads={1: (1,)}, inputs={1: [inputs]}, scores={1: [np.zeros(1, dtype=np.float32)]}
    )
    with answering(503, b"busy") as running, pytest.raises(Failure) as failure:
        check(running, COLUMNS, workload, 1e-4)
    assert str(failure.value) == "JSON columns: answered 503: busy"


def test_an_ended_server_is_not_waited_for() -> None:
    gone = Running(address="http://127.0.0.1:9", target="/", processes=list, log=lambda: "why")
    with pytest.raises(Failure) as failure:
        await_answer(gone, COLUMNS.write(some_inputs(1)))
    assert str(failure.value) == "no answer in 0 s; its log ends with: why"


def test_a_machine_without_wrk_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError) as failure:
        load.wrk()
    assert str(failure.value) == (
        "wrk: not found, expected it on the PATH; install it with: apt-get install wrk"
    )


def test_the_better_round_of_each_load_counts() -> None:
    def point(rows_per_second: float) -> Point:
        return Point(
            format="JSON columns",
            rows=1,
            connections=1,
            requests_per_second=rows_per_second,
            rows_per_second=rows_per_second,
            p50_ms=1000 / rows_per_second,
            p99_ms=1,
            max_ms=1,
            errors=0,
        )

    def result(*points: float, problem: str = "", memory_mb: float = 1) -> Result:
        return Result(
            name="ours",
            title="Ours",
            workers=1,
            measured_at="",
            machine_load=0,
            problem=problem,
            memory_mb=memory_mb,
            points=tuple(map(point, points)),
        )

    assert better(result(10, 40, memory_mb=2), result(20, 30)) == result(20, 40, memory_mb=2)
    failed = result(problem="fails")
    assert better(failed, result(10)) == better(result(10), failed) == failed


def broken(folder: Path, name: str) -> Result:
    """What is said of a server that cannot be started."""

    def start(_: Material, workers: int) -> AbstractContextManager[Running]:
        message = f"no {workers} workers here"
        raise RuntimeError(message)

    material = Material(archives={}, checkpoint=folder, folder=folder / "server")
    workload = Workload(loads={}, inputs={}, scores={})
    contender = Contender(name=name, title="Broken", start=start, formats=(COLUMNS,), workers=2)
    return measure(contender, material, workload, 1)


def test_a_server_that_does_not_start_is_reported(tmp_path: Path) -> None:
    result = broken(tmp_path, "broken")
    assert result.problem == "RuntimeError: no 2 workers here"
    assert list(lines(asdict(result))) == [["Broken", *["-"] * (len(HEADINGS) - 1)]]


def test_new_figures_replace_those_of_the_same_server(tmp_path: Path) -> None:
    old = [{"name": "triton", "problem": ""}, {"name": "ours", "problem": ""}]
    merged = merge_results(old, [broken(tmp_path, "triton")])
    assert [entry["name"] for entry in merged] == ["ours", "triton"]
    assert merged[1]["problem"] == "RuntimeError: no 2 workers here"


def test_every_peer_pins_what_it_needs() -> None:
    """One list a peer, each line one exact version."""
    lists = ROOT / "requirements" / "peers"
    wanted = {one.peer for one in CONTENDERS if one.peer} | {"plot"}
    assert {path.stem for path in lists.glob("*.txt")} == wanted
    for path in lists.glob("*.txt"):
        pins = [
            line
            for line in path.read_text(encoding="utf-8").splitlines()
            if not line.startswith("#")
        ]
        assert pins
        assert all(pin.count("==") == 1 for pin in pins), path
