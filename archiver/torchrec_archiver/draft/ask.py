"""Asks a model what it takes and gives, by calling it. Shapes: B rows, F features."""

import inspect
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from torchrec_archiver.draft.parts import Draft, DraftInput, input_name, numbered
from torchrec_handler.errors import BuildError
from torchrec_handler.tables.collection import Collection, Collections
from torchrec_handler.tables.find import find_collections

ROWS = 2
"""B of a call."""
MOST_WIDTH = 64
"""Of a dense input that no layer names, as many features are tried."""
SECONDS = 20.0
"""Of trying."""
FEW = 10
"""Ids are drawn below it."""

SPARSE_WORDS = ("kjt", "sparse", "id", "jagged", "feature")
"""In names of parameters without a type that most likely are KeyedJaggedTensors."""
DENSE_WORDS = ("dense", "float", "num", "cont")

Ids = Mapping[str, int]
"""Feature -> rows of its table."""


@dataclass(frozen=True)
class _Taken:
    """How one parameter is given."""

    parameter: inspect.Parameter
    kind: str
    width: int = 0
    """F of a dense one."""
    features: tuple[str, ...] = ()


def ask_model(model: torch.nn.Module, name: str, make: str, import_line: str) -> Draft:
    """Find out what a model's forward takes and gives.

    Args:
        model: on the CPU, its weights of any values.
        name: how the user named it.
        make: the expression that makes it in `model(self, device)`.
        import_line: what that needs.

    Raises:
        BuildError: forward takes or gives something else than tensors and KeyedJaggedTensors, or
            cannot be called with what was tried.
    """
    model.eval()
    collections = find_collections(model)
    taken, result = _call(model, name, collections)
    kinds = [one.kind for one in taken]
    alone = {kind: kinds.count(kind) == 1 for kind in kinds}
    ids = _ids(collections)
    inputs = tuple(
        DraftInput(
            name=input_name(one.parameter.name, one.kind, alone),
            type=one.kind,
            features=one.features or _numbers(one, alone["dense"]),
            ids_below={name: ids[name] for name in one.features if name in ids},
        )
        for one in taken
    )
    arguments = ", ".join(
        f'{one.parameter.name}=batch["{given.name}"]'
        if one.parameter.kind is inspect.Parameter.KEYWORD_ONLY
        else f'batch["{given.name}"]'
        for one, given in zip(taken, inputs, strict=True)
    )
    guesses = [
        f"{given.name}: {len(given.features)} numbers a row fit, as trying showed; their names are "
        "made up: give them yours, here and in the request"
        for given in inputs
        if given.type == "dense"
    ]
    return Draft(
        said=f"Drawn up from {name}, which was called with {ROWS} rows.",
        inputs=inputs,
        imports=(import_line,),
        model=(
            "# Tables of many GB are best built on the meta device, without memory: with weights",
            "# from a checkpoint, all of them come from the archive.",
            f"return {make}.to(device)",
        ),
        forward=tuple(_returned(f"model({arguments})", result, name)),
        guesses=tuple(guesses),
    )


def _numbers(one: _Taken, is_alone: bool) -> tuple[str, ...]:  # noqa: FBT001
    names = numbered(one.width)
    return names if is_alone else tuple(f"{one.parameter.name}_{at}" for at in range(one.width))


def _ids(collections: Collections) -> dict[str, int]:
    """Every feature that is looked up, in the collections' order, and how many ids it may have."""
    found: dict[str, int] = {}
    for one in collections.found:
        for table in one.tables:
            for feature in table.features:
                found.setdefault(feature, table.rows or FEW)
    return {name: min(rows, collections.ids_below.get(name, rows)) for name, rows in found.items()}


