"""The signature of a model, read off the model itself.

Forward calls have `shown` feature names and widths; embedding configurations tell the rows behind
each feature, and `reach` which ids come to them.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from torchrec_handler.archive.format import InputSignature, Signature
from torchrec_handler.errors import FactoryError
from torchrec_handler.load.call import call_observed
from torchrec_handler.load.factory import FORWARD, FactoryOutput
from torchrec_handler.load.signature.raw import with_raw
from torchrec_handler.load.signature.reach import Tags, watching
from torchrec_handler.load.signature.shown import Facts, observe, one_row
from torchrec_handler.tables.collection import Collections

logger = logging.getLogger(__name__)

FEW = 8
"""Features that a warning names."""


def observe_signature(
    output: FactoryOutput,
    module: torch.nn.Module,
    collections: Collections,
    device: torch.device,
) -> Signature:
    """Run one-row samples until the model has shown its inputs.

    What a model hides stays open in the signature; `model_inputs_data` may give it:
    input name -> {"features": names, "num_features": F, "width": D}. What it says of raw values is
    in the signature too, see `raw`.

    Args:
        output: the factory's metadata.
        module: the module to call, ready to serve.
        collections: what `find_collections` gave.
        device: where inputs go.

    Raises:
        FactoryError: `model_inputs_data` gives an input fewer features than the model takes, or
            says of raw values what cannot be done.
    """
    known = {name: _hints(output, name) for name in output.batching}
    with watching(module, collections) as first:
        result, failure = observe(output.batching, module, known, collections, device)
    for message in first.unread_weights():
        logger.warning("signature: %s", message)
    if failure is not None:
        said = str(failure)
        if isinstance(failure, torch.jit.Error):  # a stack of TorchScript's, and then what it is
            said = said.strip().rpartition("\n")[2]
        said = f"{type(failure).__name__}: {said}{_misnamed(output, known, collections)}"
        logger.warning("signature: a sample of one row raised %s", said)
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
    signature = Signature(
        inputs=inputs,
        methods={name: entry.need_preproc for name, entry in output.qualnames.items()},
        result_metadata=output.result_metadata,
        outputs=_shapes(result),
        changes_ids=changes_ids,
    )
    return with_raw(signature, output)


def _misnamed(output: FactoryOutput, known: Mapping[str, Facts], collections: Collections) -> str:
    """What may be a typing error: features of tables that no input has, beside others."""
    inputs = [known[name] for name, entry in output.batching.items() if "sparse" in entry.type]
    given = {name for facts in inputs for name in facts.features}
    tables = {name for one in collections.found for table in one.tables for name in table.features}
    lacking, unknown = sorted(tables - given), sorted(given - tables)
    if not (lacking and unknown and all(facts.features for facts in inputs)):
        return ""
    return (
        f"; no input has {', '.join(lacking[:FEW])} of the tables' features, and no table "
        f"{', '.join(unknown[:FEW])} of the inputs'"
    )


def _hints(output: FactoryOutput, name: str) -> Facts:
    hint = output.model_inputs_data.get(name)
    if not isinstance(hint, Mapping):
        return Facts()
    features = tuple(hint.get("features", ()))
    return Facts(
        features=features,
        num_features=len(features) or hint.get("num_features"),
        width=hint.get("width"),
    )


def _input(name: str, kind: str, facts: Facts, collections: Collections) -> InputSignature:
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
        is_wide=facts.is_wide,
    )


def _least(of_features: Mapping[str, int], names: Iterable[str]) -> int | None:
    return min((of_features[name] for name in names if name in of_features), default=None)


def _with_reach(  # noqa: PLR0913, PLR0917  all that is known
    inputs: tuple[InputSignature, ...],
    known: Mapping[str, Facts],
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
        sample = one_row(batching, known, device)
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
    sample = one_row(batching, known, device)
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
