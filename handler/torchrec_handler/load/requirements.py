"""Whether what a model's requirements.txt lists is there, before its code misses it.

TorchServe installs the list only where its config.properties says so, and tells no worker whether
it did.
"""

import json
import logging
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from torchrec_handler.archive.format import MANIFEST
from torchrec_handler.errors import ArchiveError

logger = logging.getLogger(__name__)

INSTALLING = "install_py_dep_per_model=true"
"""TorchServe's setting, a line of config.properties."""
COMMENT_OR_OPTION = re.compile(r"(^|\s)(#|--?[a-z]).*")
CONTINUED = re.compile(r"\\\r?\n")


def check_requirements(folder: Path) -> None:
    """Check the packages that an archive's manifest lists.

    A package of another version than the one asked for is a warning: the model may well run.

    Args:
        folder: of a verified archive.

    Raises:
        ArchiveError: one is neither installed nor a module that can be imported.
    """
    model = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["model"]
    name = model.get("requirementsFile")
    if not name or not (folder / name).is_file():
        return
    missing = []
    for wanted in _read((folder / name).read_text(encoding="utf-8", errors="replace")):
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            # fbgemm-gpu-cpu is one that has another distribution's module.
            if not find_spec(wanted.name.replace("-", "_").replace(".", "_")):
                missing.append(wanted.name)
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            logger.warning("%s: received %s %s, expected %s", name, wanted.name, found, wanted)
    if missing:
        message = (
            f"{name}: {', '.join(missing)} not installed; put {INSTALLING} into TorchServe's "
            "config.properties, which installs the list for the model, or install it here"
        )
        raise ArchiveError(message)


def _read(text: str) -> Iterator[Requirement]:
    """The packages that a requirements.txt wants here; options and addresses name none."""
    for line in CONTINUED.sub(" ", text).splitlines():
        entry = COMMENT_OR_OPTION.sub("", line).strip()
        try:
            if entry.endswith(".whl") and "@" not in entry:
                name, found, _, _ = parse_wheel_filename(entry.rpartition("/")[2])
                wanted = Requirement(f"{name}=={found}")
            else:
                wanted = Requirement(entry)
        except (InvalidRequirement, InvalidWheelFilename):
            continue
        if wanted.marker is None or wanted.marker.evaluate():
            yield wanted
