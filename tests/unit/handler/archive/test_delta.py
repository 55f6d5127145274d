"""Delta files: what is written is read back, and whatever else a file holds is refused."""

import hashlib
import json
import os
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from tests.support.keys import make_keys
from torchrec_handler.archive import delta_read
from torchrec_handler.archive.delta import (
    ROLLBACK,
    Delta,
    TableRows,
    check_delta,
    check_signed,
    list_deltas,
    read_delta,
    read_head,
    remaps_of,
    signature_of,
    write_delta,
)
from torchrec_handler.archive.format import FORMAT_VERSION, Index, Signature, TableEntry, TableKey
from torchrec_handler.errors import DeltaError

BASE = hashlib.sha256(b"archive.json").hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()
RUN = "6f8f5771-5090-4a26-b245-3988d9a1501b"
MANAGED = TableKey("model.mc._embedding_module", "managed")
REMAP = "mc._managed_collision_collection._managed_collision_modules.managed._mch_sorted_raw_ids"
ENTRIES = (
    TableEntry(
        collection="model.ebc", name="items", rows=10, width=8, dtype="int8", row_bytes=12, offset=0
    ),
    TableEntry(
        collection="model.ec", name="items", rows=9, width=2, dtype="float32", row_bytes=8, offset=0
    ),
    TableEntry(
        collection="model.ec", name="half", rows=9, width=2, dtype="float16", row_bytes=4, offset=0
    ),
    TableEntry(
        collection=MANAGED.collection,
        name=MANAGED.table,
        rows=9,
        width=2,
        dtype="float16",
        row_bytes=4,
        offset=0,
    ),
)
INDEX = Index(
    format_version=FORMAT_VERSION,
    versions={},
    signature=Signature(inputs=(), methods={}, result_metadata="dict_of_tensor"),
    tables=ENTRIES,
    extra_files=(),
    sha256={},
    samples=2,
)
DENSE = {
    "over.weight": torch.zeros(2, 3),
    "over.bias": torch.zeros(3, dtype=torch.bfloat16),
    "mask": torch.full((2,), -torch.inf),
    REMAP: torch.arange(9),
}


def rows(ids: list[int], entry: TableEntry = ENTRIES[0], fill: int = 1) -> TableRows:
    held = np.full((len(ids), entry.row_bytes), fill, np.uint8)
    return TableRows(key=entry.key, ids=np.array(ids, np.int64), rows=held)


def write(folder: Path, sequence: int = 1, previous: str = BASE, **others: Any) -> Path:
    given = {"tables": [rows([0, 9])], "dense": {"over.weight": torch.ones(2, 3)}} | others
    return write_delta(
        folder, base=BASE, run=RUN, sequence=sequence, previous=previous, created=5.0, **given
    )


def seal(content: bytes) -> bytes:
    """Give a file the digest of what it holds now."""
    zeroed = re.sub(rb'"sha256":"[0-9a-f]{64}"', b'"sha256":"' + b"0" * 64 + b'"', content)
    digest = hashlib.sha256(zeroed).hexdigest().encode()
    return zeroed.replace(b'"sha256":"' + b"0" * 64, b'"sha256":"' + digest)


