"""What a factory says of raw values: ids to be hashed, ids out of range, missing numbers.

In `model_inputs_data`, by input and feature; `SimpleFactory` says it in its `inputs`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torchrec_handler.archive.format import (
    LARGEST_FLOAT32,
    OUT_OF_RANGE,
    SPARSE_TYPES,
    Hashed,
    InputSignature,
    Signature,
)
from torchrec_handler.errors import FactoryError
from torchrec_handler.hashing import FUNCTION, MOST_ROWS, check
from torchrec_handler.load.factory import FactoryOutput

ANY_ID = 2**31
"""How many ids a feature without a limit takes, unless they are wide."""


def with_raw(signature: Signature, output: FactoryOutput) -> Signature:
    """A signature with what the factory says of raw values.

    Raises:
        FactoryError: it says it of a feature that the input does not have, or something else than
            can be done.
    """
    where = f"{type(output.factory).__name__}.model_inputs_data"
    inputs = []
    for entry in signature.inputs:
        hint = output.model_inputs_data.get(entry.name)
        given = hint if isinstance(hint, Mapping) else {}
        said: dict[str, Any] = {}
        for key, types, read in (
            ("hashed", SPARSE_TYPES, partial(_hashed, entry)),
            ("out_of_range", SPARSE_TYPES, _policy),
            ("defaults", ("dense",), _number),
        ):
            place = f"{where}[{entry.name!r}][{key!r}]"
            said[key] = _by_feature(place, given.get(key, {}), entry, types, read)
        for feature, hashed, policy in zip(
            entry.features, said["hashed"], said["out_of_range"], strict=False
        ):
            if hashed and policy:
                message = (
                    f"{where}[{entry.name!r}]['out_of_range']: received the feature {feature!r}, "
                    "which is hashed: no id of it is out of range"
                )
                raise FactoryError(message)
        inputs.append(replace(entry, **said))
    return replace(signature, inputs=tuple(inputs))


def _by_feature(
    where: str,
    given: Any,
    entry: InputSignature,
    types: tuple[str, ...],
    read: Callable[[str, int, Any], Any],
) -> tuple[Any, ...]:
    """Of each feature what is said of it, or None; nothing where it is said of none."""
    if not isinstance(given, Mapping):
        message = f"{where}: received {given!r}, expected a mapping of features"
        raise FactoryError(message)
    if not given:
        return ()
    if entry.type not in types:
        expected = " or ".join(types)
        message = f"{where}: the input is {entry.type}, this can be said of {expected} ones"
        raise FactoryError(message)
    if unknown := [name for name in given if name not in entry.features]:
        known = ", ".join(entry.features) or "none that are known by name"
        message = f"{where}: received the feature {unknown[0]!r}, expected of {known}"
        raise FactoryError(message)
    return tuple(
        read(f"{where}[{name!r}]", at, given[name]) if name in given else None
        for at, name in enumerate(entry.features)
    )


def _hashed(entry: InputSignature, where: str, position: int, given: Any) -> Hashed:
    if not isinstance(given, Mapping) or not given.keys() <= {"seed", "rows"}:
        message = f"{where}: received {given!r}, expected nothing but 'seed' and 'rows'"
        raise FactoryError(message)
    limit = entry.ids_below[position] if entry.ids_below else None
    most = limit or (MOST_ROWS if entry.is_wide else ANY_ID)
    hashed = Hashed(function=FUNCTION, rows=given.get("rows", most), seed=given.get("seed", 0))
    try:
        check(hashed.rows, hashed.seed)
    except (TypeError, ValueError) as error:
        message = f"{where}: {error}"
        raise FactoryError(message) from error
    if hashed.rows > most:
        message = f"{where}: received {hashed.rows} rows, expected at most {most}"
        message += ", those of the feature's table" if limit else ""
        raise FactoryError(message)
    return hashed


def _policy(where: str, _: int, given: Any) -> str:
    if given not in OUT_OF_RANGE:
        message = f"{where}: received {given!r}, expected one of {', '.join(OUT_OF_RANGE)}"
        raise FactoryError(message)
    return str(given)


def _number(where: str, _: int, given: Any) -> float:
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    if not is_number or not abs(given) <= LARGEST_FLOAT32:
        message = f"{where}: received {given!r}, expected a finite float32"
        raise FactoryError(message)
    return float(given)
