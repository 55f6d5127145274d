"""`SimpleFactory`: a PredictFactory for whoever has inputs with names, a model and a forward.

A packager puts this file into the user's package, so an archive goes on with the copy it was built
with. It imports nothing of this project, and nothing but torch and torchrec.
Shapes: B rows, F features, D width, N ids.
"""

# No `from __future__ import annotations`: in a torch package a dataclass cannot resolve its
# annotations from strings, because its module is not in `sys.modules`.
import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torchrec.inference.modules import (
    BatchingMetadata,
    PredictFactory,
    PredictModule,
    QualNameMetadata,
)
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

Outputs = Mapping[str, str | Sequence[str] | None] | Sequence[str]
"""Outputs that count ids: output -> feature, features, or None for rows; or those that count all
ids of the input. Only needed where the build says that it cannot tell."""

SPARSE = {
    "sparse": ("lengths", "values"),
    "weighted_sparse": ("lengths", "values", "weights"),
}
"""Type of an input -> its tensors, by their suffixes."""


@dataclass(frozen=True, kw_only=True)
class Hashed:
    """Raw ids of a feature, strings or integers of 64 bits, become rows of its table.

    As `torchrec_handler.hashing.hash_strings` and `hash_ids` do it in training.
    """

    seed: int = 0
    rows: int | None = None
    """How many they are hashed into; None: as many as the feature's table has."""


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input; made by `dense`, `sparse`, `weighted_sparse` and `embedding`."""

    type: str
    features: tuple[str, ...]
    """F names, in the order in which requests hold them."""
    width: int | None = None
    """D of an embedding input."""
    outputs: Outputs = ()
    hashed: Mapping[str, Hashed] = field(default_factory=dict)
    """Feature -> how its raw ids become rows."""
    out_of_range: Mapping[str, str] = field(default_factory=dict)
    """Feature -> what becomes of ids that its table does not have: reject, zero, modulo or drop."""
    defaults: Mapping[str, float] = field(default_factory=dict)
    """Feature -> the number where a request has none."""

    def __post_init__(self) -> None:
        """Raises: ValueError: there is no feature, one twice, or something else."""
        are_names = all(isinstance(name, str) for name in self.features)
        if not (are_names and 0 < len(self.features) == len(set(self.features))):
            message = f"{self.type}: received {self.features}, expected names, each once"
            raise ValueError(message)


def dense(*features: str, defaults: Mapping[str, float] | None = None) -> Input:
    """Numbers; in `forward` a tensor [B, F] float32."""
    return Input(type="dense", features=features, defaults=defaults or {})


def sparse(
    *features: str,
    outputs: Outputs = (),
    hashed: Mapping[str, Hashed] | None = None,
    out_of_range: Mapping[str, str] | None = None,
) -> Input:
    """Lists of ids; in `forward` a KeyedJaggedTensor with the features as keys."""
    return Input(
        type="sparse",
        features=features,
        outputs=outputs,
        hashed=hashed or {},
        out_of_range=out_of_range or {},
    )


def weighted_sparse(
    *features: str,
    outputs: Outputs = (),
    hashed: Mapping[str, Hashed] | None = None,
    out_of_range: Mapping[str, str] | None = None,
) -> Input:
    """Lists of ids with a weight each; in `forward` a KeyedJaggedTensor with weights."""
    return replace(
        sparse(*features, outputs=outputs, hashed=hashed, out_of_range=out_of_range),
        type="weighted_sparse",
    )


def embedding(*features: str, width: int) -> Input:
    """Vectors of `width` numbers, D; in `forward` a list of F tensors [B, D] float32."""
    return Input(type="embedding", features=features, width=width)


class Batch:
    """What `forward` gets: the inputs of all rows, by their names."""

    def __init__(
        self, tensors: Mapping[str, Any], inputs: Mapping[str, Input], factory: str
    ) -> None:
        """Keep TorchRec's batch of tensors; an input is made of them when it is asked for."""
        self._tensors = tensors
        self._inputs = inputs
        self._factory = factory

    def __getitem__(self, name: str) -> Any:
        """Return an input, see `dense`, `sparse`, `weighted_sparse` and `embedding`.

        Raises:
            LookupError: there is none of that name.
        """
        if name not in self._inputs:
            known = ", ".join(self._inputs)
            message = f"{self._factory}.inputs: has no {name!r}, expected one of {known}"
            raise LookupError(message)
        entry = self._inputs[name]
        if entry.type not in SPARSE:
            return self._tensors[name]
        parts = {part: self._tensors[f"{name}.{part}"] for part in SPARSE[entry.type]}
        return KeyedJaggedTensor(keys=list(entry.features), **parts)


class SimplePredictModule(PredictModule):
    """A factory's model, and its methods as methods of a predict module."""

    def __init__(self, factory: "SimpleFactory", model: torch.nn.Module, device: str) -> None:
        """Take the model as it is."""
        super().__init__(model, device)
        self._factory = factory
        self._inputs = factory.inputs
        self._methods = factory.qualname_metadata()

    def predict_forward(self, batch: Mapping[str, Any]) -> Any:
        """Call the factory's `forward` with TorchRec's batch: tensors by input and suffix."""
        return self._call_batched("forward", batch)

    def __getattr__(self, name: str) -> Any:
        """Return a further method of the factory's `qualname_metadata`."""
        found: QualNameMetadata | None = self.__dict__.get("_methods", {}).get(name)
        if found is None:
            return super().__getattr__(name)
        if found.need_preproc:
            return partial(self._call_batched, name)
        return partial(getattr(self._factory, name), self.predict_module)

    def _call_batched(self, name: str, batch: Mapping[str, Any]) -> Any:
        factory = type(self._factory).__name__
        method: Callable[..., Any] = getattr(self._factory, name)
        result = method(self.predict_module, Batch(batch, self._inputs, factory))
        if not isinstance(result, Mapping):
            message = (
                f"{factory}.{name}: returned a {type(result).__name__}, expected a dict of "
                "tensors by output"
            )
            raise TypeError(message)
        return result


