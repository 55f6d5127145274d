"""What forward calls see of a folder of deltas."""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.support.followed import BASE, ENTRIES, OTHER, Dense, Server
from torchrec_handler.errors import LoadError, Unusable
from torchrec_handler.updates.live import live_folder
from torchrec_handler.updates.served import Served
from torchrec_handler.updates.workers import Seat, missing


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


def rows(served: Served[Dense]) -> bytes:
    """What lookups read, of whichever file."""
    return bytes(served._store.buffer.numpy().tobytes())


def soon(is_so: Callable[[], bool]) -> bool:
    end = time.monotonic() + 10
    while not (found := is_so()) and time.monotonic() < end:
        time.sleep(0.002)
    return found


def entered(served: Served[Dense]) -> int:
    served.enter()
    served.leave()
    return served.sequence


def test_the_archive_is_served_until_there_is_a_copy(server: Server) -> None:
    served = server.serve()
    address = served._store.buffer.data_ptr()
    assert served.sequence == 0
    server.publish()
    assert soon(lambda: entered(served) == 1)
    assert rows(served) == server.state
    assert served._store.buffer.data_ptr() == address
    assert (server.archive / "tables.bin").read_bytes() == bytes(len(server.state))
    served.following.stop()


def test_a_worker_begins_with_what_is_published(server: Server) -> None:
    for _ in range(3):
        server.publish()
    served = server.serve()
    assert (served.sequence, rows(served)) == (3, bytes(server.state))
    second = server.serve()
    assert (second.sequence, rows(second)) == (3, bytes(server.state))
    for one in (served, second):
        one.following.stop()


def test_rows_stay_those_of_a_generation_while_they_are_looked_up(server: Server) -> None:
    server.publish()
    served = server.serve()
    served.enter()
    before = rows(served)
    server.publish()
    assert soon(lambda: served._control.wants == 1)
    time.sleep(0.02)
    assert (served.sequence, rows(served)) == (1, before)
    served.leave()
    assert soon(lambda: entered(served) == 2)
    assert rows(served) == server.state
    served.following.stop()


def bias(served: Served[Dense]) -> float:
    """What tells dense weights apart."""
    return float(served.model["over.weight"][0, 0])


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"over.weight": torch.full((2, 3), float(value))}


def test_dense_weights_change_with_the_rows(server: Server) -> None:
    workers = [server.serve(), server.serve()]
    seen: set[tuple[int, float]] = set()

    def sees(served: Served[Dense], sequence: int) -> bool:
        seen.add((entered(served), bias(served)))
        return served.sequence == sequence

    for sequence in range(1, 8):
        server.publish(**({"dense": weights(sequence)} if sequence % 2 else {}))
        for one in workers:
            assert soon(partial(sees, one, sequence))
            assert rows(one) == server.state
    assert seen <= {(0, 0), (1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (6, 5), (7, 7)}
    assert {sequence for sequence, _ in seen} >= {1, 3, 5, 7}
    folder = live_folder(server.live, "model", BASE, server.deltas)
    assert soon(lambda: [path.name for path in folder.glob("dense-*")] == ["dense-4.safetensors"])
    third = server.serve()
    assert (third.sequence, bias(third)) == (7, 7)
    for one in (*workers, third):
        one.following.stop()


def test_a_worker_that_is_late_makes_its_weights_itself(server: Server) -> None:
    server.publish()
    late, writer = server.serve(), server.serve()
    late.following.stop()
    late.following.follower.resign()
    late.following.follower._seat.tell(1)
    server.publish(dense=weights(2))
    assert soon(lambda: entered(writer) == 2)
    assert late._weights.ready.number == 0
    assert (entered(late), bias(late)) == (2, 2)
    writer.following.stop()


def test_workers_that_are_gone_are_not_waited_for(tmp_path: Path) -> None:
    first, second = Seat(tmp_path), Seat(tmp_path)
    first.tell(3)
    assert missing(tmp_path, 3) == 1
    second.tell(3)
    assert missing(tmp_path, 3) == 0
    assert missing(tmp_path, 4) == 2
    os.close(second._file)
    assert missing(tmp_path, 4) == 1
    assert len(list((tmp_path / "workers").iterdir())) == 1


def test_a_copy_that_is_made_again_ends_workers_that_look_up_in_the_old_one(
    server: Server,
) -> None:
    server.publish()
    served = server.serve()
    served.following.stop()
    served._live.make(server.archive / "tables.bin")
    with pytest.raises(Unusable) as error:
        served.enter()
    assert str(error.value) == f"{served._live.path}: the live copy is made again"


def test_what_cannot_be_served_is_told_at_load(server: Server) -> None:
    server.publish()
    folder = live_folder(server.live, "model", BASE, server.deltas)
    (folder / "live.new").mkdir(parents=True)
    with pytest.raises(LoadError) as error:
        server.serve()
    assert str(error.value) == (
        f"torchrec.updates: [Errno 21] Is a directory: '{folder / 'live.new'}'"
    )


def test_it_tells_what_is_served(server: Server) -> None:
    server.publish(created=time.time() - 100)
    served = server.serve()
    assert 100 <= served.age < 110
    told = served.as_json()
    assert told.pop("age_seconds") == pytest.approx(100, abs=10)
    assert told == {
        "sequence": 1,
        "lag_sequences": 0,
        "gap_seconds": 0.0,
        "live_bytes": len(server.state),
        "run": server.line.run,
        "is_elected": True,
        "deltas": 1,
        "rows": 60,
        "redone": 0,
        "refused": {},
    }
    server.line.publish(sequence=3, previous=OTHER)
    assert soon(lambda: served.gap > 0)
    assert served.lag == 2
    served.following.stop()


def test_what_is_mapped_shows_rows_that_change_at_once(server: Server) -> None:
    """What holds the tensor, or has read where it lies, needs to know nothing."""
    server.publish()
    served = server.serve()
    kept = served._store.rows(ENTRIES[0])
    before = kept.clone()
    server.publish()
    assert soon(lambda: entered(served) == 2)
    assert not torch.equal(kept, before)
    assert kept.numpy().tobytes() == server.state[: ENTRIES[0].nbytes]
    served.following.stop()


def test_a_copy_whose_weights_are_gone_is_made_again(server: Server) -> None:
    server.publish(dense=weights(1))
    served = server.serve()
    assert (served.sequence, bias(served)) == (1, 1)
    served.following.stop()
    served.following.follower.resign()
    os.close(served.following.follower._seat._file)
    folder = live_folder(server.live, "model", BASE, server.deltas)
    (folder / "dense-1.safetensors").unlink()
    late = server.serve()
    assert (late.sequence, bias(late), rows(late)) == (1, 1, bytes(server.state))
    with pytest.raises(Unusable):
        served.enter()
    late.following.stop()
