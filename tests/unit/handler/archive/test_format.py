"""`archive.json` and the rules of the format: written and read back, older and newer, damaged."""

import ast
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from torchrec_handler.archive import format as archive
from torchrec_handler.archive.format import (
    Declined,
    DenseDtypes,
    Hashed,
    Index,
    InputSignature,
    Replaced,
    Report,
    Signature,
    Sizes,
    TableEntry,
    align,
    sha256,
)
from torchrec_handler.errors import ArchiveError

INDEX = Index(
    format_version="1.0",
    versions={"torchrec": "1.8.0"},
    signature=Signature(
        inputs=(
            InputSignature(name="float_features", type="dense", num_features=13),
            InputSignature(
                name="id_list_features",
                type="sparse",
                num_features=2,
                features=("user", "movie"),
                ids_below=(50, None),
            ),
            InputSignature(name="towers", type="embedding", num_features=1, width=8),
        ),
        methods={"forward": True, "explain": False},
        result_metadata="dict_of_tensors",
        outputs={"default": [1], "parts": [[1], [1, 2]]},
    ),
    tables=(
        TableEntry(
            collection="_module.sparse",
            name="t_user",
            rows=50,
            width=6,
            dtype="int8",
            row_bytes=10,
            offset=0,
            max_error=0.25,
            mean_error=0.125,
        ),
        TableEntry(
            collection="_module.sparse",
            name="t_movie",
            rows=40,
            width=7,
            dtype="int4",
            row_bytes=8,
            offset=512,
        ),
        TableEntry(
            collection="_module.sparse",
            name="t_half",
            rows=1,
            width=3,
            dtype="float16",
            row_bytes=6,
            offset=896,
        ),
    ),
    extra_files=("movies.json",),
    sha256={"predict_factory.pt": "0" * 64},
    samples=0,
    plan="table_wise",
    output_change={"forward": 0.5},
    kernels=Report(
        replaced=(
            Replaced(path="_module", type="shop.Dlrm", kernel="dlrm", dtype="int8"),
            Replaced(
                path="_module.sparse",
                type="shop.Bags",
                kernel="direct",
                dtype=None,
                sizes=(Sizes(least=1, most=45), Sizes(least=357)),
            ),
        ),
        declined=(Declined(path="_module.other", kernel="linear", why="has hooks"),),
    ),
    dense=DenseDtypes(
        dtypes={"over.weight": "int8", "top.weight": "float32"},
        allowed=0.5,
        max_error=0.25,
        mean_error=0.125,
        rows=1000,
        instructions=("avx512_vnni",),
    ),
)


def document() -> dict[str, Any]:
    return json.loads(json.dumps(asdict(INDEX)))  # type: ignore[no-any-return]


def test_an_index_reads_back_as_it_was_written() -> None:
    assert Index.loads(INDEX.dumps()) == INDEX
    assert not INDEX.is_newer


def test_an_index_without_kernels_or_dense_types_is_read() -> None:
    old = document()
    del old["kernels"], old["dense"]
    assert Index.loads(json.dumps(old)) == replace(INDEX, kernels=Report(), dense=None)


def test_what_is_said_of_raw_values_is_read_back() -> None:
    numbers = InputSignature(
        name="float_features", type="dense", features=("age", "hour"), defaults=(None, 12.0)
    )
    ids = replace(
        INDEX.signature.inputs[1],
        hashed=(Hashed(function="xxh64", rows=50, seed=2**63 - 1), None),
        out_of_range=(None, "drop"),
    )
    index = replace(INDEX, signature=replace(INDEX.signature, inputs=(numbers, ids)))
    assert Index.loads(index.dumps()) == index


def test_an_output_s_change_may_be_none() -> None:
    index = replace(INDEX, output_change={"forward": None})
    assert Index.loads(index.dumps()) == index


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_lacks_are_neither_written_nor_read(value: float) -> None:
    index = replace(INDEX, output_change={"forward": value})
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        index.dumps()
    with pytest.raises(ArchiveError) as caught:
        Index.loads(json.dumps(asdict(index)))
    name = {"nan": "NaN", "inf": "Infinity"}[str(value)]
    assert str(caught.value) == (
        f"archive.json: is not JSON ({name} is no number of JSON); build the archive again"
    )


