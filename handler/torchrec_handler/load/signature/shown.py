"""What forward calls of one row show of a model's inputs: features, their names, widths.

The KeyedJaggedTensors and the first layers that a sample of one row meets tell them.
"""

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torchrec.inference.modules import BatchingMetadata
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_handler.load.call import call_observed
from torchrec_handler.load.factory import FORWARD
from torchrec_handler.tables.collection import Collections

Sample = dict[str, torch.Tensor | list[torch.Tensor]]

CASTS = (
    torch.Tensor.to,
    torch.Tensor.float,
    torch.Tensor.half,
    torch.Tensor.bfloat16,
    torch.Tensor.long,
    torch.Tensor.int,
)

PARTS = re.compile(r"\.(lengths|values|weights)$")
"""What a sparse input's tensors are called behind its name."""

MOST_ROUNDS = 32
"""Samples that are tried before the model is taken for one that never settles."""


@dataclass(kw_only=True, eq=False)
class Facts:
    """What is known of one input."""

    num_features: int | None = None
    features: tuple[str, ...] = ()
    """Names that `model_inputs_data` gives."""
    width: int | None = None
    keys: dict[int, list[str]] = field(default_factory=dict)
    """Position -> the names by which KeyedJaggedTensors pass the feature on to tables."""
    is_guess: bool = False
    """Whether `num_features` was concluded, not seen."""
    is_wide: bool = False
    """Whether the model takes ids as int64 alone, as training gives them."""


def _observe_until_settled(
    batching: Mapping[str, BatchingMetadata],
    module: torch.nn.Module,
    known: Mapping[str, Facts],
    device: torch.device,
) -> tuple[Any, Exception | None]:
    """Call the module on samples of what is known until it shows nothing new.

    Returns:
        The module's result, and what it raised on a sample that fits all that is known.
    """
    for _ in range(MOST_ROUNDS):
        sample = one_row(batching, known, device)
        before = [facts.num_features or 1 for facts in known.values()]
        result, failure = None, None
        try:
            with _observing(sample, known):
                result = call_observed(module, FORWARD, sample)
        except Exception as error:  # noqa: BLE001  a user's model may raise anything
            failure = error
        if before == [facts.num_features or 1 for facts in known.values()]:
            return result, failure
    return None, RuntimeError(f"it asked for more features in each of {MOST_ROUNDS} samples")


def observe(
    batching: Mapping[str, BatchingMetadata],
    module: torch.nn.Module,
    known: Mapping[str, Facts],
    collections: Collections,
    device: torch.device,
) -> tuple[Any, Exception | None]:
    """Call the module on samples of what is known, until it shows nothing new.

    Where it takes no ids of int32, as TorchRec's servers give them, it is given them as int64.

    Args:
        batching: the inputs of the factory.
        module: ready to serve.
        known: of each input; what is learned is written into it.
        collections: what `find_collections` gave.
        device: where inputs go.

    Returns:
        The module's result, and what it raised on a sample that fits all that is known.
    """
    result, failure = _observe_features(batching, module, known, collections, device)
    sparse = [facts for name, facts in known.items() if "sparse" in batching[name].type]
    if failure is None or not sparse:
        return result, failure
    before = copy.deepcopy([vars(facts) for facts in known.values()])
    for facts in sparse:
        facts.is_wide = True
    wide, fault = _observe_features(batching, module, known, collections, device)
    if fault is not None:
        for facts, were in zip(known.values(), before, strict=True):
            vars(facts).update(were)
        return result, failure
    for facts in sparse if len(sparse) > 1 else ():
        facts.is_wide = False
        facts.is_wide = _observe_until_settled(batching, module, known, device)[1] is not None
    return wide, None


def _observe_features(
    batching: Mapping[str, BatchingMetadata],
    module: torch.nn.Module,
    known: Mapping[str, Facts],
    collections: Collections,
    device: torch.device,
) -> tuple[Any, Exception | None]:
    """Call the module until it shows nothing new.

    A model may take lengths apart before it shows how many there have to be: then a sparse input
    that has not shown its features is tried with as many as the tables have.
    """
    result, failure = _observe_until_settled(batching, module, known, device)
    unknown = [
        facts
        for name, facts in known.items()
        if "sparse" in batching[name].type and facts.num_features is None
    ]
    if failure is None or len(unknown) != 1:
        return result, failure
    (facts,) = unknown
    facts.num_features = number = len(collections.ids_below)
    guessed, fault = _observe_until_settled(batching, module, known, device)
    if fault is None and facts.num_features == number == len(facts.keys):
        return guessed, None
    facts.num_features = None
    facts.keys.clear()
    return result, failure


