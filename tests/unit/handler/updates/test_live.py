"""Rows that are read and written by several processes, some of which are killed."""

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.support import updating
from tests.support.paths import ROOT
from torchrec_handler.errors import Unusable
from torchrec_handler.updates.live import Live, live_folder


@pytest.fixture
def live(tmp_path: Path) -> Live:
    """A live copy of which this process is a reader."""
    return updating.open_live(tmp_path)


def writer(folder: Path, kind: str, count: int) -> "subprocess.Popen[bytes]":
    arguments = [str(folder), kind, str(count)]
    return subprocess.Popen([sys.executable, "-m", "tests.support.updating", *arguments], cwd=ROOT)


def seen(live: Live) -> set[int]:
    """What the tables' rows hold, read from the file as a lookup does."""
    whole = np.fromfile(live.path, np.uint8)
    tables = [whole[entry.offset :][: entry.nbytes] for entry in updating.ENTRIES.values()]
    return {int(number) for table in tables for number in (table.min(), table.max())}


def test_rows_are_those_of_a_generation(live: Live, tmp_path: Path) -> None:
    live.apply(updating.read(updating.publish(tmp_path, 1)), 0)
    live.apply(updating.read(updating.publish(tmp_path, 2)), 0)
    assert seen(live) == {2}
    control = live.control
    assert (control.served, control.served_sha256, control.run) == (2, f"{2:064x}", "run")
    assert (control.deltas, control.rows) == (2, 2 * updating.ROWS * updating.TABLES)
    assert control.served_created == 1.5e15
    assert control.pause >= control.waited


def test_a_copy_is_made_piece_by_piece(
    live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchrec_handler.updates.live.BLOCK", 2**13)
    tables, made = tmp_path / "tables.bin", live.path.with_suffix(".new")
    tables.write_bytes(np.random.default_rng(0).bytes(updating.SIZE))
    with made.open("wb") as file:
        file.truncate(updating.SIZE)
        assert live.made_bytes() == 0
        file.write(bytes(2**13))
        file.flush()
        os.fsync(file.fileno())
        assert live.made_bytes() == 2**13
    live.make(tables)
    assert live.path.read_bytes() == tables.read_bytes()
    assert (live.control.copy, live.made_bytes()) == (2, 0)


def test_what_is_half_written_is_written_again_by_the_next_reader(
    live: Live, tmp_path: Path
) -> None:
    assert writer(tmp_path, "dying", 1).wait() == -9
    assert live.control.turns % 2
    live.enter()
    live.leave()
    assert seen(live) == {1}
    assert (live.control.served, live.control.redone) == (1, 1)


def test_without_that_readers_would_see_two_generations(live: Live, tmp_path: Path) -> None:
    assert writer(tmp_path, "dying", 1).wait() == -9
    live.gate.enter()
    live.gate.leave()
    assert seen(live) == {0, 1}


def test_half_written_rows_whose_delta_is_gone_are_of_no_use(live: Live, tmp_path: Path) -> None:
    assert writer(tmp_path, "dying", 1).wait() == -9
    path = tmp_path / "00000001.delta"
    path.unlink()
    with pytest.raises(Unusable) as error:
        live.enter()
    assert str(error.value) == (
        f"{path}: its rows are half written, and it cannot be read "
        f"([Errno 2] No such file or directory: '{path}')"
    )
    path.write_text("7", encoding="ascii")
    with pytest.raises(Unusable) as error:
        live.enter()
    assert str(error.value) == f"{path}: its rows are half written, and it is another delta now"
    live.make(tmp_path / "tables.bin")
    live.enter()
    assert (live.control.served, live.control.copy, seen(live)) == (0, 2, {0})


def mixes(live: Live, folder: Path, *, is_gated: bool) -> tuple[int, int]:
    """Reads while another process writes 30 generations, and those that saw several."""
    process = writer(folder, "slow", 30)
    total = mixed = 0
    while process.poll() is None:
        if is_gated:
            live.enter()
        found = seen(live)
        total += 1
        mixed += found != ({live.control.served % 251} if is_gated else {min(found)})
        if is_gated:
            live.leave()
    assert process.returncode == 0
    return total, mixed


def test_no_reader_sees_two_generations(live: Live, tmp_path: Path) -> None:
    total, mixed = mixes(live, tmp_path, is_gated=True)
    assert total > 30
    assert mixed == 0


def test_without_the_gate_readers_see_two_generations(live: Live, tmp_path: Path) -> None:
    # On a busy machine the two may take turns for as long as one run lasts.
    assert any(mixes(live, tmp_path, is_gated=False)[1] for _ in range(20))


def test_writers_that_are_killed_harm_nobody(live: Live, tmp_path: Path) -> None:
    delays = random.Random(0)  # noqa: S311  no secret
    for _ in range(2):
        process = writer(tmp_path, "slow", 10_000)
        before = live.control.served
        while live.control.served == before:
            time.sleep(0.001)
        end = time.monotonic() + delays.uniform(0.01, 0.05)
        while time.monotonic() < end:
            live.enter()
            assert seen(live) == {live.control.served % 251}
            live.leave()
        process.kill()
        process.wait()
    live.enter()
    assert seen(live) == {live.control.served % 251}


def test_a_writer_waits_for_forward_calls_and_lets_none_begin(live: Live, tmp_path: Path) -> None:
    delta = updating.read(updating.publish(tmp_path, 1))
    live.enter()
    other = updating.open_live(tmp_path)
    writing = threading.Thread(target=other.apply, args=(delta, 0))
    writing.start()
    while not live.control.wants:
        time.sleep(0.001)
    third = updating.open_live(tmp_path)
    entering = threading.Thread(target=third.enter)
    entering.start()
    time.sleep(0.02)
    assert (live.control.served, entering.is_alive()) == (0, True)
    live.leave()
    writing.join()
    entering.join()
    assert (live.control.served, live.control.wants) == (1, 0)


def test_a_copy_is_of_a_model_an_archive_a_boot_and_a_folder_of_deltas(tmp_path: Path) -> None:
    folder = live_folder(tmp_path, "a model", "0123456789abcdef" * 4, tmp_path)
    assert folder.parent == tmp_path
    assert folder.name[:-8] == "a_model-0123456789abcdef-"
    assert folder != live_folder(tmp_path, "a model", "0123456789abcdef" * 4, tmp_path / "other")