def test_a_table_s_block_is_its_rows() -> None:
    assert [entry.nbytes for entry in INDEX.tables] == [500, 320, 6]


def test_fields_of_a_newer_minor_version_are_ignored_at_every_depth() -> None:
    newer = document()
    newer["format_version"] = "1.7"
    newer["owner"] = "shop"
    newer["signature"]["owner"] = "shop"
    newer["signature"]["inputs"][0]["owner"] = "shop"
    newer["tables"][0]["owner"] = "shop"
    read = Index.loads(json.dumps(newer))
    assert read.is_newer
    assert read.signature == INDEX.signature
    assert read.tables == INDEX.tables


def test_fields_that_have_a_default_may_be_left_out() -> None:
    older = document()
    older["signature"]["inputs"][0] = {"name": "float_features", "type": "dense"}
    del older["signature"]["outputs"]
    del older["tables"][0]["max_error"], older["plan"]
    read = Index.loads(json.dumps(older))
    assert (read.tables[0].max_error, read.plan) == (None, None)
    assert read.signature.inputs[0] == InputSignature(name="float_features", type="dense")
    assert read.signature.outputs == {}


def test_a_whole_number_is_a_float_too() -> None:
    """JSON has one kind of number, and other tools write 0 for 0.0."""
    other = document()
    other["tables"][0]["max_error"] = 0
    read = Index.loads(json.dumps(other)).tables[0].max_error
    assert (read, type(read)) == (0, float)


@pytest.mark.parametrize("version", ["2.0", "0.9", "10.0", 2, "next"])
def test_another_major_version_is_refused(version: object) -> None:
    other = {**document(), "format_version": version}
    with pytest.raises(ArchiveError) as caught:
        Index.loads(json.dumps(other))
    assert str(caught.value) == (
        f"archive.json: received format version {version}, expected 1.1; "
        "build the archive again with this version of torchrec-serve"
    )


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            '"forward": 0.5',
            '"forward": -1e999',
            "output_change['forward']: received -inf, expected a finite number",
        ),
        (
            '"forward": 0.5',
            f'"forward": 1{"0" * 400}',
            f"output_change['forward']: received 1{'0' * 199}…, expected at most 2^63 - 1",
        ),
        (
            '"outputs": {',
            '"outputs": {"far": [1, [1e999]], ',
            "signature.outputs['far']: received inf, expected a finite number",
        ),
    ],
)
def test_a_number_that_floating_point_does_not_hold_is_refused(
    before: str, after: str, message: str
) -> None:
    document = INDEX.dumps()
    assert document.count(before) == 1
    with pytest.raises(ArchiveError) as caught:
        Index.loads(document.replace(before, after))
    assert str(caught.value) == f"archive.json: {message}"


def test_what_is_nested_without_an_end_is_no_json() -> None:
    with pytest.raises(ArchiveError) as caught:
        Index.loads("[" * 100_000)
    assert str(caught.value) == (
        "archive.json: is not JSON (maximum recursion depth exceeded while decoding a JSON array "
        "from a unicode string); build the archive again"
    )


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth > 1 else []


@dataclass(frozen=True, kw_only=True)
class Damage:
    name: str
    change: Callable[[dict[str, Any]], object]
    message: str


HASH = {"function": "xxh64", "rows": 50, "seed": 7}

