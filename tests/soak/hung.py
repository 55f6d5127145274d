"""A model that hangs on one request, beside good ones."""

import threading
import time
from pathlib import Path

from tests.soak import asking
from tests.soak.row import Row
from torchrec_archiver.server import TorchServe

BACK_SECONDS = 15.0
SETTLED_SECONDS = 1.0


def model(folder: Path, *, times: int = 5, config: str | None = None) -> Row:
    """Send a request that hangs, again and again, under load.

    Args:
        folder: empty.
        times: how often.
        config: a model-config.yaml; the archive's own settings when not given.
    """
    if config is not None:
        (folder / "model-config.yaml").write_text(config, encoding="utf-8")
    archive = asking.archive(
        folder, config_file=None if config is None else folder / "model-config.yaml"
    )
    back: list[float] = []
    hung: list[asking.Answer] = []
    with TorchServe(folder / "server") as server:
        server.register(archive).raise_for_status()
        place = asking.address(server)
        with asking.clients(place) as answers:
            for _ in range(times):
                answers.wait_right_after(time.monotonic())
                time.sleep(SETTLED_SECONDS)
                began = time.monotonic()
                asked = threading.Thread(
                    target=lambda: hung.append(asking.ask(place, asking.hanging()))
                )
                asked.start()
                # What is sent before it hangs is answered still.
                back.append(0.5 + answers.wait_right_after(began + 0.5))
                asked.join()
    failed = answers.failed()
    unanswered = sum(answer.status == asking.UNANSWERED for answer in failed + hung)
    statuses = sorted({str(answer.status) for answer in hung})
    return Row(
        what=f"a model that hangs on a request, {times} times",
        promise=f"that one fails, and its batch at most; right again in {BACK_SECONDS:g} s",
        measured=(
            f"right again in {min(back):.1f} to {max(back):.1f} s; the hung ones got "
            f"{', '.join(statuses)}; of {len(answers.all)} others {len(failed)} an error, "
            f"{unanswered} no answer, {answers.wrong()} a wrong one"
        ),
        held=max(back) < BACK_SECONDS
        and not unanswered
        and not answers.wrong()
        and len(failed) <= times * (asking.CLIENTS - 1)
        and statuses != ["200"],
    )
