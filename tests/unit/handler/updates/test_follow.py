"""Deltas of a folder, taken in order or refused as a whole."""

import logging
import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import updating
from tests.support.followed import BASE, ENTRIES, OTHER, Server
from tests.support.keys import make_keys
from tests.support.line import drawn
from torchrec_handler.archive.delta import read_delta
from torchrec_handler.archive.format import TableKey
from torchrec_handler.errors import OptionError
from torchrec_handler.updates.follow import Following
from torchrec_handler.updates.place import hold_folder


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


def test_deltas_are_taken_in_order(server: Server) -> None:
    assert server.follower.step()
    assert server.is_right()
    for _ in range(20):
        server.publish()
    assert server.follower.step()
    control = server.follower._control
    assert (control.served, control.served_sha256) == (20, server.line.previous)
    assert (control.run, control.caught_up) == (server.line.run, 1)
    assert server.follower.counts.deltas == 20
    assert server.is_right()


def test_one_worker_is_elected_and_another_one_after_it(server: Server) -> None:
    second = server.worker()
    assert server.follower.step()
    assert (server.follower.is_elected, second.is_elected) == (True, False)
    assert second.step()
    server.publish()
    second.step()
    assert server.follower._control.served == 0
    server.follower.resign()
    assert second.step()
    assert (second.is_elected, second._control.served) == (True, 1)
    assert server.is_right()


def test_a_gap_is_waited_for(server: Server, tmp_path: Path) -> None:
    server.publish()
    missing = server.publish()
    kept = shutil.move(missing, tmp_path / missing.name)
    server.publish()
    server.follower.step()
    control = server.follower._control
    assert (control.served, control.published) == (1, 3)
    assert 0 <= time.time() - control.gap_since / 1e6 < 10
    shutil.move(kept, missing)
    server.follower.step()
    assert (control.served, control.published, control.gap_since) == (3, 3, 0)
    assert server.is_right()


def test_a_squashed_delta_closes_a_gap(server: Server) -> None:
    server.publish()
    server.follower.step()
    second, third = server.publish(), server.publish()
    heads = [read_delta(path).head for path in (second, third)]
    tables = read_delta(third).tables + read_delta(second).tables
    joined = {table.key: table for table in tables}
    for path in (second, third):
        path.unlink()
    server.line.publish(
        list(joined.values()),
        sequence=3,
        previous=heads[0].previous,
        covered=tuple(head.digest for head in heads),
    )
    server.publish()
    server.follower.step()
    assert server.follower._control.served == 4


def test_a_server_that_starts_again_takes_all_of_them(server: Server) -> None:
    for _ in range(3):
        server.publish()
    server.follower.step()
    server.follower.resign()
    shutil.rmtree(server.live)
    server.live.mkdir()
    again = server.worker()
    again.step()
    assert again._control.served == 3
    assert server.is_right()
    server.publish()
    again.step()
    assert (again._control.served, again.counts.refused.total()) == (4, 0)
    assert server.is_right()


def bad(**changes: object) -> Callable[[Server], Path]:
    """A table that is none of an archive's, or holds what no table may hold."""

    def publish(server: Server) -> Path:
        table = drawn(ENTRIES[0], 20, server.dice)
        rows = table.rows.copy()
        if "nan" in changes:
            rows[3, 1] = 0x7E
            return server.line.publish([replace(table, rows=rows)])
        return server.line.publish([replace(table, **changes)])  # type: ignore[arg-type]

    return publish


def ids(*given: int) -> Callable[[Server], Path]:
    chosen = np.array(given, np.int64)
    return bad(ids=chosen, rows=np.ones((len(given), updating.ROW_BYTES), np.uint8))


def cut(server: Server) -> Path:
    path = server.line.publish([drawn(ENTRIES[0], 20, server.dice)])
    path.write_bytes(path.read_bytes()[:-1])
    return path


def flipped(server: Server) -> Path:
    path = server.line.publish([drawn(ENTRIES[0], 20, server.dice)])
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return path


def forked(server: Server) -> Path:
    """Another delta of a generation that is served."""
    (server.deltas / "00000001.delta").unlink()
    table = drawn(ENTRIES[0], 20, server.dice)
    return server.line.publish([table], sequence=1, previous=BASE)


def given(**others: object) -> Callable[[Server], Path]:
    return lambda server: server.line.publish([drawn(ENTRIES[0], 20, server.dice)], **others)


