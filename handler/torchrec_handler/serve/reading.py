"""Bytes to requests that the model can take, or errors: some of them as one."""

from collections.abc import Callable, Collection, Mapping, Sequence
from time import monotonic, thread_time
from typing import Any, NamedTuple

from torchrec_handler.archive.format import Signature
from torchrec_handler.errors import Overloaded, RequestError
from torchrec_handler.options import Options
from torchrec_handler.serve.attempt import READING, attempt
from torchrec_handler.serve.budget import Budget, size_of_arguments
from torchrec_handler.serve.codecs.choose import Codecs, Group, Reply
from torchrec_handler.serve.codecs.single_rows import not_single
from torchrec_handler.serve.measure import Size
from torchrec_handler.serve.request import AnyRequest, Columns, TypedRequest, ValidRequest
from torchrec_handler.serve.route import route
from torchrec_handler.serve.validate import Validator

NO_REPLY: Any = None
"""Of what is not answered but by an error."""

NOTHING = Size(0, 0)

COMPRESSED_BYTES = 2**40
"""Behind all bodies that are as they are."""

Arguments = Mapping[str, Any]


class Part(NamedTuple):
    """A request, or some of a row each that go through the stages as one of so many rows."""

    positions: Sequence[int]
    content: Columns | Arguments | ValidRequest | RequestError
    """What became of it: arguments are of a method called alone."""
    size: Size = NOTHING
    reply: Reply = NO_REPLY
    group: Group | None = None
    """Of some, what they were read as."""

    @property
    def rows(self) -> list[int]:
        """Of each request."""
        return [self.size.rows] if len(self.positions) == 1 else [1] * len(self.positions)


