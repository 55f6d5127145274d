"""Who made an archive: a signature over its index, and by its digests over every other member.

By the OpenSSF's `model-signing`, with keys of files: `model.sig` is a Sigstore bundle, which
`model_signing verify key --ignore_unsigned_files` reads as well.
"""

import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchrec_handler.archive.format import INDEX, SIGNATURE
from torchrec_handler.errors import ArchiveError, LoadError

if TYPE_CHECKING:
    from collections.abc import Iterator

TRUSTED_KEYS = "TORCHREC_TRUSTED_KEYS"
"""A variable of the worker's environment: files of public keys, or folders of them, `:` between.
An archive's own model-config.yaml has no say in whom its server trusts."""

KEY_SUFFIXES = frozenset({".pem", ".pub"})
INSTALL = "pip install --no-deps -r requirements/signing.txt, of torchrec-serve"


def trusted_keys() -> list[Path]:
    """The public keys that the environment trusts; none where it asks for no signature.

    Raises:
        LoadError: see `find_keys`.
    """
    paths = os.environ.get(TRUSTED_KEYS, "")
    return find_keys(TRUSTED_KEYS, map(Path, filter(None, paths.split(os.pathsep))))


def find_keys(given_as: str, paths: Iterable[Path]) -> list[Path]:
    """Find public keys.

    Args:
        given_as: the option or variable that names them.
        paths: files, and folders of files.

    Raises:
        LoadError: a path is not there, or a folder holds no key.
    """
    keys: list[Path] = []
    for path in paths:
        found = [path] if path.is_file() else []
        if path.is_dir():
            found = sorted(each for each in path.iterdir() if each.suffix in KEY_SUFFIXES)
        if not found:
            message = (
                f"{given_as}: {path} is no public key, nor a folder of "
                f"{' or '.join(sorted(KEY_SUFFIXES))} files"
            )
            raise LoadError(message)
        keys += found
    return keys


def sign(
    index: bytes, private_key: Path, password: str | None = None, *, name: str = INDEX
) -> bytes:
    """A signature over an index, or the head of a delta.

    Args:
        index: the bytes of `archive.json`.
        private_key: a PEM file with an elliptic curve's private key (P-256, P-384 or P-521).
        password: of that file.
        name: what the signature calls what is signed.

    Raises:
        LoadError: model-signing is not installed.
        ArchiveError: the key cannot be used.
    """
    signing = _library("signing")
    with _folder(index, name) as folder:
        made = folder.parent / SIGNATURE
        try:
            # It says that it takes text, and takes bytes (1.1.1).
            secret = None if password is None else password.encode()
            config = signing.Config().use_elliptic_key_signer(
                private_key=private_key, password=secret
            )
            config.sign(folder, made)
        except Exception as error:  # the library gives what each of its own raises
            message = f"{private_key}: cannot sign with it ({_said(error)})"
            raise ArchiveError(message) from error
        return made.read_bytes()


def check_signature(
    index: bytes, signature: bytes, keys: Sequence[Path], *, name: str = INDEX
) -> Path:
    """Find the trusted key that an index, or the head of a delta, was signed with.

    Args:
        index: the bytes of `archive.json`.
        signature: those of `model.sig`.
        keys: PEM files of public keys, at least one.
        name: what the signature calls what is signed.

    Returns:
        The key's file.

    Raises:
        LoadError: model-signing is not installed.
        ArchiveError: no key has signed it.
    """
    verifying = _library("verifying")
    with _folder(index, name) as folder:
        given = folder.parent / SIGNATURE
        given.write_bytes(signature)
        faults = []
        for key in keys:
            try:
                verifying.Config().use_elliptic_key_verifier(public_key=key).verify(folder, given)
            except Exception as error:  # noqa: BLE001  any fault of any key is a no
                faults.append(f"{key.name}: {_said(error)}")
            else:
                return key
    message = (
        f"{SIGNATURE}: {name} was signed with none of the trusted keys ({'; '.join(faults)}); "
        "load an archive that one of them signed, with torchrec-archiver sign"
    )
    raise ArchiveError(message)


@contextmanager
def _folder(index: bytes, name: str) -> "Iterator[Path]":
    """A folder that holds what is signed alone."""
    with tempfile.TemporaryDirectory(prefix="torchrec-signed-") as outer:
        folder = Path(outer, "archive")
        folder.mkdir()
        (folder / name).write_bytes(index)
        yield folder


def _said(error: Exception) -> str:
    """In one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _library(name: str) -> Any:
    """Imported where it is used: few workers check signatures, and it takes 0.4 s."""
    try:
        return import_module(f"model_signing.{name}")
    except ImportError as error:
        message = f"signatures need the package model-signing ({error}); {INSTALL}"
        raise LoadError(message) from error