def reworked(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Change a file's safetensors header and its head, and seal it again."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    document = json.loads(content[8 : 8 + length])
    head = json.loads(document["__metadata__"]["delta"])
    change(document, head)
    document["__metadata__"]["delta"] = json.dumps(head)
    text = json.dumps(document, separators=(",", ":")).encode()
    path.write_bytes(seal(len(text).to_bytes(8, "little") + text + content[8 + length :]))


def test_a_delta_reads_back_as_it_was_written(tmp_path: Path) -> None:
    scores = [(torch.tensor([0.5]), torch.tensor([1, 2])), (torch.ones(2),)]
    outputs = tuple({"score": score} for score in scores)
    tables = [rows([0, 3, 9]), rows([8], ENTRIES[1], 0), rows([], ENTRIES[2])]
    weights = {"over.weight": torch.rand(2, 3), "over.bias": torch.ones(3, dtype=torch.bfloat16)}
    path = write(tmp_path, 7, OTHER, tables=tables, dense=weights, outputs=outputs, kind=ROLLBACK)
    delta = read_delta(path)
    check_delta(delta, INDEX, DENSE)
    head = delta.head
    assert path == tmp_path / "00000007.delta"
    assert (head.base, head.run, head.previous, head.kind) == (BASE, RUN, OTHER, "rollback")
    assert (head.from_sequence, head.sequence, head.created) == (7, 7, 5.0)
    assert head == read_head(path)
    assert [table.key for table in delta.tables] == [table.key for table in tables]
    for held, given in zip(delta.tables, tables, strict=True):
        assert (str(held.ids.dtype), str(held.rows.dtype)) == ("int64", "uint8")
        np.testing.assert_array_equal(held.ids, given.ids)
        np.testing.assert_array_equal(held.rows, given.rows)
    assert list(delta.dense) == list(weights)
    assert all(torch.equal(delta.dense[name], weights[name]) for name in weights)
    assert delta.outputs is not None
    for told, asked in zip(delta.outputs, scores, strict=True):
        assert all(map(torch.equal, told["score"], asked))


def test_any_safetensors_reader_reads_it_and_its_digest_is_told_by_the_page(tmp_path: Path) -> None:
    path = write(tmp_path)
    with safe_open(path, framework="np") as file:
        assert file.get_tensor("tables/0/ids").tolist() == [0, 9]
        head = json.loads(file.metadata()["delta"])
        assert head["tables"] == [{"collection": "model.ebc", "table": "items"}]
        said = file.metadata()["sha256"]
    content = path.read_bytes()
    assert content.count(said.encode()) == 1
    assert hashlib.sha256(content.replace(said.encode(), b"0" * 64)).hexdigest() == said


def test_nothing_else_is_in_the_folder_and_none_is_replaced(tmp_path: Path) -> None:
    path = write(tmp_path)
    content = path.read_bytes()
    with pytest.raises(DeltaError) as raised:
        write(tmp_path)
    assert str(raised.value) == ("00000001.delta: is there already; each generation has one delta")
    assert os.listdir(tmp_path) == ["00000001.delta"]  # noqa: PTH208
    assert path.stat().st_mode & 0o777 == 0o644
    assert path.read_bytes() == content


def test_deltas_are_listed_by_sequence(tmp_path: Path) -> None:
    digests = (OTHER, BASE)
    paths = [write(tmp_path, 1), write(tmp_path, 2), write(tmp_path, 2, covered=digests)]
    paths += [write(tmp_path, 10), write(tmp_path, 123456789)]
    for name in ("00000003.delta.tmp", "3.delta", "00000004.delta.refused", ".00000005.delta.x"):
        (tmp_path / name).touch()
    assert list_deltas(tmp_path) == paths
    assert paths[2].name == "00000001-00000002.delta"
    with pytest.raises(DeltaError) as raised:
        list_deltas(tmp_path / "none")
    assert str(raised.value) == "none: cannot be read: No such file or directory"


def test_a_squashed_delta_leads_on_from_each_generation_that_it_covers(tmp_path: Path) -> None:
    digests = tuple(hashlib.sha256(bytes([number])).hexdigest() for number in range(3))
    head = read_head(write(tmp_path, 5, OTHER, covered=digests))
    assert (head.from_sequence, head.sequence, head.digest) == (3, 5, digests[2])
    states = [(2, OTHER), (3, digests[0]), (4, digests[1])]
    assert all(head.follows(*state) for state in states)
    others = [(1, OTHER), (2, BASE), (3, digests[1]), (5, digests[2]), (6, digests[2])]
    assert not any(head.follows(*state) for state in others)
    plain = read_head(write(tmp_path, 6, head.digest))
    assert plain.follows(5, digests[2])
    assert plain.digest == plain.sha256


@dataclass(frozen=True)
class Wrong:
    said: str
    reason: str
    given: dict[str, Any]


@pytest.mark.parametrize(
    "wrong",
    [
        Wrong(
            "table 'items': received id 10, expected 0 to 9; rows beyond an archive's take a new "
            "one",
            "ids",
            {"tables": [rows([0, 10])]},
        ),
        Wrong(
            "table 'items': received id -1, expected 0 to 9; rows beyond an archive's take a new "
            "one",
            "ids",
            {"tables": [rows([-1, 3])]},
        ),
        Wrong(
            "table 'items': id 3 stands behind 4, expected ascending ids",
            "ids",
            {"tables": [rows([1, 4, 3])]},
        ),
        Wrong(
            "table 'items': id 4 stands behind 4, expected ascending ids",
            "ids",
            {"tables": [rows([4, 4])]},
        ),
        Wrong(
            "table 'none' of 'model.ebc': is none of the archive's 4",
            "table",
            {"tables": [replace(rows([1]), key=TableKey("model.ebc", "none"))]},
        ),
        Wrong(
            "table 'items': received rows of 8 bytes, expected 12",
            "table",
            {"tables": [replace(rows([1], ENTRIES[1]), key=ENTRIES[0].key)]},
        ),
        Wrong(
            "table 'items': row 1 holds scale or bias that is not finite",
            "values",
            {"tables": [rows([1], fill=0x7C)]},
        ),
        Wrong(
            "table 'items': row 2 holds values that are not finite",
            "values",
            {"tables": [rows([2], ENTRIES[1], fill=0xFF)]},
        ),
        Wrong(
            "table 'half': row 2 holds values that are not finite",
            "values",
            {"tables": [rows([2], ENTRIES[2], fill=0xFC)]},
        ),
        Wrong(
            "dense: none.weight is none of the archive's weights",
            "dense",
            {"dense": {"none.weight": torch.ones(1)}},
        ),
        Wrong(
            "dense: over.weight: received torch.float32 (3, 2), expected torch.float32 (2, 3)",
            "dense",
            {"dense": {"over.weight": torch.ones(3, 2)}},
        ),
        Wrong(
            "dense: over.bias: received torch.float16 (3,), expected torch.bfloat16 (3,)",
            "dense",
            {"dense": {"over.bias": torch.ones(3).half()}},
        ),
        Wrong(
            "dense: over.weight holds numbers that are not finite",
            "values",
            {"dense": {"over.weight": torch.full((2, 3), torch.nan)}},
        ),
        Wrong(
            f"table 'managed': has rows without {REMAP}, which says which ids have them",
            "dense",
            {"tables": [rows([2], ENTRIES[3])]},
        ),
        Wrong(
            f"dense: {REMAP} comes without the table 'managed', whose rows it gives ids",
            "dense",
            {"dense": {REMAP: torch.arange(9)}},
        ),
    ],
    ids=lambda wrong: wrong.said[:40],
)
def test_what_has_no_place_in_the_archive_is_refused(tmp_path: Path, wrong: Wrong) -> None:
    path = write(tmp_path, **wrong.given)
    with pytest.raises(DeltaError) as raised:
        check_delta(read_delta(path), INDEX, DENSE)
    assert str(raised.value) == f"00000001.delta: {wrong.said}"
    assert raised.value.reason == wrong.reason


def test_more_dense_weights_than_a_delta_may_have_are_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, dense={"over.weight": torch.zeros(500_001)})
    monkeypatch.setattr(delta_read, "MOST_DENSE_BYTES", 2_000_000)
    with pytest.raises(DeltaError) as raised:
        read_delta(path)
    assert str(raised.value) == (
        "00000001.delta: dense: takes 2 MB, expected at most 2 MB; build a new archive"
    )