class SimpleFactory(PredictFactory):
    """A PredictFactory of `inputs`, `model` and `forward`; all of TorchRec's can be overridden."""

    guessed = ""
    """What `torchrec-archiver init` could only guess; a build warns of it until it is deleted."""

    methods: Sequence[str] = ()
    """Further methods that answer requests, each called as `forward` is: `method(model, batch)`."""

    result = "dict_of_tensor"
    """What methods return by output: a tensor; `dict_of_tensors`: tensors; `dict_with_mask_tensor`:
    a value and a mask."""

    world_size = 1
    """How many ranks the tables will be on; set before `model` is called."""

    device: torch.device | None = None
    """Where to serve; set before `model` is called."""

    @property
    @abc.abstractmethod
    def inputs(self) -> Mapping[str, Input]:
        """Input name -> what it holds; a dict in the class, or a property that reads a config."""

    @abc.abstractmethod
    def model(self, device: torch.device) -> torch.nn.Module:
        """Build the model, by the names of the checkpoint; it may be quantized or sharded.

        Args:
            device: where the dense part goes. Tables are best built on `meta`, without memory:
                they come from the archive.
        """

    @abc.abstractmethod
    def forward(self, model: torch.nn.Module, batch: Batch) -> Mapping[str, Any]:
        """Answer a batch.

        Args:
            model: what `model` built, with its weights, tables quantized.
            batch: the inputs by their names.

        Returns:
            Output name -> what `result` says, [B] or [k * B] values, or one or k an id.
        """

    def create_predict_module(
        self, world_size: int = 1, device: str | None = None
    ) -> torch.nn.Module:
        """Build the model for TorchRec.

        Raises:
            TypeError: `inputs` holds something else, `model` returned something else, or a method
                is not there or has a Module's own name.
        """
        name = type(self).__name__
        for qualname in self.qualname_metadata():
            if not callable(getattr(self, qualname, None)):
                message = f"{name}: names the method {qualname!r}, but has none"
                raise TypeError(message)
            if qualname != "forward" and hasattr(SimplePredictModule, qualname):
                message = f"{name}.{qualname}: a Module has a method of that name; choose another"
                raise TypeError(message)
        entry: Any
        for known, entry in self.inputs.items():
            if not isinstance(entry, Input):
                message = (
                    f"{name}.inputs[{known!r}]: received a {type(entry).__name__}, expected "
                    "dense(…), sparse(…), weighted_sparse(…) or embedding(…)"
                )
                raise TypeError(message)
        self.world_size = world_size
        self.device = torch.device(device or _default_device())
        model: Any = self.model(self.device)
        if not isinstance(model, torch.nn.Module):
            message = f"{name}.model: returned a {type(model).__name__}, expected a Module"
            raise TypeError(message)
        return SimplePredictModule(self, model, str(self.device))

    def batching_metadata(self) -> dict[str, BatchingMetadata]:
        """Return the type of each input."""
        device = self.device.type if self.device else _default_device()
        return {
            name: BatchingMetadata(
                type=entry.type, device=device, pinned=list(SPARSE.get(entry.type, ("",)))
            )
            for name, entry in self.inputs.items()
        }

    def model_inputs_data(self) -> dict[str, Any]:
        """Return the inputs' features, what is made of raw values, and outputs that count ids."""
        return {
            name: {
                "features": list(entry.features),
                **({"width": entry.width} if entry.width else {}),
                **({"outputs": entry.outputs} if entry.outputs else {}),
                **_raw(entry),
            }
            for name, entry in self.inputs.items()
        }

    def result_metadata(self) -> str:
        """Return `result`."""
        return self.result

    def qualname_metadata(self) -> dict[str, QualNameMetadata]:
        """Return `forward` and `methods`; those without `need_preproc` get keyword arguments."""
        return {name: QualNameMetadata(need_preproc=True) for name in ("forward", *self.methods)}

    def run_weights_independent_tranformations(
        self, predict_module: torch.nn.Module
    ) -> torch.nn.Module:
        """Return the module as it is."""
        return predict_module

    def run_weights_dependent_transformations(
        self, predict_module: torch.nn.Module
    ) -> torch.nn.Module:
        """Return the module as it is: quantizing and sharding are the server's."""
        return predict_module


def _raw(entry: Input) -> dict[str, Any]:
    """What is made of an input's raw values, as plain data."""
    given = {
        "hashed": {name: _said(hashed) for name, hashed in entry.hashed.items()},
        "out_of_range": dict(entry.out_of_range),
        "defaults": dict(entry.defaults),
    }
    return {name: by_feature for name, by_feature in given.items() if by_feature}


def _said(hashed: Any) -> Any:
    if not isinstance(hashed, Hashed):
        return hashed
    return {"seed": hashed.seed} if hashed.rows is None else asdict(hashed)


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
