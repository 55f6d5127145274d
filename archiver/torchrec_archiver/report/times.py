"""How long a request takes, by stage of the engine: the archive's own samples, in this process."""

import json
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

from torchrec_archiver.answer import answering
from torchrec_archiver.report.sections import Times
from torchrec_handler.archive.format import SAMPLES
from torchrec_handler.archive.read import Call, Description
from torchrec_handler.archive.samples import Sample, read_samples
from torchrec_handler.errors import ArchiveError, LoadError, RequestError
from torchrec_handler.serve.engine import Engine
from torchrec_handler.serve.observe import Event, Stage
from torchrec_handler.serve.request import RawRequest

STAGES: tuple[Stage, ...] = ("read", "check", "batch", "predict", "split", "write")
FEWEST, MOST = 5, 200
"""Times that a request is sent."""
LONGEST_SECONDS = 0.5
"""That one is sent for, once it was sent often enough."""


class _Watch:
    """An observer that keeps what each stage of one request took."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def seen(self, event: Event) -> None:
        """Add an event."""
        self.seconds[event.stage] += event.seconds


def take(archive: Path, description: Description) -> Times:
    """Load an archive, which runs its code, and send each of its samples as a JSON request, alone.

    Args:
        archive: a .mar, a .tar.gz or a folder.
        description: of it.

    Returns:
        By recorded call, a method's together, the median of each stage.

    Raises:
        LoadError: the archive cannot be loaded, has no samples, or does not answer one.
    """
    if SAMPLES not in description.index.sha256:
        message = f"{SAMPLES}: the archive has no samples to time; build it with --samples"
        raise ArchiveError(message)
    with answering(archive) as loaded:
        watch = _Watch()
        engine = Engine(loaded.name, loaded.predictor, loaded.options, watch)
        samples = read_samples(loaded.folder / SAMPLES)
        order = [sample.qualname for sample in samples]
        samples.sort(key=lambda sample: order.index(sample.qualname))
        return {
            Call(sample.qualname, sample.rows): _time(engine, watch, sample) for sample in samples
        }


def _time(engine: Engine, watch: _Watch, sample: Sample) -> dict[str, float]:
    request = RawRequest(body=_body(sample), content_type="application/json")
    request = request._replace(qualname=sample.qualname)
    taken: defaultdict[str, list[float]] = defaultdict(list)
    end = time.monotonic() + LONGEST_SECONDS
    for number in range(MOST):
        watch.seconds.clear()
        (outcome,) = engine.predict([request])
        if isinstance(outcome, RequestError):
            message = f"{SAMPLES}: {sample.qualname} with {sample.rows} rows is answered: {outcome}"
            raise LoadError(message)
        for stage in STAGES:
            taken[stage].append(watch.seconds[stage])
        if number >= FEWEST and time.monotonic() > end:
            break
    return {stage: median(of_stage[1:]) for stage, of_stage in taken.items()}


def _body(sample: Sample) -> bytes:
    """A sample in JSON columns."""
    arrays = {name: value.tolist() for name, value in sample.inputs.items()}
    return json.dumps({**arrays, "batch_size": sample.rows}).encode()
