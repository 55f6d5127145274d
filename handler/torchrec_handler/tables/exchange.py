"""Lookups on other ranks: one rank asks, the others look up and answer.

No rank ever waits for one that has refused a batch: only the leader reads requests.

Shapes: B rows, F features, D the sum of widths, N ids.
"""

import io
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from torchrec_handler.errors import Unusable
from torchrec_handler.ranks import Ranks
from torchrec_handler.tables.compact import kept
from torchrec_handler.tables.messages import (
    CALL,
    HEAD,
    LENGTH,
    LOOK_UP,
    ROW_TYPES,
    SAID,
    STOP,
    Asked,
    answer_of,
    packed,
    rows_of,
    unpacked,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")
LookUp = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""Ids [N], offsets [F * B + 1] and weights [N] -> [B, D], or of sequences [N, D]."""
Wait = Callable[[], list[torch.Tensor]]
"""Waits for the rows of each that was asked."""

GLOO = "gloo/transport/"
"""What is in gloo's messages, whose errors have no type."""
PATIENCE = 6
"""A follower ends that hears nothing for so many times what the leader waits for an answer."""


class Leader:
    """Asks the other ranks."""

    def __init__(self, ranks: Ranks, seconds: float) -> None:
        """Begin to lead: from now on no follower is left without a word for long.

        Args:
            ranks: of which this one leads.
            seconds: how long to wait for an answer.
        """
        self.ranks = ranks
        self._timeout = timedelta(seconds=seconds)
        self._lock = threading.Lock()
        self._lost: Unusable | None = None
        self._end: Callable[[Unusable], Any] | None = None
        self._stopped = threading.Event()
        self._heard = time.monotonic()
        self._pulse = threading.Thread(target=self._beat, args=(seconds / 2,), daemon=True)
        self._pulse.start()

    def look_up(
        self, asked: Sequence[Asked], own: Callable[[], T], early: Wait | None = None
    ) -> tuple[T, list[torch.Tensor]]:
        """Look up on other ranks, and meanwhile here.

        Args:
            asked: at most one of each rank.
            own: what to do meanwhile.
            early: what `ask` gave for the same; None where nobody was asked yet.

        Returns:
            What `own` gives, and rows for each that was asked.

        Raises:
            Unusable: a rank is gone, or did not answer in time; so is every later call.
            RuntimeError: a lookup raised on its rank, as it would have here.
        """
        wait = early or self.ask(asked)
        try:
            found = own()
        finally:
            rows = wait()
        return found, rows

    def ask(self, asked: Sequence[Asked]) -> Wait:
        """Ask other ranks, and go on.

        Args:
            asked: at most one of each rank.

        Returns:
            What waits for their rows, to be called once; it raises what `look_up` does.

        Raises:
            Unusable: a rank is gone.
        """
        with self._lock:
            self.check()
            waiting = [self._ask(each) for each in asked]

        def wait() -> list[torch.Tensor]:
            with self._lock:
                self.check()
                for each, (_, work) in zip(asked, waiting, strict=True):
                    self._wait(each.rank, work)
                self._heard = time.monotonic()
            answers = zip(asked, waiting, strict=True)
            return [rows_of(each, answer) for each, (answer, _) in answers]

        return wait

    def call(self, method: Callable[..., T], qualname: str, *arguments: Any) -> T:
        """Call a method on all ranks at once, which meet in collectives inside of it.

        Args:
            method: this rank's.
            qualname: its name.
            arguments: tensors, plain values, and mappings and lists of them.

        Returns:
            What it gives here.

        Raises:
            Unusable: as `look_up` does.
            Exception: what the method raises here, as it did on the other ranks.
        """
        file = io.BytesIO()
        torch.save([qualname, arguments], file)
        body = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
        head = torch.zeros(HEAD, dtype=torch.int64)
        head[0], head[1] = CALL, body.numel()
        with self._lock:
            self.check()
            waiting = [
                self._send(rank, [head, body], torch.empty(SAID, dtype=torch.uint8))
                for rank in self.ranks.followers
            ]
            try:
                return method(*arguments)
            finally:
                for rank, work in zip(self.ranks.followers, waiting, strict=True):
                    self._wait(rank, work)
                self._heard = time.monotonic()

    def check(self) -> None:
        """See that all ranks are there, as far as is known.

        Raises:
            Unusable: one is not.
        """
        if self._lost is not None:
            raise Unusable(str(self._lost))

    def when_lost(self, end: Callable[[Unusable], Any]) -> None:
        """Say what to do where a rank is found gone while nothing is asked of it."""
        self._end = end
        if self._lost is not None:
            end(self._lost)

    def stop(self) -> None:
        """Let the followers end."""
        self._stopped.set()
        self._pulse.join()
        head = torch.tensor([STOP, *[0] * (HEAD - 1)])
        with self._lock:
            for rank in self.ranks.followers:
                self.check()
                self._wait(rank, [dist.isend(head, rank)])  # who follows may be gone at once

    def _ask(self, asked: Asked) -> tuple[torch.Tensor, list[Any]]:
        rows, width = asked.shape
        size = rows * width * asked.dtype.itemsize
        answer = torch.empty(SAID + size, dtype=torch.uint8)
        return answer, self._send(asked.rank, [*packed(asked, size)], answer)

    def _show(self) -> None:
        head = torch.zeros(HEAD, dtype=torch.int64)  # IDLE
        with self._lock:
            for rank in self.ranks.followers:
                self.check()
                self._wait(rank, self._send(rank, [head], torch.empty(SAID, dtype=torch.uint8)))

    def _send(self, rank: int, parts: Sequence[torch.Tensor], answer: torch.Tensor) -> list[Any]:
        try:
            work: list[Any] = [dist.isend(part, rank) for part in parts]
            return [*work, dist.irecv(answer, rank)]
        except RuntimeError as error:
            raise self._gone(rank, error) from error

    def _wait(self, rank: int, work: Sequence[Any]) -> None:
        try:
            for each in work:
                each.wait(timeout=self._timeout)
        except RuntimeError as error:
            raise self._gone(rank, error) from error

    def _gone(self, rank: int, error: Exception) -> Unusable:
        if self._lost is None:
            message = f"rank {rank} of {self.ranks.size} is gone, or does not answer: {error}"
            self._lost = Unusable(message)
        return self._lost

    def _beat(self, every: float) -> None:
        """Show that this rank is there, and see that the others are, where nothing else does."""
        while self._lost is None and not self._stopped.wait(every):
            if time.monotonic() - self._heard >= every:
                try:
                    self._show()
                except Unusable as lost:
                    if self._end is not None:
                        self._end(lost)


class Follower:
    """Looks up what the leader asks."""

    def __init__(
        self,
        ranks: Ranks,
        sites: Mapping[int, LookUp],
        seconds: float,
        *,
        check: Callable[[], None] | None = None,
        call: Callable[..., Any] | None = None,
    ) -> None:
        """Be ready.

        Args:
            ranks: of which this one follows.
            sites: number -> lookup, of those that this rank has tables of.
            seconds: how long the leader waits for an answer.
            check: called before each lookup; what it raises ends this rank.
            call: the model's methods, called with a name and arguments; None where this rank looks
                up alone.
        """
        self._call = call
        self.ranks = ranks
        self._sites = sites
        self._check = check
        self._patience = timedelta(seconds=PATIENCE * seconds)

    def run(self) -> None:
        """Answer, until the leader says that it is over.

        Raises:
            Unusable: the leader is gone, or said nothing for long; or the tables were changed.
        """
        head = torch.empty(HEAD, dtype=torch.int64)
        while True:
            self._wait(dist.irecv, head)
            command, *numbers = head.tolist()
            if command == STOP:
                return
            if command == CALL:
                self._take_part(numbers[0])
            answer = self._look_up(*numbers) if command == LOOK_UP else answer_of(0)
            self._wait(dist.isend, answer)

    def _take_part(self, size: int) -> None:
        body = torch.empty(size, dtype=torch.uint8)
        self._wait(dist.irecv, body)
        qualname, arguments = torch.load(io.BytesIO(body.numpy().tobytes()), weights_only=True)
        assert self._call is not None  # noqa: S101  as the leader's model is this rank's
        try:
            self._call(qualname, *arguments)
        except RuntimeError as error:
            if GLOO in str(error):
                message = f"a collective failed: {error}"
                raise Unusable(message) from error
            logger.warning("%s raised", qualname, exc_info=True)
        except Exception:
            logger.warning("%s raised", qualname, exc_info=True)

    def _look_up(  # noqa: PLR0913, PLR0917  the numbers of a command
        self,
        site: int,
        ids: int,
        offsets: int,
        each: int,
        is_weighted: int,
        size: int,
        dtype: int,
        is_compact: int,
    ) -> torch.Tensor:
        body = torch.empty(ids * (each + 4 * is_weighted) + offsets * each, dtype=torch.uint8)
        self._wait(dist.irecv, body)
        if self._check is not None:
            self._check()
        answer = answer_of(size)
        try:
            with torch.inference_mode():
                lists = unpacked(body, ids, offsets, each, is_weighted)
                found = self._sites[site](*lists)
                found = kept(found, lists[1]) if is_compact else found
            answer[SAID:] = found.to(ROW_TYPES[dtype]).contiguous().view(-1).view(torch.uint8)
        except Exception as error:
            logger.warning("a lookup raised", exc_info=True)
            text = f"{type(error).__name__}: {error}".encode()[: SAID - LENGTH]
            answer[:LENGTH].view(torch.int64)[0] = len(text)
            answer[LENGTH : LENGTH + len(text)] = torch.frombuffer(
                bytearray(text), dtype=torch.uint8
            )
        return answer

    def _wait(self, step: Callable[..., Any], tensor: torch.Tensor) -> None:
        try:
            step(tensor, self.ranks.leader).wait(timeout=self._patience)
        except RuntimeError as error:
            message = f"rank {self.ranks.leader}, which leads, is gone: {error}"
            raise Unusable(message) from error
