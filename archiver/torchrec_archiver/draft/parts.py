"""What a drawn-up factory says, and the values that the files are written from."""

from collections.abc import Mapping
from dataclasses import dataclass

FLOATS = "float_features"
IDS = "id_list_features"
WEIGHTED_IDS = "id_score_list_features"
"""TorchRec's own names, of a model with one input of the type."""


@dataclass(frozen=True, kw_only=True)
class DraftInput:
    """One input of a model's forward."""

    name: str
    type: str
    """dense, sparse or weighted_sparse."""
    features: tuple[str, ...]
    ids_below: Mapping[str, int]
    """Feature -> rows of its table, of those that have one."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """All that a factory has to say of one model."""

    said: str
    """Where it came from."""
    inputs: tuple[DraftInput, ...]
    imports: tuple[str, ...]
    """Lines, without torch and SimpleFactory."""
    code: str = ""
    """In front of the factory's class; blocks of code."""
    model: tuple[str, ...]
    """Lines of the body of `model(self, device)`."""
    forward: tuple[str, ...]
    """Lines of the body of `forward(self, model, batch)`."""
    guesses: tuple[str, ...] = ()
    """What should be looked at, a sentence each."""
    guessed: str = ""
    """What makes answers wrong until the user has changed it."""


def input_name(parameter: str, kind: str, alone: Mapping[str, bool]) -> str:
    """What requests call an input: TorchRec's own name, or the parameter's where there are several.

    Args:
        parameter: of the model's forward.
        kind: the input's type.
        alone: type -> whether it is the only one of it.
    """
    own = {"dense": FLOATS, "sparse": IDS, "weighted_sparse": WEIGHTED_IDS}
    return own[kind] if alone[kind] else parameter


def numbered(count: int) -> tuple[str, ...]:
    """Names for numbers that nothing names."""
    return tuple(f"dense_{number}" for number in range(count))
