"""What a model takes and gives, read off the model itself by one observed forward call.

Embedding configurations tell the rows behind each feature, and `reach` which ids come to them; the
KeyedJaggedTensors and the first layers that a one-row sample meets tell feature names and widths.
"""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torchrec.inference.modules import BatchingMetadata
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_handler.archive.format import InputSignature, Signature
from torchrec_handler.errors import FactoryError
from torchrec_handler.load.call import call_observed
from torchrec_handler.load.factory import FORWARD, FactoryOutput
from torchrec_handler.load.signature.reach import Tags, watching
from torchrec_handler.tables.find import Collections

logger = logging.getLogger(__name__)

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
class _Facts:
    """What is known of one input."""

    num_features: int | None = None
    features: tuple[str, ...] = ()
    """Names that `model_inputs_data` gives."""
    width: int | None = None
    keys: dict[int, list[str]] = field(default_factory=dict)
    """Position -> the names by which KeyedJaggedTensors pass the feature on to tables."""
    is_guess: bool = False
    """Whether `num_features` was concluded, not seen."""


def observe_signature(
    output: FactoryOutput,
    module: torch.nn.Module,
    collections: Collections,
    device: torch.device,
) -> Signature:
    """Run one-row samples until the model has shown its inputs.

    What a model hides stays open in the signature; `model_inputs_data` may give it:
    input name -> {"features": names, "num_features": F, "width": D}.

    Args:
        output: the factory's metadata.
        module: the module to call, ready to serve.
        collections: what `find_collections` gave.
        device: where inputs go.

    Raises:
        FactoryError: `model_inputs_data` gives an input fewer features than the model takes.
    """
    known = {name: _hints(output, name) for name in output.batching}
    with watching(module, collections) as first:
        result, failure = _observe_or_guess(output.batching, module, known, collections, device)
    for message in first.unread_weights():
        logger.warning("signature: %s", message)
    if failure is not None:
        logger.warning(
            "signature: a sample of one row raised %s: %s", type(failure).__name__, failure
        )
        for facts in known.values():
            if facts.is_guess:
                facts.num_features = None
    for name, facts in known.items():
        is_embedding = output.batching[name].type == "embedding"
        if facts.num_features is None or (is_embedding and facts.width is None):
            logger.warning(
                "signature: %s: the model does not show how many features it takes, so requests "
                "are not checked for it; let PredictFactory.model_inputs_data()[%r] give %s",
                name,
                name,
                "'num_features' and 'width'" if is_embedding else "'features' or 'num_features'",
            )
        elif facts.features and len(facts.features) < facts.num_features:
            message = (
                f"{type(output.factory).__name__}.model_inputs_data[{name!r}]: received "
                f"{len(facts.features)} features, the model takes {facts.num_features}"
            )
            raise FactoryError(message)
    inputs = tuple(
        _input(name, entry.type, known[name], collections)
        for name, entry in output.batching.items()
    )
    changes_ids = False
    if failure is None:
        inputs, changes_ids = _with_reach(inputs, known, output, module, collections, device)
    return Signature(
        inputs=inputs,
        methods={name: entry.need_preproc for name, entry in output.qualnames.items()},
        result_metadata=output.result_metadata,
        outputs=_shapes(result),
        changes_ids=changes_ids,
    )


def _hints(output: FactoryOutput, name: str) -> _Facts:
    hint = output.model_inputs_data.get(name)
    if not isinstance(hint, Mapping):
        return _Facts()
    features = tuple(hint.get("features", ()))
    return _Facts(
        features=features,
        num_features=len(features) or hint.get("num_features"),
        width=hint.get("width"),
    )


def _observe(
    batching: Mapping[str, BatchingMetadata],
    module: torch.nn.Module,
    known: Mapping[str, _Facts],
    device: torch.device,
) -> tuple[Any, Exception | None]:
    """Call the module on samples of what is known until it shows nothing new.

    Returns:
        The module's result, and what it raised on a sample that fits all that is known.
    """
    for _ in range(MOST_ROUNDS):
        sample = _sample(batching, known, device)
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


def _observe_or_guess(
    batching: Mapping[str, BatchingMetadata],
    module: torch.nn.Module,
    known: Mapping[str, _Facts],
    collections: Collections,
    device: torch.device,
) -> tuple[Any, Exception | None]:
    """As `_observe`; of a model that takes lengths apart before it shows how many there have to be.

    A sparse input that has not shown its features is tried with as many as the tables have.
    """
    result, failure = _observe(batching, module, known, device)
    unknown = [
        facts
        for name, facts in known.items()
        if "sparse" in batching[name].type and facts.num_features is None
    ]
    if failure is None or len(unknown) != 1:
        return result, failure
    (facts,) = unknown
    facts.num_features = number = len(collections.ids_below)
    guessed, fault = _observe(batching, module, known, device)
    if fault is None and facts.num_features == number == len(facts.keys):
        return guessed, None
    facts.num_features = None
    facts.keys.clear()
    return result, failure