DAMAGES = [
    Damage(
        name="field missing",
        change=lambda index: index.pop("sha256"),
        message="archive.json: sha256: is missing; build the archive again",
    ),
    Damage(
        name="nested field missing",
        change=lambda index: index["signature"]["inputs"][1].pop("name"),
        message="archive.json: signature.inputs[1].name: is missing; build the archive again",
    ),
    Damage(
        name="signature of another type",
        change=lambda index: index.update(signature=None),
        message="archive.json: signature: received None, expected dict",
    ),
    Damage(
        name="tables of another type",
        change=lambda index: index.update(tables={}),
        message="archive.json: tables: received {}, expected list",
    ),
    Damage(
        name="an entry of another type",
        change=lambda index: index["tables"].append(5),
        message="archive.json: tables[3]: received 5, expected dict",
    ),
    Damage(
        name="digests of another type",
        change=lambda index: index.update(sha256=["predict_factory.pt"]),
        message="archive.json: sha256: received ['predict_factory.pt'], expected dict",
    ),
    Damage(
        name="a digest of another type",
        change=lambda index: index["sha256"].update({"tables.bin": None}),
        message="archive.json: sha256['tables.bin']: received None, expected str",
    ),
    Damage(
        name="need_preproc of another type",
        change=lambda index: index["signature"]["methods"].update(forward=1),
        message="archive.json: signature.methods['forward']: received 1, expected bool",
    ),
    Damage(
        name="ids_below of another type",
        change=lambda index: index["signature"]["inputs"][1]["ids_below"].append("60"),
        message="archive.json: signature.inputs[1].ids_below[2]: received '60', expected int",
    ),
    Damage(
        name="unknown input type",
        change=lambda index: index["signature"]["inputs"][1].update(type="spars"),
        message=(
            "archive.json: signature.inputs[1].type: received 'spars', "
            "expected one of dense, sparse, weighted_sparse, embedding"
        ),
    ),
    Damage(
        name="a hash of other features",
        change=lambda index: index["signature"]["inputs"][1].update(hashed=[HASH]),
        message=(
            "archive.json: signature.inputs[1].hashed: is said of 1 features, "
            "the sparse input has 2 that may be"
        ),
    ),
    Damage(
        name="a default of ids",
        change=lambda index: index["signature"]["inputs"][1].update(defaults=[1.0, None]),
        message=(
            "archive.json: signature.inputs[1].defaults: is said of 2 features, "
            "the sparse input has none that may be"
        ),
    ),
    Damage(
        name="an unknown hash",
        change=lambda index: index["signature"]["inputs"][1].update(
            hashed=[None, {**HASH, "function": "md5"}]
        ),
        message=(
            "archive.json: signature.inputs[1].hashed[1].function: received 'md5', "
            "expected one of xxh64"
        ),
    ),
    Damage(
        name="a hash into no rows",
        change=lambda index: index["signature"]["inputs"][1].update(
            hashed=[{**HASH, "rows": 0}, None]
        ),
        message=(
            "archive.json: signature.inputs[1].hashed[0].rows: received 0, "
            "expected 1 to 9223372036854775808"
        ),
    ),
    Damage(
        name="a negative seed",
        change=lambda index: index["signature"]["inputs"][1].update(
            hashed=[{**HASH, "seed": -1}, None]
        ),
        message=(
            "archive.json: signature.inputs[1].hashed[0].seed: received -1, "
            "expected 0 to 9223372036854775807"
        ),
    ),
    Damage(
        name="an unknown way with ids out of range",
        change=lambda index: index["signature"]["inputs"][1].update(out_of_range=[None, "clip"]),
        message=(
            "archive.json: signature.inputs[1].out_of_range[1]: received 'clip', "
            "expected one of reject, zero, modulo, drop"
        ),
    ),
    Damage(
        name="a default that no float32 holds",
        change=lambda index: index["signature"]["inputs"][0].update(
            features=["age"], defaults=[1e39]
        ),
        message=(
            "archive.json: signature.inputs[0].defaults[0]: received 1e+39, "
            "expected a finite float32"
        ),
    ),
    Damage(
        name="unknown result type",
        change=lambda index: index["signature"].update(result_metadata="dict"),
        message=(
            "archive.json: signature.result_metadata: received 'dict', "
            "expected one of dict_of_tensor, dict_of_tensors, dict_with_mask_tensor"
        ),
    ),
    Damage(
        name="unknown table type",
        change=lambda index: index["tables"][0].update(dtype="int3"),
        message=(
            "archive.json: tables[0].dtype: received 'int3', "
            "expected one of float32, float16, int8, int4, int2"
        ),
    ),
    Damage(
        name="unknown type of a layer",
        change=lambda index: index["dense"]["dtypes"].update({"top.weight": "float16"}),
        message=(
            "archive.json: dense.dtypes['top.weight']: received 'float16', "
            "expected one of float32, bfloat16, int8"
        ),
    ),
    Damage(
        name="a table before the file",
        change=lambda index: index["tables"][1].update(offset=-1),
        message="archive.json: tables[1].offset: received -1, expected 0 or more",
    ),
    Damage(
        name="an error below nothing",
        change=lambda index: index["tables"][1].update(max_error=-0.5),
        message="archive.json: tables[1].max_error: received -0.5, expected 0 or more",
    ),
    Damage(
        name="an integer that no file counts to",
        change=lambda index: index["tables"][1].update(rows=2**63),
        message=(
            "archive.json: tables[1].rows: received 9223372036854775808, expected at most 2^63 - 1"
        ),
    ),
    Damage(
        name="a table larger than a file",
        change=lambda index: index["tables"][1].update(rows=2**61),
        message=(
            "archive.json: tables[1]: received 18446744073709551616, "
            "expected at most 2^63 - 1 bytes"
        ),
    ),
    Damage(
        name="more digits than are said",
        change=lambda index: index["signature"]["inputs"].append(10**4000),
        message=(f"archive.json: signature.inputs[3]: received 1{'0' * 199}…, expected dict"),
    ),
    Damage(
        name="a shape without an end",
        change=lambda index: index["signature"]["outputs"].update(deep=nested(17)),
        message=(
            "archive.json: signature.outputs['deep']: lists and objects are more than 16 deep"
        ),
    ),
    Damage(
        name="rows shorter than they are read",
        change=lambda index: index["tables"][1].update(row_bytes=7),
        message=("archive.json: tables[1].row_bytes: received 7, expected 8 for 7 values in int4"),
    ),
    Damage(
        name="a table twice",
        change=lambda index: index["tables"].append(index["tables"][0]),
        message=(
            "archive.json: table 't_user' of '_module.sparse': is there twice; "
            "the archive was altered, build or copy it again"
        ),
    ),
    Damage(
        name="a table that overlaps",
        change=lambda index: index["tables"][1].update(offset=384),
        message=(
            "archive.json: table 't_movie' of '_module.sparse': received offset 384, expected 512, "
            "the next multiple of 128 behind 't_user'; the archive was altered, build or copy it "
            "again"
        ),
    ),
    Damage(
        name="a misaligned table",
        change=lambda index: index["tables"][0].update(offset=4),
        message=(
            "archive.json: table 't_user' of '_module.sparse': received offset 4, expected 0, "
            "the next multiple of 128 from 0 on; the archive was altered, build or copy it again"
        ),
    ),
    Damage(
        name="a table gone",
        change=lambda index: index["tables"].pop(1),
        message=(
            "archive.json: table 't_half' of '_module.sparse': received offset 896, expected 512, "
            "the next multiple of 128 behind 't_user'; the archive was altered, build or copy it "
            "again"
        ),
    ),
    Damage(
        name="no version",
        change=lambda index: index.pop("format_version"),
        message="archive.json: has no format_version; build the archive again",
    ),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: str(damage.name))
