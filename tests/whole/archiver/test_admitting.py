"""An archive enters a model store checked, without running; what is wrong with it stays outside."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support.archives import good
from tests.support.archives.broken import write_again
from tests.support.command_line import run
from tests.support.factories.hostile import HOSTILE, HostilePredictFactory
from tests.support.keys import make_keys
from torchrec_archiver.admitting import admit
from torchrec_archiver.signing import sign_archive
from torchrec_handler.archive.format import DENSE, INDEX, SAMPLES, SIGNATURE, TABLES, Index
from torchrec_handler.archive.trust import TRUSTED_KEYS
from torchrec_handler.archive.verify import verify
from torchrec_handler.errors import ArchiveError, BuildError


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_keys(folder, "ours")
    make_keys(folder, "theirs")
    return folder


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Path:
    """A folder of a signed archive, not to be changed."""
    store = tmp_path_factory.mktemp("built")
    folder = good.build(store, factory=HostilePredictFactory, archive_format="no-archive")
    sign_archive(folder, keys / "ours.pem")
    return folder


@pytest.fixture
def sent(signed: Path, tmp_path: Path) -> Path:
    """To be changed."""
    return Path(shutil.copytree(signed, tmp_path / "sent" / "ranking"))


@pytest.mark.parametrize("archive_format", ["default", "zip-store", "tgz", "no-archive"])
def test_every_format_enters_whole_and_without_running(
    archive_format: str,
    keys: Path,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    archive = good.build(incoming, factory=HostilePredictFactory, archive_format=archive_format)
    sign_archive(archive, keys / "ours.pem")
    monkeypatch.setenv(HOSTILE, "raise")
    admitted = admit(archive, store, [keys / "theirs.pub", keys / "ours.pub"])
    assert (admitted.path, admitted.signer) == (store / archive.name, keys / "ours.pub")
    assert list(store.iterdir()) == [admitted.path]
    entered = good.unpack(admitted.path, tmp_path / "unpacked")
    found = verify(entered, full=True, alone=True, keys=[keys / "ours.pub"])
    before = good.unpack(archive, tmp_path / "before")
    assert found.index == verify(before).index


def test_a_version_enters_beside_another_and_is_replaced_by_force(
    sent: Path, store: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    later = good.build(other, version="1.1", archive_format="no-archive")
    assert admit(sent, store).path == store / "ranking"
    assert admit(later, store).path == store / "ranking-1.1"
    with pytest.raises(BuildError) as caught:
        admit(sent, store)
    assert str(caught.value) == (
        f"{store}/ranking already holds version 1.0; replace it with --force"
    )
    assert admit(sent, store, force=True).path == store / "ranking"


def _unsigned(folder: Path) -> str:
    (folder / SIGNATURE).unlink()
    return (
        f"{SIGNATURE}: missing from it, and this server trusts keys; sign the archive with "
        "torchrec-archiver sign"
    )


def _no_index(folder: Path) -> str:
    (folder / INDEX).unlink()
    return f"{INDEX}: missing from it, which holds {TABLES}; copy the archive again"


def _plain(folder: Path) -> str:
    for member in (INDEX, DENSE, TABLES, SAMPLES):
        (folder / member).unlink()
    return (
        f"{INDEX}: missing from it, so nobody can have signed it, and this server trusts keys; "
        "build the archive with torchrec-archiver, and sign it"
    )


def _rows(folder: Path) -> str:
    content = bytearray((folder / TABLES).read_bytes())
    content[4] ^= 1
    (folder / TABLES).write_bytes(content)
    return f"{TABLES}: its sha256 is "


def _shadow(folder: Path) -> str:
    (folder / "safetensors.py").write_text("raise SystemExit")
    return (
        f"safetensors.py: in it, but not listed in {INDEX}; remove it, or build or copy the "
        "archive again"
    )


def _index(folder: Path) -> str:
    write_again(folder, DENSE, b"other weights")
    return f"{SIGNATURE}: {INDEX} was signed with none of the trusted keys (ours.pub: "


@pytest.mark.parametrize("change", [_unsigned, _no_index, _plain, _rows, _shadow, _index])
def test_what_its_keys_do_not_vouch_for_stays_outside(
    change: Callable[[Path], str], sent: Path, keys: Path, store: Path, workspace: Path
) -> None:
    said = change(sent)
    with pytest.raises(ArchiveError) as caught:
        admit(sent, store, [keys / "ours.pub"])
    assert str(caught.value).startswith(f"archive: {sent}: {said}")
    assert not list(store.iterdir())
    assert not list(workspace.iterdir())


def test_a_plain_archive_has_nothing_to_be_checked_by(sent: Path, store: Path) -> None:
    _plain(sent)
    with pytest.raises(ArchiveError) as caught:
        admit(sent, store)
    assert str(caught.value) == (
        f"archive: {sent}: {INDEX}: missing from it, which plain torch-model-archiver made, so "
        "nothing of it can be checked; build it with torchrec-archiver"
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_refused_unless_allowed(
    value: float, sent: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = Index.loads((sent / INDEX).read_text()).tables[1]
    content = bytearray((sent / TABLES).read_bytes())
    at = entry.offset + 7 * entry.row_bytes
    content[at : at + 2] = np.float16(value).tobytes()
    write_again(sent, TABLES, bytes(content))
    assert run("admit", sent, "--into", store) == 1
    assert run("verify", sent, "--no-replay") == 1
    said = f"table 't_movie', int8: row 7 holds {value:g}, expected finite numbers\n"
    hint = "hint: --allow-invalid-rows t_movie takes the table as it is\n"
    assert capsys.readouterr().err == (f"ERROR: archive: {sent}: {said}{hint}ERROR: {said}{hint}")
    assert run("admit", sent, "--into", store, "--allow-invalid-rows", "t_movie") == 0
    assert run("verify", sent, "--no-replay", "--allow-invalid-rows", "t_movie") == 0


def test_the_commands_say_who_signed(
    sent: Path,
    keys: Path,
    store: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(TRUSTED_KEYS, raising=False)
    assert run("verify", sent, "--no-replay", "--trusted-keys", keys / "ours.pub") == 0
    assert f"\nsignature: {keys / 'ours.pub'}\n" in capsys.readouterr().out
    assert run("admit", sent, "--into", store) == 0
    assert capsys.readouterr().out == (
        f"{store}/ranking: every member is as its digest says; signature not checked\n"
    )
    monkeypatch.setenv(TRUSTED_KEYS, str(keys / "theirs.pub"))
    assert run("admit", sent, "--into", store, "--force") == 1
    assert "was signed with none of the trusted keys (theirs.pub: " in capsys.readouterr().err
    assert run("admit", sent, "--into", store, "--force", "--trusted-keys", keys) == 0
    assert capsys.readouterr().out.endswith(f"; signed with {keys / 'ours.pub'}\n")


def test_what_is_not_there_is_named(sent: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError) as caught:
        admit(sent, tmp_path / "nowhere")
    assert str(caught.value) == f"--into: {tmp_path}/nowhere is not a folder; make it first"
    with pytest.raises(ArchiveError) as missing:
        admit(sent.with_name("rankin"), tmp_path)
    assert str(missing.value) == (
        f"archive: {sent.with_name('rankin')} does not exist; did you mean {sent}?"
    )
