"""What reading a JSON body takes, told by counting characters of it."""

from collections.abc import Mapping

from torchrec_handler.errors import RequestTooLarge

SMALL_BYTES = 2**18
"""No body of so many takes more than 56 MB, whatever it holds."""

PARSED_BYTES = 24
"""Of simdjson's own memory, for a number and its comma: two words and two positions."""

OBJECT_BYTES: Mapping[bytes, int] = {b"[": 88, b"{": 240, b":": 48, b",": 8}
"""Of Python's memory for what each character begins: lists, dicts, and places in them."""

STRING_BYTES = 56
"""Of a string beside its characters."""

NUMBER_BYTES = 32
"""Of a number beyond a place for it; none for those below 257, of up to 3 digits."""

READ_BYTES = 16
"""Of arrays that are read, for a number: rows are read block by block, and joined."""

MOST_TIMES = 6
SPARE_BYTES = 56 * 2**20
"""What may be taken beside a body, in times of its bytes, and as such."""


class Memory:
    """What reading a body takes, known before anything of it becomes a Python object."""

    def __init__(self, body: bytes | bytearray) -> None:
        self._bytes = len(body)
        self._most = MOST_TIMES * len(body) + SPARE_BYTES
        counts = {character: body.count(character) for character in OBJECT_BYTES}
        self._values = sum(counts.values())
        self._parsed = PARSED_BYTES * self._values
        self._read = READ_BYTES * counts[b","]
        self._whole = _object_bytes(body, counts)

    @classmethod
    def of(cls, body: bytes | bytearray) -> "Memory | None":
        """None for a body so small that it need not be counted."""
        return cls(body) if len(body) > SMALL_BYTES else None

    @property
    def fits_whole(self) -> bool:
        """Whether all may be made objects at once, and read into arrays."""
        return self._parsed + self._whole + self._read <= self._most

    def check_parsed(self) -> None:
        """See that the body can be parsed.

        Raises:
            RequestTooLarge: it would take too much memory.
        """
        self._check(self._parsed)

    def check_whole(self) -> None:
        """See that all can be made objects at once.

        Raises:
            RequestTooLarge: they would take too much memory.
        """
        self._check(self._parsed + self._whole)

    def check_part(self, part: bytes) -> None:
        """See that a part can be made objects, where all that was read before is arrays.

        Args:
            part: of the body, as JSON too.

        Raises:
            RequestTooLarge: they would take too much memory.
        """
        counts = {character: part.count(character) for character in OBJECT_BYTES}
        self._check(self._parsed + self._read + _object_bytes(part, counts))

    def _check(self, needed: int) -> None:
        if needed > self._most:
            raise RequestTooLarge(
                where="body",
                received=(
                    f"{self._values} values, names and lists in {self._bytes} bytes, which would "
                    f"take {needed // 2**20} MB to read"
                ),
                hint="send fewer rows, or protobuf",
            )


def _object_bytes(text: bytes | bytearray, counts: Mapping[bytes, int]) -> int:
    """Of the Python objects that JSON text makes, at most."""
    numbers = min(counts[b","], (len(text) - counts[b","]) // 3)
    needed = sum(count * OBJECT_BYTES[character] for character, count in counts.items())
    return needed + STRING_BYTES * (text.count(b'"') // 2) + NUMBER_BYTES * numbers
