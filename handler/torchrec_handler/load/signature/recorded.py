"""Whether the signature that an archive holds is the one of its factory and its model.

Else every request would be refused, or answered with an error, by a worker that is ready.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch

from torchrec_handler.archive.format import INDEX, Signature
from torchrec_handler.archive.samples import Sample
from torchrec_handler.errors import ArchiveError
from torchrec_handler.load.factory import FactoryOutput
from torchrec_handler.load.signature.counts import Seen
from torchrec_handler.load.signature.outputs import try_method
from torchrec_handler.load.signature.raw import with_raw

MEND = "the archive was altered or damaged, build or copy it again"


def check_rows(signature: Signature, largest: Mapping[str, int]) -> None:
    """See that no id which the signature lets pass lies behind its table: lookups do not check.

    Where any id is good (`ids_below` is None), what the model makes of it is guarded instead.

    Args:
        signature: as recorded.
        largest: feature -> rows of the largest table that it is looked up in.

    Raises:
        ArchiveError: one may, or it is not said of every feature which may.
    """
    for entry in signature.inputs:
        if entry.type in ("dense", "embedding"):  # a name may be a sparse feature's too
            continue
        if len(entry.ids_below) != len(entry.features):
            message = (
                f"{INDEX}: signature: {entry.name}: ids_below is said of {len(entry.ids_below)} "
                f"features, it has {len(entry.features)}; {MEND}"
            )
            raise ArchiveError(message)
        for feature, rows in zip(entry.features, entry.ids_below, strict=True):
            most = largest.get(feature)
            if most is not None and rows is not None and rows > most:
                message = (
                    f"{INDEX}: ids of {feature!r} may be below {rows}, but its table has {most} "
                    f"rows; {MEND}"
                )
                raise ArchiveError(message)


def check_metadata(signature: Signature, output: FactoryOutput) -> None:
    """See that inputs, methods, result and what becomes of raw values are the factory's.

    Raises:
        ArchiveError: they are not.
    """
    inputs = {entry.name: entry.type for entry in signature.inputs}
    given = {name: entry.type for name, entry in output.batching.items()}
    methods = {name: entry.need_preproc for name, entry in output.qualnames.items()}
    for what, recorded, said in (
        ("batching_metadata", inputs, given),
        ("qualname_metadata", dict(signature.methods), methods),
        ("result_metadata", signature.result_metadata, output.result_metadata),
    ):
        if recorded != said:
            message = f"{INDEX}: signature: holds {recorded}, the factory's {what} {said}; {MEND}"
            raise ArchiveError(message)
    for entry, of_factory in zip(signature.inputs, with_raw(signature, output).inputs, strict=True):
        if entry != of_factory:
            message = (
                f"{INDEX}: signature: {entry.name}: hashed, out_of_range or defaults are not what "
                f"the factory's model_inputs_data says; {MEND}"
            )
            raise ArchiveError(message)


def check_model(
    signature: Signature,
    output: FactoryOutput,
    module: torch.nn.Module,
    device: torch.device,
    samples: Sequence[Sample],
) -> None:
    """See that the model takes what is drawn by the signature, and gives what that says.

    Args:
        signature: with splits.
        output: the factory's metadata.
        module: ready to serve.
        device: where to serve.
        samples: of the archive; a model that takes nothing drawn took these.

    Raises:
        ArchiveError: it does not.
    """
    for sample in samples:
        for name, expected in _shapes(signature, sample.rows):
            received = list(sample.inputs[name].shape) if name in sample.inputs else "nothing"
            if received != expected:
                message = (
                    f"{INDEX}: signature: {name} of {sample.rows} rows has the shape {expected}, "
                    f"in the samples {received}; {MEND}"
                )
                raise ArchiveError(message)
    for qualname in signature.splits or {}:
        seen, fault = try_method(qualname, output, signature, module, device)
        if fault and not seen and qualname not in {sample.qualname for sample in samples}:
            message = (
                f"{INDEX}: signature: {qualname} {fault}, whatever is drawn for its inputs; {MEND}"
            )
            raise ArchiveError(message)
        for one in seen:
            _check_outputs(qualname, one, signature)


def _check_outputs(qualname: str, seen: Seen, signature: Signature) -> None:
    is_masked = signature.result_metadata == "dict_with_mask_tensor"
    for name, shapes in seen.shapes.items():
        known = (signature.splits or {})[qualname].get(name, ())
        cut = shapes[: max(len(known), 1)] if is_masked else shapes
        if len(cut) != len(known) or not all(map(seen.fits, cut, known)):
            received = " and ".join(str(list(shape)) for shape in cut)
            message = (
                f"{INDEX}: signature: splits: {qualname}: output {name!r}: received {received} for "
                f"{seen.rows} rows, which is not cut so; {MEND}"
            )
            raise ArchiveError(message)


def _shapes(signature: Signature, rows: int) -> Iterator[tuple[str, list[int]]]:
    """Tensors of a batch, and their shapes where the signature tells them."""
    for entry in signature.inputs:
        features = entry.num_features
        if features is None:
            continue
        if "sparse" in entry.type:
            yield f"{entry.name}.lengths", [features * rows]
        elif entry.type == "dense":
            yield entry.name, [rows, features]
        elif entry.width is not None:
            yield entry.name, [features, rows, entry.width]
