"""The archive's samples, replayed on what a delta leads to, before anything of it is served."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torchrec_handler.archive.delta import (
    ROLLBACK,
    Delta,
    list_deltas,
    read_delta,
    read_head,
    sequence_of,
)
from torchrec_handler.archive.samples import Sample
from torchrec_handler.errors import DeltaError, SelfTestError
from torchrec_handler.load.rehearsal import Rehearsal
from torchrec_handler.load.self_test import (
    Outputs,
    Tolerance,
    answer,
    check_kind,
    check_outputs,
    largest_change,
)
from torchrec_handler.load.states import Predictor
from torchrec_handler.options import Options
from torchrec_handler.updates.live import Live
from torchrec_handler.updates.weights import Weights

logger = logging.getLogger(__name__)

MOST = 16
"""Samples that are replayed of a delta, the first ones, so that it is not served much later."""
AT_DELTA = "this worker's model does not answer as it did when the delta was made"
TRIES = 3


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What deltas are held to."""

    predictor: Predictor
    """What `load` gave."""
    options: Options
    samples: Sequence[Sample]
    tolerance: Tolerance

    def check(self, sample: Sample, received: Outputs, expected: Outputs) -> None:
        """See that a sample gives what a delta says.

        Raises:
            SelfTestError: it does not.
        """
        check_outputs(sample, received, expected, self.tolerance, AT_DELTA)


class Entered(Protocol):
    """What forward calls go through; `served.Served` is."""

    sequence: int
    model: Predictor

    @property
    def digest(self) -> str:
        """Of the generation."""

    def enter(self) -> None:
        """Keep rows those of one generation."""

    def leave(self) -> None:
        """Let them change."""


@dataclass
class _Stage:
    """Where samples are replayed, of one live copy."""

    copy: int
    rehearsal: Rehearsal
    models: dict[int, Predictor] = field(default_factory=dict)
    """By the number of their dense weights."""
    newest: tuple[str, Sequence[Outputs]] | None = None
    """Digest of a generation, and what it gives."""


class SampleTest:
    """Replays samples on what is not served yet; the thread's that is elected."""

    def __init__(self, recorded: Recorded, live: Live, weights: Weights[Predictor]) -> None:
        """Prepare it, with the live copy as that thread opened it."""
        self._recorded, self._live, self._weights = recorded, live, weights
        self._samples = recorded.samples[:MOST]
        self._most = recorded.options.updates.max_output_change
        self._stage: _Stage | None = None

    def prepare(self) -> None:
        """Make a model of what is served, before there is a delta that would have to wait for it.

        Raises:
            LoadError: it cannot be made.
        """
        number = self._live.control.served_dense
        if number not in self._staged().models:
            self._model(number)
            self._before()  # it brings rows of the samples into this process, too

    def check(self, delta: Delta, number: int) -> None:
        """See that samples give what the delta says, or else something of the same kind.

        Args:
            delta: that leads on from what is served, checked.
            number: of the dense weights from then on, which lie beside the live copy.

        Raises:
            DeltaError: they do not.
            LoadError: the model does not take the weights.
        """
        most = self._most if delta.head.kind != ROLLBACK else None
        before = None if most is None else self._before()
        model = self._model(number)
        stage = self._staged()
        try:
            found = stage.rehearsal.outputs(model, self._samples, delta.tables)
            for at, (sample, outputs) in enumerate(zip(self._samples, found, strict=True)):
                check_kind(sample, outputs)
                if delta.outputs is not None:
                    self._recorded.check(sample, outputs, delta.outputs[at])
        except SelfTestError as error:
            raise _refused(delta, str(error)) from error
        if most is not None and before is not None:
            self._check_change(delta, most, before, found)
        stage.newest = delta.head.digest, found

    def _check_change(
        self, delta: Delta, most: float, before: Sequence[Outputs], after: Sequence[Outputs]
    ) -> None:
        for sample, old, new in zip(self._samples, before, after, strict=True):
            change = largest_change(old, new)
            if not change <= most:
                message = (
                    f"{sample.qualname}, sample of {sample.rows} rows: changes an output by "
                    f"{change:.6g}, expected at most {most:g} "
                    "(torchrec.updates.max_output_change)"
                )
                raise _refused(delta, message)

    def _before(self) -> Sequence[Outputs] | None:
        """What is served gives; None where it raises, as what was never replayed may."""
        control = self._live.control
        stage, digest = self._staged(), control.served_sha256
        if stage.newest is None or stage.newest[0] != digest:
            model = self._model(control.served_dense)
            try:
                stage.newest = digest, stage.rehearsal.outputs(model, self._samples)
            except SelfTestError as error:
                logger.warning("What is served raises: %s", error)
                return None
        return stage.newest[1]

    def _staged(self) -> _Stage:
        copy = self._live.control.copy
        if self._stage is None or self._stage.copy != copy:
            recorded = self._recorded
            rehearsal = Rehearsal(recorded.predictor, recorded.options, self._live.path)
            self._stage = _Stage(copy, rehearsal)
        return self._stage

    def _model(self, number: int) -> Predictor:
        stage, served = self._staged(), self._live.control.served_dense
        if number not in stage.models:
            model = stage.rehearsal.make(self._weights.read(number))
            kept = {served: stage.models[served]} if served in stage.models else {}
            stage.models = {**kept, number: model}
        return stage.models[number]


def replay_served(served: Entered, deltas: Path, recorded: Recorded) -> None:
    """Replay samples on what a worker serves as it starts, where its delta says what they give.

    Rows may change between two samples: then those of the new generation are replayed, but not
    for ever, as all that is served was replayed by the thread that wrote it.

    Raises:
        SelfTestError: the model gives something else.
        Unusable: the live copy is lost.
    """
    for _ in range(TRIES):
        served.enter()
        sequence, digest = served.sequence, served.digest
        served.leave()
        expected = _outputs_of(deltas, sequence, digest)
        if expected is None or all(
            _gives(served, sequence, sample, outputs, recorded)
            for sample, outputs in zip(recorded.samples, expected, strict=False)
        ):
            return


def _gives(
    served: Entered, sequence: int, sample: Sample, expected: Outputs, recorded: Recorded
) -> bool:
    """Whether it was still that generation; raises where it gives something else."""
    served.enter()
    try:
        if served.sequence != sequence:
            return False
        model = served.model
        found = answer(model.module, sample, model.result_metadata, model.device)
    finally:
        served.leave()
    recorded.check(sample, found, expected)
    return True


def _outputs_of(folder: Path, sequence: int, digest: str) -> Sequence[Outputs] | None:
    """What the samples give at a generation, where its delta is there and says that."""
    for path in list_deltas(folder):
        if sequence_of(path) != sequence:
            continue
        try:
            head = read_head(path)
            if head.digest == digest:
                return read_delta(path).outputs
        except DeltaError:  # the thread that follows the folder refuses it
            continue
    return None


def _refused(delta: Delta, why: str) -> DeltaError:
    return DeltaError(f"{delta.path.name}: {why}", reason="samples")