def _sample(
    batching: Mapping[str, BatchingMetadata], known: Mapping[str, _Facts], worker: torch.device
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
            sample[f"{name}.values"] = torch.zeros(features, dtype=torch.int32, device=device)
            if entry.type == "weighted_sparse":
                sample[f"{name}.weights"] = torch.ones(features, device=device)
    return sample


class _Learned(Exception):
    """Ends a forward call whose sample has too few features, before it reaches a lookup."""


@contextmanager
def _observing(sample: Sample, known: Mapping[str, _Facts]) -> Iterator[None]:
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


def _learn(facts: _Facts, num_features: int) -> None:
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


def _input(name: str, kind: str, facts: _Facts, collections: Collections) -> InputSignature:
    positions = range(facts.num_features or 0)
    keys = [facts.keys.get(position, list(facts.features[position:][:1])) for position in positions]
    features = facts.features or (tuple(found[0] for found in keys) if all(keys) else ())
    rows = tuple(_least(collections.ids_below, found) for found in keys)
    longest = tuple(_least(collections.longest, found) for found in keys)
    is_sparse = "sparse" in kind
    return InputSignature(
        name=name,
        type=kind,
        num_features=facts.num_features,
        features=features,
        ids_below=rows if is_sparse else (),
        longest=longest if is_sparse and any(longest) else (),
        width=facts.width,
    )


def _least(of_features: Mapping[str, int], names: Iterable[str]) -> int | None:
    return min((of_features[name] for name in names if name in of_features), default=None)


def _with_reach(  # noqa: PLR0913, PLR0917  all that is known
    inputs: tuple[InputSignature, ...],
    known: Mapping[str, _Facts],
    output: FactoryOutput,
    module: torch.nn.Module,
    collections: Collections,
    device: torch.device,
) -> tuple[tuple[InputSignature, ...], bool]:
    """Let the rows of a table limit only ids that come to it as they were sent, in any method.

    Returns:
        The inputs, and whether the model looks up what nobody sent.
    """
    batching = output.batching
    changes_ids = False
    tags = Tags.of(inputs, collections)
    if tags and device.type == "cpu" and collections.hold_all_lookups(module):
        sample = _sample(batching, known, device)
        for name, values in tags.values.items():
            sample[f"{name}.values"] = values.to(sample[f"{name}.values"])  # type: ignore[arg-type]
        keys = {name: facts.keys for name, facts in known.items()}
        of_methods = []
        for qualname, method in output.qualnames.items():
            if not method.need_preproc:
                continue
            with watching(module, collections, tags) as reached:
                try:
                    call_observed(module, qualname, sample)
                except Exception as error:  # noqa: BLE001  it may check its ids itself
                    # What it does behind the point where it raised is not known.
                    changes_ids = True
                    text = "signature: %s: ids behind all tables raised %s: %s"
                    logger.info(text, qualname, type(error).__name__, error)
                    continue
            of_methods.append(reached.limits(inputs, tags, keys))
            changes_ids = changes_ids or reached.has_others(tags)
        if of_methods:
            # One limit holds for all: what one of them takes is not refused, the others' lookups
            # are guarded.
            inputs = tuple(map(loosest, zip(*of_methods, strict=True)))
            changes_ids = changes_ids or any(found != inputs for found in of_methods)
    open_inputs = [entry.name for entry in inputs if None in entry.ids_below]
    if not open_inputs:
        return inputs, changes_ids
    sample = _sample(batching, known, device)
    for name in open_inputs:
        sample[f"{name}.values"] = sample[f"{name}.values"].long()  # type: ignore[union-attr]
    try:
        call_observed(module, FORWARD, sample)
    except Exception as error:  # noqa: BLE001
        logger.info("signature: ids of 64 bits raised %s: %s", type(error), error)
        return inputs, changes_ids
    wide = tuple(
        replace(entry, is_wide=True) if entry.name in open_inputs else entry for entry in inputs
    )
    return wide, changes_ids


def loosest(entries: Iterable[InputSignature]) -> InputSignature:
    """One input, with the largest of its limits."""
    several = list(entries)
    rows = [
        None if None in limits else max(limits)
        for limits in zip(*(entry.ids_below for entry in several), strict=True)
    ]
    return replace(several[0], ids_below=tuple(rows))


def _shapes(result: Any) -> dict[str, Any]:
    if not isinstance(result, Mapping):
        return {}
    return {
        str(name): [list(part.shape) for part in value]
        if isinstance(value, tuple | list)
        else list(value.shape)
        for name, value in result.items()
        if all(
            isinstance(part, torch.Tensor)
            for part in (value if isinstance(value, tuple | list) else [value])
        )
    }
