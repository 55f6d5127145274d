"""A signed archive is known by whom it was signed; whatever else is in its place is refused."""

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.archives import good
from tests.support.command_line import run
from tests.support.keys import make_keys
from torchrec_archiver.signing import sign_archive
from torchrec_handler.archive.format import DENSE, INDEX, SAMPLES, SIGNATURE, TABLES
from torchrec_handler.archive.trust import TRUSTED_KEYS, trusted_keys
from torchrec_handler.archive.verify import verify
from torchrec_handler.errors import ArchiveError, LoadError
from torchrec_handler.load.loader import load
from torchrec_handler.options import Options

PASSWORD = b"a password of a test"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_keys(folder, "ours")
    make_keys(folder, "theirs")
    make_keys(folder, "locked", PASSWORD)
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    return good.build(tmp_path_factory.mktemp("built"), archive_format="no-archive")


@pytest.fixture
def signed(built: Path, keys: Path, tmp_path: Path) -> Path:
    """To be changed."""
    folder = Path(shutil.copytree(built, tmp_path / built.name))
    sign_archive(folder, keys / "ours.pem")
    return folder


def test_who_signed_is_told(signed: Path, keys: Path) -> None:
    found = verify(signed, full=True, keys=[keys / "theirs.pub", keys / "ours.pub"])
    assert found.signer == keys / "ours.pub"


def test_without_trusted_keys_a_signature_is_not_looked_at(signed: Path) -> None:
    (signed / SIGNATURE).write_text("not a signature")
    assert verify(signed).signer is None


def test_a_signed_archive_is_served_and_an_unsigned_one_is_not(
    built: Path, signed: Path, keys: Path
) -> None:
    load(signed, Options(), good.CPU, [keys / "ours.pub"])
    with pytest.raises(ArchiveError) as caught:
        load(built, Options(), good.CPU, [keys / "ours.pub"])
    assert str(caught.value) == (
        f"{SIGNATURE}: missing from {built}, and this server trusts keys; sign the archive "
        "with torchrec-archiver sign"
    )


def refusal(folder: Path, keys: Path) -> str:
    with pytest.raises(ArchiveError) as caught:
        verify(folder, keys=[keys / "ours.pub"])
    return str(caught.value)


def test_another_s_signature_is_refused(signed: Path, keys: Path) -> None:
    sign_archive(signed, keys / "theirs.pem")
    said = refusal(signed, keys)
    assert said.startswith(
        f"{SIGNATURE}: {INDEX} was signed with none of the trusted keys (ours.pub: "
    )
    assert said.endswith("; load an archive that one of them signed, with torchrec-archiver sign")


def _index(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["extra_files"] = []
    (folder / INDEX).write_text(json.dumps(index))


def _signature(folder: Path) -> None:
    (folder / SIGNATURE).write_text("{}")


def _empty(folder: Path) -> None:
    (folder / SIGNATURE).write_bytes(b"")


@pytest.mark.parametrize("change", [_index, _signature, _empty])
def test_what_was_changed_after_signing_is_refused(
    change: Callable[[Path], None], signed: Path, keys: Path
) -> None:
    change(signed)
    assert "was signed with none of the trusted keys" in refusal(signed, keys)


def test_a_member_that_was_changed_after_signing_is_refused(signed: Path, keys: Path) -> None:
    (signed / "model-config.yaml").write_text("torchrec: {verify: code}\n")
    assert refusal(signed, keys).startswith("model-config.yaml: its sha256 is ")


def test_an_index_that_was_taken_away_is_missed(signed: Path, keys: Path) -> None:
    for member in (INDEX, TABLES, DENSE, SAMPLES):
        (signed / member).unlink()
    assert refusal(signed, keys) == (
        f"{INDEX}: missing from {signed}, so nobody can have signed it, and this server trusts "
        "keys; build the archive with torchrec-archiver, and sign it"
    )


def test_a_signature_elsewhere_is_not_followed(signed: Path, keys: Path, tmp_path: Path) -> None:
    (signed / SIGNATURE).rename(tmp_path / SIGNATURE)
    (signed / SIGNATURE).symlink_to(tmp_path / SIGNATURE)
    assert refusal(signed, keys).startswith(f"{SIGNATURE}: a link, lies outside of {signed}")


@pytest.mark.parametrize("archive_format", ["default", "zip-store", "tgz"])
def test_a_file_is_signed_again_and_holds_what_it_held(
    archive_format: str, keys: Path, store: Path, tmp_path: Path
) -> None:
    archive = good.build(store, archive_format=archive_format)
    before = members(archive)
    for name in ("theirs", "ours"):
        sign_archive(archive, keys / f"{name}.pem")
    after = members(archive)
    assert after.pop(SIGNATURE)
    assert after == before
    assert list(store.iterdir()) == [archive]
    unpacked = good.unpack(archive, tmp_path / "unpacked")
    assert verify(unpacked, keys=[keys / "ours.pub"]).signer == keys / "ours.pub"


def members(archive: Path) -> dict[str, bytes]:
    if archive.suffix == ".mar":
        with zipfile.ZipFile(archive) as file:
            assert len(file.namelist()) == len(set(file.namelist()))
            return {name: file.read(name) for name in file.namelist()}
    found = {}
    with tarfile.open(archive) as tar:
        for entry in tar:
            if (content := tar.extractfile(entry)) is not None:
                found[entry.name.partition("/")[2]] = content.read()
    return found


def test_the_library_s_own_command_reads_it(signed: Path, keys: Path) -> None:
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(signed)]
    options = ["--signature", str(signed / SIGNATURE), "--ignore_unsigned_files"]
    done = subprocess.run(
        [*command, *options, "--public_key", str(keys / "ours.pub")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Verification succeeded" in done.stdout + done.stderr


def test_the_command_signs(
    signed: Path, keys: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (signed / SIGNATURE).unlink()
    assert run("sign", signed, "--private-key", keys / "ours.pem") == 0
    assert capsys.readouterr().out == f"{signed}: signed\n"
    assert run("sign", signed, "--private-key", keys / "nothing.pem") == 1
    assert f"ERROR: {keys / 'nothing.pem'}: cannot sign with it (" in capsys.readouterr().err
    monkeypatch.setattr("getpass.getpass", lambda _: PASSWORD.decode())
    assert run("sign", signed, "--private-key", keys / "locked.pem", "--ask-password") == 0
    assert verify(signed, keys=[keys / "locked.pub"]).signer == keys / "locked.pub"


def test_keys_come_from_the_environment(
    keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TRUSTED_KEYS, raising=False)
    assert trusted_keys() == []
    monkeypatch.setenv(TRUSTED_KEYS, f"{keys / 'ours.pub'}:{keys}")
    assert trusted_keys()[0] == keys / "ours.pub"
    assert keys / "theirs.pub" in trusted_keys()
    monkeypatch.setenv(TRUSTED_KEYS, str(tmp_path))
    with pytest.raises(LoadError) as caught:
        trusted_keys()
    assert str(caught.value) == (
        f"{TRUSTED_KEYS}: {tmp_path} is no public key, nor a folder of .pem or .pub files"
    )
