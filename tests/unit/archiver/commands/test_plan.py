"""What `plan` prints, of an archive's index alone and of a file."""

import json
import zipfile
from pathlib import Path

import pytest

from tests.support.command_line import run
from torchrec_handler.archive.format import FORMAT_VERSION, INDEX, Index, Signature, TableEntry

TABLES = """\
- {name: large, rows: 1000, width: 64}
- {name: small, rows: 10, width: 64, count: 3}
"""
WORDS = """\
Ranks, and a request of 100 rows
rank node tables bytes of its memory lookups ids to it float16 from it
0 0 2 68.7 kB 69% 27 µs 0 B 0 B
1 0 2 1.4 kB 1% 27 µs 880 B 2.6 kB
70.0 kB
ranks look up at once: 27 µs; 3.4 kB over the network; the fullest rank has 1.96 times the mean \
bytes, the slowest 1.00 times the mean time

Tables, the largest first
table rows width dtype bytes a rank ranks
large 1,000 64 int8 68.0 kB 68.0 kB 0
small_0 10 64 int8 680 B 680 B 1
small_1 10 64 int8 680 B 680 B 0
small_2 10 64 int8 680 B 680 B 1
"""


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    path = tmp_path / "tables.yaml"
    path.write_text(TABLES)
    return path


def test_tables_of_a_file(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--ranks-per-node", "2", "--memory", "200kB", "--rows", "100")
    assert run("plan", "--tables", listed, *given, "--exchange-dtype", "float16") == 0
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "\n".join(shown).strip() == WORDS.strip()


@pytest.mark.parametrize("kind", ["folder", "mar"])
def test_an_archive_s_index_is_enough(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = TableEntry(
        collection="_module.bags", name="t", rows=10, width=8, dtype="int8", row_bytes=12, offset=0
    )
    index = Index(
        format_version=FORMAT_VERSION,
        versions={},
        signature=Signature(inputs=(), methods={}, result_metadata="dict_of_tensor"),
        tables=(entry,),
        extra_files=(),
        sha256={},
        samples=0,
    )
    archive = tmp_path / "model.mar"
    if kind == "folder":
        archive.mkdir()
        (archive / INDEX).write_text(index.dumps())
    else:
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr(INDEX, index.dumps())
    assert run("plan", archive, "--nodes", "2", "--row-wise", "t", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert [rank["nbytes"] for rank in document["ranks"]] == [60, 60]
    assert document["parts"][1] == {
        "collection": "_module.bags",
        "table": "t",
        "dtype": "int8",
        "rank": 1,
        "rows": 5,
        "nbytes": 60,
    }
    assert (document["fits"], document["would_help"], document["nbytes"]) == (None, [], 120)


def test_what_does_not_fit_is_an_error_with_what_would_help(
    listed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("plan", "--tables", listed, "--nodes", "2", "--memory", "0.05M", "--json") == 1
    out, err = capsys.readouterr()
    assert err == (
        "ERROR: memory: 1 of 2 ranks need more than the 50.0 kB of a rank; rank 0 lacks 18.7 kB, "
        "its largest table is large with 68.0 kB\nhint: what would help: --row-wise large; or "
        "--type row_wise (35.0 kB a rank at most); or int4 tables (36.4 kB a rank at most)\n"
    )
    document = json.loads(out)
    assert not document["fits"]
    assert document["would_help"][0] == "--row-wise large"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "plan: expected an ARCHIVE or --tables FILE, and not both"),
        (
            ("--tables", "{file}", "--row-wise", "larg"),
            "--row-wise: received 'larg', which is no table of {file}\nhint: did you mean large?",
        ),
        (
            ("--tables", "{file}", "--nodes", "1000", "--ranks-per-node", "2"),
            "plan: received 2,000 ranks, expected at most 1,024",
        ),
        (
            ("--tables", "{file}", "--memory", "much"),
            (
                "argument --memory: received 'much', expected bytes, such as 64G or 64Gi\n"
                "hint: torchrec-archiver plan --help"
            ),
        ),
        (
            ("--tables", "{file}", "--ids-per-feature", "0"),
            (
                "argument --ids-per-feature: received '0', expected a number above 0\n"
                "hint: torchrec-archiver plan --help"
            ),
        ),
    ],
)
def test_wrong_input_is_one_error_line(
    arguments: tuple[str, ...], message: str, listed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def here(text: str) -> str:
        return text.replace("{file}", str(listed))

    assert run("plan", *map(here, arguments)) == 1
    assert capsys.readouterr() == ("", f"ERROR: {here(message)}\n")


def test_no_memory_is_too_small_to_be_counted(
    listed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("plan", "--tables", listed, "--memory", "1", "--ranks-per-node", "2") == 1
    assert capsys.readouterr().err == (
        "ERROR: memory: 2 of 2 ranks need more than the 1 B of a rank; rank 0 lacks 68.7 kB, its "
        "largest table is large with 68.0 kB\n"
    )


def test_an_archive_without_tables_has_nothing_to_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tables.json"
    path.write_text("[]")
    assert run("plan", "--tables", path) == 1
    assert capsys.readouterr().err == (
        f"ERROR: plan: {path} has no tables that ranks could share\n"
    )