def one_row(
    batching: Mapping[str, BatchingMetadata], known: Mapping[str, Facts], worker: torch.device
) -> Sample:
    """One row of zeros in every dense and embedding feature, the id 0 in every sparse one."""
    sample: Sample = {}
    for name, entry in batching.items():
        device = torch.device(entry.device)
        device = worker if device.type == worker.type else device
        features = known[name].num_features or 1
        if entry.type == "dense":
            sample[name] = torch.zeros(1, features, device=device)
        elif entry.type == "embedding":
            width = known[name].width or 1
            sample[name] = [torch.zeros(1, width, device=device) for _ in range(features)]
        else:
            sample[f"{name}.lengths"] = torch.ones(features, dtype=torch.int32, device=device)
            dtype = torch.int64 if known[name].is_wide else torch.int32
            sample[f"{name}.values"] = torch.zeros(features, dtype=dtype, device=device)
            if entry.type == "weighted_sparse":
                sample[f"{name}.weights"] = torch.ones(features, device=device)
    return sample


class _Learned(Exception):
    """Ends a forward call whose sample has too few features, before it reaches a lookup."""


@contextmanager
def _observing(sample: Sample, known: Mapping[str, Facts]) -> Iterator[None]:
    """Note in `known` what the model makes of a sample.

    Raises:
        _Learned: inside, where it takes more features than the sample has. The model may catch it.
    """
    owners = {
        _storage(tensor): known[PARTS.sub("", key)]
        for key, tensor in sample.items()
        if isinstance(tensor, torch.Tensor)
    }
    dense = [known[name] for name in known if isinstance(sample.get(name), torch.Tensor)]
    casts = _Casts()

    plain_init = KeyedJaggedTensor.__init__

    def observed_init(self: KeyedJaggedTensor, *args: Any, **kwargs: Any) -> None:
        plain_init(self, *args, **kwargs)
        # Of one row with one id a feature: a part of its lengths, or of its ids, starts at the
        # feature it starts with. Lengths may be made of offsets.
        for part in (self.lengths_or_none(), self.values()):
            source = None if part is None else casts.source(part)
            facts = None if source is None else owners.get(_storage(source))
            if facts is not None:
                break
        if source is not None and facts is not None:
            start = int(source.storage_offset())
            for position, key in enumerate(self.keys(), start):
                names = facts.keys.setdefault(position, [])
                names.extend({key}.difference(names))
            _learn(facts, start + len(self.keys()))

    def observed_layer(layer: torch.nn.Module, args: Any) -> None:
        expected = _width(layer)
        if expected is None or not (args and isinstance(args[0], torch.Tensor)):
            return
        given = casts.source(args[0])
        facts = owners.get(_storage(given))
        if facts is not None and facts in dense:
            _learn(facts, int(given.storage_offset()) + expected)
            return
        unknown = [entry for entry in dense if entry.num_features is None]
        lacking = expected - args[0].shape[-1]
        if lacking > 0 and len(unknown) == 1:
            # It went in behind others, or changed: what the layer lacks is its width, less the one
            # feature of the sample. The next sample shows whether that was right.
            unknown[0].is_guess = True
            _learn(unknown[0], 1 + lacking)

    hook = register_module_forward_pre_hook(observed_layer)
    KeyedJaggedTensor.__init__ = observed_init
    try:
        with casts:
            yield
    finally:
        KeyedJaggedTensor.__init__ = plain_init
        hook.remove()


class _Casts(TorchFunctionMode):
    """Remembers what tensors were before they were converted, as a dense part in float16 does."""

    def __init__(self) -> None:
        super().__init__()
        self._sources: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        """id of a copy -> the copy, which keeps the id its own, and what it is a copy of."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch."""
        result = func(*args, **(kwargs or {}))
        if func in CASTS and result is not args[0]:
            self._sources[id(result)] = (result, self.source(args[0]))
        return result

    def source(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself unless it is a copy."""
        return self._sources.get(id(tensor), (tensor, tensor))[1]


def _learn(facts: Facts, num_features: int) -> None:
    in_sample = facts.num_features or 1
    facts.num_features = max(num_features, facts.num_features or 0)
    if facts.num_features > in_sample:
        raise _Learned


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _width(layer: torch.nn.Module) -> int | None:
    """Features that a layer takes, where it tells."""
    if isinstance(layer, torch.nn.Linear):
        return layer.in_features
    if isinstance(layer, torch.nn.BatchNorm1d):
        return layer.num_features
    if isinstance(layer, torch.nn.LayerNorm):
        return layer.normalized_shape[-1]
    return None