def _call(model: torch.nn.Module, name: str, collections: Collections) -> tuple[list[_Taken], Any]:
    """Call forward in ever other ways until one fits.

    Returns:
        How each parameter was given, and the result.
    """
    parameters = [
        one
        for one in inspect.signature(model.forward).parameters.values()
        if one.kind not in {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    ]
    required = [one for one in parameters if one.default is inspect.Parameter.empty]
    ids = _ids(collections)
    weighted = any(map(_reads_weights, collections.found))
    stop = time.monotonic() + SECONDS
    first: Exception | None = None
    for chosen in [required, parameters] if required != parameters else [required]:
        for tried in _ways(model, name, chosen, ids, weighted=weighted):
            seen: dict[str, list[Collection]] = {}
            try:
                _run(model, tried, ids, collections, seen)
                taken = _assigned(tried, seen)
                return taken, _run(model, taken, ids, collections, {})
            except Exception as error:  # noqa: BLE001  a user's model may raise anything
                first = first or error
                if time.monotonic() > stop:
                    break
    said = f"{type(first).__name__}: {first}" if first else "it takes nothing"
    message = f"model: {name}: forward could not be called with what it seems to take: {said}"
    raise BuildError(" ".join(message.split()), hint=_how(parameters))


def _how(parameters: Sequence[inspect.Parameter]) -> str:
    names = ", ".join(one.name for one in parameters)
    return (
        f"its parameters are {names}; wrap it in a module whose forward takes tensors "
        "[B, F] and KeyedJaggedTensors alone, each with its type"
    )


def _ways(
    model: torch.nn.Module,
    name: str,
    parameters: Sequence[inspect.Parameter],
    ids: Ids,
    *,
    weighted: bool,
) -> Iterator[list[_Taken]]:
    """Kinds of parameters and widths of dense ones, the most likely first."""
    features = tuple(ids)
    sparse = "weighted_sparse" if weighted else "sparse"
    for kinds in itertools.product(*(_kinds(one, name, sparse) for one in parameters)):
        dense = kinds.count("dense")
        for widths in itertools.product(_widths(model), repeat=dense):
            left = iter(widths)
            yield [
                _Taken(parameter, kind, width=next(left))
                if kind == "dense"
                else _Taken(parameter, kind, features=features)
                for parameter, kind in zip(parameters, kinds, strict=True)
            ]


def _kinds(parameter: inspect.Parameter, name: str, sparse: str) -> Sequence[str]:
    """What a parameter may take."""
    annotation = str(parameter.annotation)
    if "KeyedJaggedTensor" in annotation:
        return [sparse]
    if annotation.endswith(("Tensor'>", "Tensor", "Tensor]")):
        return ["dense"]
    if parameter.annotation is not inspect.Parameter.empty:
        message = (
            f"model: {name}: forward's {parameter.name} is a {annotation}, expected a Tensor or a "
            "KeyedJaggedTensor"
        )
        hint = (
            "name the model inside, without loss and labels, or wrap it in a module whose forward "
            "takes these"
        )
        raise BuildError(message, hint=hint)
    lower = parameter.name.lower()
    if any(word in lower for word in DENSE_WORDS):
        return ["dense", sparse]
    return [sparse, "dense"] if any(word in lower for word in SPARSE_WORDS) else ["dense", sparse]


def _widths(model: torch.nn.Module) -> list[int]:
    """Those that layers name, in their order, then all small ones."""
    named = [
        int(width)
        for part in model.modules()
        for attribute in ("in_features", "num_features")
        if isinstance(width := getattr(part, attribute, None), int)
    ]
    return list(dict.fromkeys([*named, *range(1, MOST_WIDTH + 1)]))


def _run(
    model: torch.nn.Module,
    tried: Sequence[_Taken],
    ids: Ids,
    collections: Collections,
    seen: dict[str, list[Collection]],
) -> Any:
    """Call forward once.

    Args:
        model: what is called.
        tried: how each parameter is given.
        ids: of all features.
        collections: of the model.
        seen: given back: parameter -> the collections that got it as it is.
    """
    generator = torch.Generator().manual_seed(0)
    values = {one.parameter.name: _value(one, ids, generator) for one in tried}

    def watch(collection: Collection) -> Callable[..., None]:
        def hook(_: torch.nn.Module, arguments: Any, named: Any) -> None:
            for given in (*arguments, *named.values()):
                for name, value in values.items():
                    if given is value:
                        seen.setdefault(name, []).append(collection)

        return hook

    hooks = [
        one.module.register_forward_pre_hook(watch(one), with_kwargs=True)
        for one in collections.found
    ]
    positional = [one for one in tried if one.parameter.kind is not inspect.Parameter.KEYWORD_ONLY]
    named = [one for one in tried if one.parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    try:
        with torch.no_grad():
            return model(
                *(values[one.parameter.name] for one in positional),
                **{one.parameter.name: values[one.parameter.name] for one in named},
            )
    finally:
        for hook in hooks:
            hook.remove()


def _assigned(tried: Sequence[_Taken], seen: Mapping[str, Sequence[Collection]]) -> list[_Taken]:
    """Of several KeyedJaggedTensors each gets what the collections look up that it came to."""
    if sum(one.kind != "dense" for one in tried) == 1:
        return list(tried)
    taken = []
    for one in tried:
        if came_to := seen.get(one.parameter.name):
            names = [name for found in came_to for table in found.tables for name in table.features]
            kind = "weighted_sparse" if any(map(_reads_weights, came_to)) else "sparse"
            taken.append(_Taken(one.parameter, kind, features=tuple(dict.fromkeys(names))))
        else:
            taken.append(one)
    return taken


def _reads_weights(collection: Collection) -> bool:
    return collection.is_weighted and not collection.is_processed


def _value(one: _Taken, ids: Ids, generator: torch.Generator) -> Any:
    if one.kind == "dense":
        return torch.rand(ROWS, one.width, generator=generator)
    lengths = torch.tensor([1, 2] * len(one.features), dtype=torch.int32)
    values = [
        torch.randint(0, min(ids[name], FEW), (sum((1, 2)),), generator=generator)
        for name in one.features
    ]
    joined = torch.cat(values).to(torch.int32)
    weights = torch.rand(len(joined), generator=generator) if "weighted" in one.kind else None
    return KeyedJaggedTensor(
        keys=list(one.features), lengths=lengths, values=joined, weights=weights
    )


def _returned(call: str, result: Any, name: str) -> Iterator[str]:
    """Lines that make a dict of tensors of what forward gave."""
    if isinstance(result, torch.Tensor):
        if result.dim() == 0:
            message = f"model: {name}: forward gave one number for {ROWS} rows, expected one a row"
            raise BuildError(message, hint="is it a loss? Name the model inside, without it")
        flat = ".reshape(-1)" if result.numel() == ROWS else ""
        yield f"scores = {call}"
        yield "# As the model gives them: torch.sigmoid(scores) makes probabilities of logits."
        yield f'return {{"default": scores{flat}}}'
        return
    yield f"result = {call}"
    if isinstance(result, KeyedTensor):
        yield "return result.to_dict()"
        return
    if isinstance(result, Mapping) and _are_tensors(result.values()):
        yield "return {name: values for name, values in result.items()}"
        return
    if isinstance(result, tuple | list) and _are_tensors(result):
        names = getattr(result, "_fields", None) or [f"output_{at}" for at in range(len(result))]
        parts = ", ".join(f'"{one}": result[{at}]' for at, one in enumerate(names))
        yield f"return {{{parts}}}"
        return
    message = (
        f"model: {name}: forward gave a {type(result).__name__}, expected a tensor, or tensors in "
        "a tuple, a dict or a KeyedTensor"
    )
    raise BuildError(message, hint="wrap it in a module that returns these")


def _are_tensors(values: Any) -> bool:
    held = list(values)
    return bool(held) and all(isinstance(one, torch.Tensor) and one.dim() for one in held)