REFUSED: dict[str, tuple[Callable[[Server], Path], str, str | None]] = {
    "base": (
        given(base=OTHER),
        "base",
        f"was made for the archive {OTHER[:16]}…, this is {BASE[:16]}…",
    ),
    "run": (
        given(run="6f8f5771-5090-4a26-b245-3988d9a1501b"),
        "run",
        "is of the run 6f8f5771-5090-4a26-b245-3988d9a1501b, but RUN is served",
    ),
    "previous": (
        given(previous=OTHER),
        "previous",
        (
            f"follows {OTHER[:16]}… as generation 2, but SERVED… is served; it belongs to another "
            "line of deltas"
        ),
    ),
    "fork": (
        forked,
        "fork",
        "is OWN… as generation 1, but FIRST… was served; it belongs to another line of deltas",
    ),
    "cut": (cut, "damaged", None),
    "flipped": (flipped, "damaged", None),
    "negative": (ids(-1, 4), "ids", None),
    "beyond": (ids(4, updating.ROWS), "ids", None),
    "unsorted": (ids(4, 3), "ids", None),
    "repeated": (ids(4, 4), "ids", None),
    "table": (bad(key=TableKey("tables", "other")), "table", None),
    "bytes": (bad(ids=np.arange(2), rows=np.ones((2, 67), np.uint8)), "table", None),
    "nan": (bad(nan=True), "values", None),
    "weight": (given(dense={"other": torch.zeros(2)}), "dense", None),
    "shape": (given(dense={"over.weight": torch.zeros(3, 2)}), "dense", None),
    "infinite": (given(dense={"over.weight": torch.full((2, 3), torch.inf)}), "values", None),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_as_a_whole(
    server: Server, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.publish()
    server.publish()
    first = read_delta(server.deltas / "00000001.delta").head.digest
    server.follower.step()
    served = server.follower._control.served_sha256
    publish, reason, why = REFUSED[name]
    kept = server.line.sequence, server.line.previous
    path = publish(server)
    own = server.line.previous
    if why is not None:
        said = why.replace("RUN", server.follower._control.run)
        for word, digest in {"SERVED": served, "FIRST": first, "OWN": own}.items():
            said = said.replace(f"{word}…", f"{digest[:16]}…")
    with caplog.at_level(logging.ERROR):
        server.follower.step()
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"Delta refused ({reason}): {path.name}: ")
    if why is not None:
        assert line == f"Delta refused ({reason}): {path.name}: {said}"
    assert server.follower.counts.refused == {reason: 1}
    assert not path.exists()
    assert path.with_name(f"{path.name}.refused").exists()
    assert server.is_right()
    server.line.sequence, server.line.previous = kept
    server.publish()
    server.follower.step()
    assert server.follower._control.served == 3
    assert server.is_right()


def test_where_keys_are_trusted_deltas_need_a_signature(server: Server, tmp_path: Path) -> None:
    private, public = make_keys(tmp_path, "trainer")
    follower = server.worker(keys=(public,))
    signed = server.publish(private_key=private)
    follower.step()
    assert follower._control.served == 1
    kept = server.line.previous
    unsigned = given()(server)
    follower.step()
    assert follower.counts.refused == {"signature": 1}
    server.line.sequence, server.line.previous = 1, kept
    assert server.publish(private_key=private).name == unsigned.name
    follower.step()
    assert (follower._control.served, signed.exists()) == (2, True)
    assert server.is_right()


def test_fuzzed_deltas_are_refused(server: Server) -> None:
    server.publish()
    server.follower.step()
    good = given()(server)
    content = good.read_bytes()
    dice = random.Random(0)  # noqa: S311  no secret
    for _ in range(100):
        fuzzed = bytearray(content)
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(fuzzed) if dice.random() < 0.5 else 600)
            fuzzed[at] ^= dice.randrange(1, 256)
        if dice.random() < 0.2:
            del fuzzed[dice.randrange(len(fuzzed)) :]
        good.with_name("new").write_bytes(fuzzed)
        good.with_name("new").replace(good)
        server.follower.step()
        assert not good.exists()
    assert server.follower.counts.refused.total() == 100
    assert (server.follower._control.served, server.is_right()) == (1, True)


def test_a_thread_goes_on_after_what_it_cannot_do(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    tables = server.archive / "tables.bin"
    tables.rename(server.archive / "hidden")
    following = Following(server.follower, 0.001)
    assert following.ready.wait(10)
    assert isinstance(following.failure, FileNotFoundError)
    assert [record.getMessage() for record in caplog.records] == ["Updates stand still"]
    (server.archive / "hidden").rename(tables)
    server.publish()
    end = time.monotonic() + 10
    while server.follower._control.served != 1 and time.monotonic() < end:
        time.sleep(0.01)
    following.stop()
    assert server.follower._control.served == 1
    assert server.is_right()


def test_copies_that_nobody_holds_are_removed(tmp_path: Path) -> None:
    first, held = hold_folder(tmp_path, "ranking", BASE, tmp_path)
    again, held_again = hold_folder(tmp_path, "ranking", BASE, tmp_path)
    assert again == first
    stranger, of_stranger = hold_folder(tmp_path, "other", BASE, tmp_path)
    second, other = hold_folder(tmp_path, "ranking", OTHER, tmp_path)
    assert all(folder.exists() for folder in (first, second, stranger))
    for one in (held, held_again):
        os.close(one)
    recent, held_recently = hold_folder(tmp_path, "ranking", OTHER, tmp_path / "recent")
    os.close(held_recently)
    for folder in (first, stranger):
        os.utime(folder, (0, 0))
    third, last = hold_folder(tmp_path, "ranking", OTHER, tmp_path / "elsewhere")
    assert sorted(tmp_path.iterdir()) == sorted([second, third, stranger, recent])
    for one in (of_stranger, other, last):
        os.close(one)


def test_a_place_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError) as error:
        hold_folder(tmp_path / "none", "ranking", BASE, tmp_path)
    assert str(error.value) == (
        f"torchrec.updates.place: received '{tmp_path / 'none'}', in which no folder can be made "
        "(No such file or directory)"
    )
