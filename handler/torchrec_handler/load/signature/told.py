"""What a factory itself says of its outputs, in `model_inputs_data()[INPUT]["outputs"]`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torchrec_handler.archive.format import Count, InputSignature, Signature
from torchrec_handler.errors import FactoryError
from torchrec_handler.load.factory import FactoryOutput

ROWS = Count(factor=1)


@dataclass(kw_only=True)
class Told:
    """What outputs count, and what was found out about that."""

    where: str
    counts: dict[str, Count] = field(default_factory=dict)
    """Output name -> what it counts, with a factor of 1."""
    right: set[str] = field(default_factory=set)
    """Outputs for which that is so in a method."""
    wrong: dict[str, str] = field(default_factory=dict)
    """Output name -> what a method gave instead."""

    def check(self, *, is_complete: bool) -> None:
        """See that what was said is so.

        Args:
            is_complete: whether all outputs of all methods are known.

        Raises:
            FactoryError: it is not.
        """
        for name, seen in self.wrong.items():
            if name not in self.right:
                message = f"{self.where}: {seen}"
                raise FactoryError(message)
        unknown = sorted(self.counts.keys() - self.right)
        if is_complete and unknown:
            message = f"{self.where}: says what {unknown[0]!r} counts, which is no output"
            raise FactoryError(message)


def read_told(output: FactoryOutput, signature: Signature) -> Told:
    """Read `outputs` of every input: output -> feature, features, or None for the input's rows.

    A list of outputs instead says that they count all ids of the input.

    Raises:
        FactoryError: an output is said twice, or a feature is not the input's.
    """
    told = Told(where=f"{type(output.factory).__name__}.model_inputs_data")
    for entry in signature.inputs:
        hint = output.model_inputs_data.get(entry.name)
        given = hint.get("outputs", ()) if isinstance(hint, Mapping) else ()
        where = f"{told.where}[{entry.name!r}]['outputs']"
        if not isinstance(given, Mapping) and not _are_names(given):
            message = f"{where}: received {given!r}, expected outputs, or features by output"
            raise FactoryError(message)
        for name in given:
            if name in told.counts:
                message = f"{where}: says what {name!r} counts, which another input said before"
                raise FactoryError(message)
            features = given[name] if isinstance(given, Mapping) else entry.features
            told.counts[name] = _count(f"{where}[{name!r}]", entry, features)
    return told


def _count(where: str, entry: InputSignature, features: Any) -> Count:
    if features is None:
        return ROWS
    if "sparse" not in entry.type:
        message = f"{where}: the input is {entry.type} and has no ids, expected None, for its rows"
        raise FactoryError(message)
    names = (features,) if isinstance(features, str) else features
    if not _are_names(names):
        message = f"{where}: received {features!r}, expected a feature, features or None"
        raise FactoryError(message)
    if unknown := [name for name in names if name not in entry.features]:
        known = ", ".join(entry.features) or "none that are known by name"
        message = f"{where}: received the feature {unknown[0]!r}, expected of {known}"
        raise FactoryError(message)
    is_whole = tuple(names) == entry.features
    positions = () if is_whole else tuple(map(entry.features.index, names))
    return Count(factor=1, input=entry.name, features=positions)


def _are_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