def test_what_the_archive_holds_too_is_taken(tmp_path: Path) -> None:
    """An infinite mask, and managed collision's rows with their ids."""
    dense = {"mask": torch.tensor([0.0, -torch.inf]), REMAP: torch.arange(9)}
    path = write(tmp_path, tables=[rows([2], ENTRIES[3])], dense=dense)
    check_delta(read_delta(path), INDEX, DENSE)
    assert remaps_of(MANAGED, DENSE) == [REMAP]
    assert not remaps_of(ENTRIES[0].key, DENSE)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format_version": "2.0"}, "format version 2.0, expected 1.0"),
        ({"base": "0"}, "received '0', expected a sha256"),
        ({"previous": 3}, "a text is none"),
        ({"run": RUN.upper()}, f"run: received '{RUN.upper()}', expected a UUID"),
        ({"sequence": 0}, "received the generations (1, 0), expected from 1 on"),
        ({"sequence": True}, "received the generations (1, True), expected from 1 on"),
        ({"sequence": 2}, "covered: received 0 digests of 2 generations"),
        ({"created": -1}, "created: received -1, expected seconds since 1970"),
        ({"created": float("inf")}, "created: received inf, expected seconds since 1970"),
        ({"kind": "merge"}, "kind: received 'merge', expected one of update, rollback"),
    ],
)
def test_a_head_that_is_wrong_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = write(tmp_path)
    reworked(path, lambda _, head: head.update(change))
    for read in (read_head, read_delta):
        with pytest.raises(DeltaError) as raised:
            read(path)
        assert str(raised.value) == (
            f"00000001.delta: its head cannot be read ({said}); make it again"
        )


def test_a_newer_minor_version_may_say_more(tmp_path: Path) -> None:
    path = write(tmp_path)
    reworked(path, lambda _, head: head.update(format_version="1.9", more=[1]))
    assert read_delta(path).head.format_version == "1.9"


def test_a_name_is_that_of_its_head(tmp_path: Path) -> None:
    path = write(tmp_path)
    moved = path.rename(tmp_path / "00000002.delta")
    with pytest.raises(DeltaError) as raised:
        read_delta(moved)
    assert str(raised.value) == "00000002.delta: its head says that it is 00000001.delta"


def _swap(document: dict[str, Any], _: dict[str, Any]) -> None:
    document["tables/0/rows"]["dtype"] = "I8"


def _beyond(document: dict[str, Any], _: dict[str, Any]) -> None:
    document["tables/0/rows"]["data_offsets"][1] += 12
    document["tables/0/rows"]["shape"][0] += 1