class Reading:
    """Reads and checks the requests of one model."""

    def __init__(
        self,
        codecs: Codecs,
        signature: Signature,
        options: Options,
        methods: Mapping[str, bool],
        cut_by_rows: Collection[str],
    ) -> None:
        """Take what requests are read for.

        Args:
            codecs: of the model.
            signature: what it takes.
            options: of the server.
            methods: qualname -> need_preproc.
            cut_by_rows: those of which requests of a row each can be one.
        """
        self._codecs = codecs
        self._signature = signature
        self._validator = Validator(signature, options)
        self._budget = Budget(options.limits)
        self._limits = options.limits
        self._methods = methods
        self._cut_by_rows = cut_by_rows

    def out_of_range_ids(self) -> dict[str, int]:
        """How many ids of each feature lay outside of its table."""
        return self._validator.out_of_range.counts()

    def read(self, requests: Sequence[AnyRequest]) -> list[Part]:
        """Read requests, the smallest first, and refuse what is too much for one batch.

        A compressed one is as large as it inflates, which only reading it tells. Seconds in which
        other programs had the processor are nobody's fault, and do not count.
        """
        parts: list[Part] = []
        most = self._limits.seconds_of_reading
        began, own = monotonic(), thread_time()
        costs = list(map(_cost, requests))
        groups = self._codecs.group(requests)
        for positions in sorted(groups, key=lambda group: costs[group[0]]):
            # Asking the kernel for a thread's own time takes ten times as long.
            if parts and monotonic() - began > most and thread_time() - own > most:
                message = (
                    f"not read: smaller requests took more than {most:g} s "
                    "(limits.seconds_of_reading); try again"
                )
                parts += [Part([position], Overloaded(message)) for position in positions]
            else:
                parts += self._decode_group(positions, requests)
        return self._within_budget(parts)

    def _within_budget(self, parts: Sequence[Part]) -> list[Part]:
        """In order, without what is too much: that is told of each request, not of some."""
        parts = sorted(parts, key=_first)
        read = [part for part in parts if not isinstance(part.content, RequestError)]
        refusals = self._budget.refusals([part.size for part in read]) if read else {}
        if not refusals:
            return parts
        if any(part.group for part in parts):
            return self._within_budget([each for part in parts for each in self._apart(part)])
        refused = {_first(read[at]): refusal for at, refusal in refusals.items()}
        return [
            Part(part.positions, refused[_first(part)]) if _first(part) in refused else part
            for part in parts
        ]

    def _decode_group(self, positions: Sequence[int], requests: Sequence[AnyRequest]) -> list[Part]:
        """Decode requests together or, where one of them is not as it should be, one by one."""
        qualname = requests[positions[0]].qualname
        if len(positions) > 1 and self._methods.get(qualname):
            own = [requests[position] for position in positions]
            group = attempt(READING, self._codecs.decode_together, own)
            if not isinstance(group, RequestError):
                rows = attempt(READING, self._as_rows, positions, group, qualname)
                return [rows] if isinstance(rows, Part) else self._each(positions, group)
        return [self._part([at], self._decode, requests[at]) for at in positions]

    def _as_rows(self, positions: Sequence[int], group: Group, qualname: str) -> Part:
        """Requests that were read together as one.

        Raises:
            RequestError: they are not of a row each, or answers to rows cannot be told apart, or
                there is something to be told of one of them.
        """
        if qualname not in self._cut_by_rows:
            raise not_single()
        columns = group.rows()
        size = self._validator.measure(columns)
        if size.rows != len(positions):
            raise not_single()
        return Part(positions, columns, size, group.reply, group)

    def _each(self, positions: Sequence[int], group: Group) -> list[Part]:
        """Requests that were read together, each by itself."""
        return [
            self._part([at], self._measure, columns, group.reply)
            for at, columns in zip(positions, group.each(), strict=True)
        ]

    def _apart(self, part: Part) -> list[Part]:
        return [part] if part.group is None else self._each(part.positions, part.group)

    def _part(self, positions: Sequence[int], step: Callable[..., Any], *arguments: Any) -> Part:
        read = attempt(READING, step, *arguments)
        return Part(positions, *((read,) if isinstance(read, RequestError) else read))

    def _decode(self, raw: AnyRequest) -> tuple[Columns | Arguments, Size, Reply]:
        if not route(raw.qualname, self._methods):
            arguments, reply = self._codecs.decode_arguments(raw)
            return arguments, size_of_arguments(arguments, self._signature), reply
        return self._measure(*self._codecs.decode(raw))

    def _measure(self, columns: Columns, reply: Reply) -> tuple[Columns, Size, Reply]:
        return columns, self._validator.measure(columns), reply

    def check(self, parts: Sequence[Part]) -> list[Part]:
        """Check requests, but for arguments of a method called alone."""
        checked: list[Part] = []
        for part in parts:
            if part.group is None:
                checked.append(part)
                continue
            valid = attempt(READING, self._validator.check_rows, part.content, part.size)
            if isinstance(valid, RequestError):
                checked += self._apart(part)
            else:
                checked.append(part._replace(content=valid))
        waiting = [at for at, part in enumerate(checked) if isinstance(part.content, Columns)]
        each = self._check_columns([checked[at] for at in waiting])
        for at, own in zip(waiting, each, strict=True):
            checked[at] = checked[at]._replace(content=own)
        return checked

    def _check_columns(self, parts: Sequence[Part]) -> Sequence[ValidRequest | RequestError]:
        """Check requests together or, where that takes too much memory, one by one."""
        requests: list[Any] = [part.content for part in parts]
        sizes = [part.size for part in parts]
        checked = attempt(READING, self._validator.check, requests, sizes)
        if isinstance(checked, RequestError):
            return [attempt(READING, self._validator, columns) for columns in requests]
        return checked


def _cost(request: AnyRequest) -> int:
    """How long reading it may take; arrays are read already."""
    if isinstance(request, TypedRequest):
        return 0
    return len(request.body) + (COMPRESSED_BYTES if request.content_encoding else 0)


def _first(part: Part) -> int:
    return part.positions[0]
