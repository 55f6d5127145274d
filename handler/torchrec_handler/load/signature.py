"""What a model takes and gives, read off the model itself by one observed forward call.

Embedding configurations tell the rows behind each feature; the KeyedJaggedTensors and the first
linear layers that a one-row sample meets tell feature names and widths.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torchrec.inference.modules import BatchingMetadata
from torchrec.quant.embedding_modules import (
    MODULE_ATTR_EMB_CONFIG_NAME_TO_NUM_ROWS_POST_PRUNING_DICT,
)
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_handler.archive import InputSignature, Signature
from torchrec_handler.load.factory import FORWARD, FactoryOutput

logger = logging.getLogger(__name__)

Sample = dict[str, torch.Tensor | list[torch.Tensor]]


def feature_rows(module: torch.nn.Module) -> dict[str, int]:
    """Feature name -> rows of its table; of the smallest one where it has several.

    Must see the module before sharding. Any id is good for a feature that a managed-collision
    module maps to rows, so those are left out.
    """
    rows: dict[str, int] = {}
    for found in module.modules():
        pruned = getattr(found, MODULE_ATTR_EMB_CONFIG_NAME_TO_NUM_ROWS_POST_PRUNING_DICT, {})
        configs = getattr(found, "embedding_bag_configs", None) or getattr(
            found, "embedding_configs", None
        )
        if callable(configs):
            for config in configs():
                table_rows = pruned.get(config.name, config.num_embeddings)
                for feature in config.feature_names:
                    rows[feature] = min(rows.get(feature, table_rows), table_rows)
    for found in module.modules():
        mapped = getattr(found, "_managed_collision_modules", None)
        if mapped is not None:
            tables = getattr(found, "_table_to_features", {})
            for table in mapped:
                for feature in tables.get(table, [table]):
                    rows.pop(feature, None)
    return rows


def observe_signature(
    output: FactoryOutput,
    module: torch.nn.Module,
    rows: Mapping[str, int],
    device: torch.device,
) -> Signature:
    """Run one-row samples until the model has shown its inputs.

    What a model hides stays open in the signature; `model_inputs_data` may give it:
    input name -> {"features": names, "num_features": F, "width": D}.

    Args:
        output: the factory's metadata.
        module: the module to call, ready to serve.
        rows: what `feature_rows` gave.
        device: where inputs go.
    """
    known = {name: _hints(output, name) for name in output.batching}
    result: Any = None
    for _ in range(len(known) + 2):
        sample = _sample(output.batching, known, device)
        failure: Exception | None = None
        with _observing(sample, known) as learned:
            try:
                result = getattr(module, FORWARD)(sample)
            except Exception as error:  # noqa: BLE001  a user's model may raise anything
                failure = error
        if not learned or failure is None:
            break
    if failure is not None:
        logger.warning(
            "signature: a one-row sample raised %s: %s; inputs that are still unknown are checked "
            "by the model only. PredictFactory.model_inputs_data may describe them",
            type(failure).__name__,
            failure,
        )
    return Signature(
        inputs=tuple(
            _input(name, entry.type, known[name], rows) for name, entry in output.batching.items()
        ),
        methods={name: entry.need_preproc for name, entry in output.qualnames.items()},
        result_metadata=output.result_metadata,
        outputs=_shapes(result) if failure is None else {},
    )


def _hints(output: FactoryOutput, name: str) -> dict[str, Any]:
    hint = output.model_inputs_data.get(name)
    if not isinstance(hint, Mapping):
        return {}
    known = {key: hint[key] for key in ("features", "num_features", "width") if key in hint}
    if "features" in known:
        known["features"] = tuple(known["features"])
        known["num_features"] = len(known["features"])
    return known


def _sample(
    batching: Mapping[str, BatchingMetadata],
    known: Mapping[str, Mapping[str, Any]],
    device: torch.device,
) -> Sample:
    sample: Sample = {}
    for name, entry in batching.items():
        features = known[name].get("num_features", 1)
        if entry.type == "dense":
            sample[name] = torch.zeros(1, features, device=device)
        elif entry.type == "embedding":
            width = known[name].get("width", 1)
            sample[name] = [torch.zeros(1, width, device=device) for _ in range(features)]
        else:
            sample[f"{name}.lengths"] = torch.ones(features, dtype=torch.int32, device=device)
            sample[f"{name}.values"] = torch.zeros(features, dtype=torch.int32, device=device)
            if entry.type == "weighted_sparse":
                sample[f"{name}.weights"] = torch.ones(features, device=device)
    return sample


@contextmanager
def _observing(sample: Sample, known: Mapping[str, dict[str, Any]]) -> Iterator[list[str]]:
    """Note in `known` what the model makes of a sample; yields the names of what was new."""
    learned: list[str] = []
    owners = {
        tensor.data_ptr(): key.removesuffix(".lengths")
        for key, tensor in sample.items()
        if isinstance(tensor, torch.Tensor) and (key in known or key.endswith(".lengths"))
    }

    def learn(name: str, **facts: Any) -> None:
        if any(known[name].get(key) != value for key, value in facts.items()):
            known[name].update(facts)
            learned.append(name)

    plain_init = KeyedJaggedTensor.__init__

    def observed_init(self: KeyedJaggedTensor, *args: Any, **kwargs: Any) -> None:
        plain_init(self, *args, **kwargs)
        lengths = self.lengths_or_none()
        if lengths is not None and (name := owners.get(lengths.data_ptr())):
            learn(name, features=tuple(self.keys()), num_features=len(self.keys()))

    dense = [key for key in known if isinstance(sample.get(key), torch.Tensor)]
    open_dense = [key for key in dense if "num_features" not in known[key]]

    def observed_linear(layer: torch.nn.Module, args: Any) -> None:
        if not (isinstance(layer, torch.nn.Linear) and args and isinstance(args[0], torch.Tensor)):
            return
        name = owners.get(args[0].data_ptr())
        lacking = layer.in_features - args[0].shape[-1]
        if name in dense:
            learn(name, num_features=layer.in_features)
        elif lacking > 0 and len(open_dense) == 1 and not learned:
            # The dense input went in behind others: what the layer lacks is its width, less the
            # one feature of the sample. The next sample shows whether that was right.
            learn(open_dense[0], num_features=1 + lacking)

    hook = register_module_forward_pre_hook(observed_linear)
    KeyedJaggedTensor.__init__ = observed_init
    try:
        yield learned
    finally:
        KeyedJaggedTensor.__init__ = plain_init
        hook.remove()


def _input(
    name: str, kind: str, known: Mapping[str, Any], rows: Mapping[str, int]
) -> InputSignature:
    features = known.get("features", ())
    return InputSignature(
        name=name,
        type=kind,
        num_features=known.get("num_features"),
        features=features,
        rows=tuple(rows.get(feature) for feature in features) if "sparse" in kind else (),
        width=known.get("width"),
    )


def _shapes(result: Any) -> dict[str, Any]:
    if not isinstance(result, Mapping):
        return {}
    return {
        str(name): [list(part.shape) for part in value]
        if isinstance(value, tuple | list)
        else list(value.shape)
        for name, value in result.items()
    }