def _stranger(document: dict[str, Any], _: dict[str, Any]) -> None:
    document["more"] = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}


def _unnamed(_: dict[str, Any], head: dict[str, Any]) -> None:
    head["tables"] = []


def _twice(_: dict[str, Any], head: dict[str, Any]) -> None:
    head["tables"] *= 2


def _negative(document: dict[str, Any], _: dict[str, Any]) -> None:
    document["tables/0/rows"]["shape"] = [-2, -12]


def _untyped(document: dict[str, Any], _: dict[str, Any]) -> None:
    document["tables/0/rows"]["dtype"] = "F8"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            _swap,
            (
                "table 'items': received ids I64 (2,) and rows I8 (2, 12), "
                "expected I64 (K,) and U8 (K, row_bytes)"
            ),
        ),
        (_beyond, "is {size} bytes long, expected {more}"),
        (_stranger, "holds more, which is no part of a delta"),
        (_unnamed, "holds rows of a table that it does not name"),
        (_twice, "table 'items' of 'model.ebc': is there twice"),
        (_negative, "tables/0/rows: its shape is not its size"),
        (_untyped, "its tensors cannot be read ('F8'); make it again"),
    ],
)
def test_tensors_that_are_not_a_delta_s_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None], said: str
) -> None:
    path = write(tmp_path)
    reworked(path, change)
    size = path.stat().st_size
    with pytest.raises(DeltaError) as raised:
        read_delta(path)
    assert str(raised.value) == "00000001.delta: " + said.format(size=size, more=size + 12)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "00000001.delta"
    os.mkfifo(pipe)
    for path, said in (
        (pipe, "00000001.delta: is no file"),
        (tmp_path / "00000002.delta", "00000002.delta: cannot be read: No such file or directory"),
    ):
        with pytest.raises(DeltaError) as raised:
            read_head(path)
        assert str(raised.value) == said


def test_a_signature_is_over_all_of_the_file(tmp_path: Path) -> None:
    private, public = make_keys(tmp_path, "release")
    _, other = make_keys(tmp_path, "other")
    path = write(tmp_path, private_key=private)
    assert check_signed(path, [other, public]) == public
    with pytest.raises(DeltaError) as raised:
        check_signed(path, [other])
    assert str(raised.value).startswith(
        "00000001.delta: model.sig: delta.json was signed with none of the trusted keys (other.pub"
    )
    assert raised.value.reason == "signature"
    content = path.read_bytes()
    path.write_bytes(seal(content[:-1] + bytes([content[-1] ^ 1])))
    read_delta(path)
    with pytest.raises(DeltaError, match="was signed with none"):
        check_signed(path, [public])
    signature_of(path).unlink()
    with pytest.raises(DeltaError) as raised:
        check_signed(path, [public])
    assert str(raised.value) == (
        "00000001.delta: 00000001.delta.sig is missing, and this server trusts keys"
    )


def _checked(path: Path) -> Delta | None:
    try:
        delta = read_delta(path)
        check_delta(delta, INDEX, DENSE)
    except DeltaError:
        return None
    return delta


def test_a_thousand_damaged_files_are_refused(tmp_path: Path) -> None:
    chance = random.Random(7)  # noqa: S311
    path = write(tmp_path, outputs=({"score": (torch.ones(3),)},) * 2)
    good = path.read_bytes()
    assert _checked(path)
    for _ in range(1000):
        content = bytearray(good)
        kind = chance.randrange(4)
        if kind == 0:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del content[chance.randrange(len(content)) :]
        elif kind == 2:
            content += chance.randbytes(chance.randint(1, 64))
        else:
            start = chance.randrange(len(content))
            content[start : start + 8] = chance.randbytes(chance.randint(1, 16))
        if content == good:
            continue
        path.write_bytes(content)
        assert _checked(path) is None, kind


def test_a_thousand_altered_heads_are_refused_or_hold_rows_of_the_archive(tmp_path: Path) -> None:
    """Sealed again, as somebody does who means it: what passes is read within its file."""
    chance = random.Random(8)  # noqa: S311
    path = write(tmp_path)
    good = path.read_bytes()
    end = 8 + int.from_bytes(good[:8], "little")
    passed = 0
    for _ in range(1000):
        content = bytearray(good)
        for _ in range(chance.randint(1, 2)):
            content[chance.randrange(end)] = chance.choice(b'0123456789-,.:[]{}"abIU\\/eE')
        path.write_bytes(seal(bytes(content)))
        delta = _checked(path)
        passed += delta is not None
        for table in delta.tables if delta else ():
            assert 0 <= table.ids.min() <= table.ids.max() < 10
            assert int(table.rows.sum()) == 24
    assert 0 < passed < 400