def test_a_damaged_index_is_named_by_the_path_to_the_fault(damage: Damage) -> None:
    index = document()
    damage.change(index)
    with pytest.raises(ArchiveError) as caught:
        Index.loads(json.dumps(index))
    assert str(caught.value) == damage.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"format_version": ',
            (
                "archive.json: is not JSON (Expecting value: line 1 column 20 (char 19)); "
                "build the archive again"
            ),
        ),
        ("[]", "archive.json: has no format_version; build the archive again"),
        ("null", "archive.json: has no format_version; build the archive again"),
    ],
)
def test_what_is_no_index_is_refused(text: str, message: str) -> None:
    with pytest.raises(ArchiveError) as caught:
        Index.loads(text)
    assert str(caught.value) == message


def test_tables_start_at_cache_lines() -> None:
    assert [align(offset) for offset in (0, 1, 127, 128, 129)] == [0, 128, 128, 128, 256]


def test_a_digest_is_of_the_file_s_bytes(tmp_path: Path) -> None:
    path = tmp_path / "member"
    path.write_bytes(b"abc")
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_contract_needs_the_standard_library_alone() -> None:
    """Any tool can read an archive with this file, and that of the errors."""
    tree = ast.parse(Path(archive.__file__).read_text(encoding="utf-8"))
    imported = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
        )
    }
    own = {name for name in imported if name.partition(".")[0] not in sys.stdlib_module_names}
    assert own == {"torchrec_handler.errors"}
