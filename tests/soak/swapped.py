"""Versions that take each other's place under load."""

import shutil
import time
from pathlib import Path

from tests.soak import asking
from tests.soak.row import Row
from torchrec_archiver.server import TorchServe
from torchrec_archiver.swapping import swap

LONGEST_SECONDS = 120.0


def versions(folder: Path, *, times: int = 20) -> Row:
    """Swap two versions, again and again."""
    took: list[float] = []
    with TorchServe(folder / "server") as server:
        archives = []
        for version in ("1.0", "2.0"):
            (folder / version).mkdir()
            built = asking.archive(folder / version, version=version)
            stored = server.model_store / f"{asking.NAME}-{version}.mar"
            archives.append(Path(shutil.copy(built, stored)))
        management = str(server.management.base_url)
        swap(archives[0], management, LONGEST_SECONDS, lambda _: None)
        with asking.clients(asking.address(server)) as answers:
            for number in range(1, times + 1):
                began = time.monotonic()
                swap(archives[number % 2], management, LONGEST_SECONDS, lambda _: None)
                took.append(time.monotonic() - began)
    failed = answers.failed()
    unanswered = sum(answer.status == asking.UNANSWERED for answer in failed)
    return Row(
        what=f"a model swapped {times} times under load",
        promise="no failed request, none unanswered",
        measured=(
            f"of {len(answers.all)} requests {len(failed)} failed, {unanswered} of them "
            f"unanswered, {answers.wrong()} wrong; a swap took {min(took):.1f} to {max(took):.1f} s"
        ),
        held=not failed and not answers.wrong(),
    )
