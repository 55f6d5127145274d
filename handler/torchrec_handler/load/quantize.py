"""Fourth step of loading: swap float embedding collections for TorchRec's quantized ones.

The float rows are set aside first and the swap runs on the `meta` device, so that no table is
ever held twice; `tables` encodes the rows, or maps rows that the archiver encoded.
"""

import importlib
import logging
from collections.abc import Iterable, Mapping, Sequence

import torch
from torchrec.inference.modules import (
    DEFAULT_QUANT_MAPPING,
    FEATURE_PROCESSED_EBC_TYPE,
    quantize_inference_model,
)
from torchrec.modules.fp_embedding_modules import FeatureProcessorDictWrapper

from torchrec_handler.archive.format import TableKey
from torchrec_handler.errors import FactoryError, OptionError
from torchrec_handler.options import Tables
from torchrec_handler.tables.collection import Collections, Table
from torchrec_handler.tables.find import of_type
from torchrec_handler.tables.rows import DATA_TYPES, find_invalid

logger = logging.getLogger(__name__)


def to_meta(tables: Iterable[Table]) -> dict[TableKey, torch.Tensor]:
    """Take the rows out of their modules.

    Returns:
        Float rows [rows, D]; tables on `meta` already are left out.
    """
    taken = {}
    for table in tables:
        weight = table.weight.detach()
        if not weight.is_meta:
            taken[table.key] = weight
            table.owner.weight = torch.nn.Parameter(weight.to("meta"))
    return taken


def unpackable(tables: Iterable[Table], options: Tables) -> list[Table]:
    """The tables whose width their data type cannot pack, as 1 or 3."""
    return [table for table in tables if table.weight.shape[1] % _multiple(_wanted(table, options))]


def widen(
    tables: Iterable[Table],
    options: Tables,
    rows: Mapping[TableKey, torch.Tensor],
) -> dict[str, str]:
    """Choose other data types for tables that cannot be packed, with a warning.

    Args:
        tables: all of them.
        options: as the user gave them.
        rows: float rows [rows, D], where there are any.

    Returns:
        Table name -> float16, or float32 where only that holds its values. Of tables of one name,
        which have one type, the largest.
    """
    widened: dict[str, str] = {}
    said = []
    for table in unpackable(tables, options):
        own = rows.get(table.key)
        held = own is None or not find_invalid(own, "float16") or find_invalid(own, "float32")
        name = table.key.table
        if not held or name not in widened:
            widened[name] = "float16" if held else "float32"
        wanted = _wanted(table, options)
        said.append(
            f"{name} as {widened[name]}, being {table.weight.shape[1]} wide, where "
            f"{wanted} packs multiples of {_multiple(wanted)}"
        )
    if said:
        logger.warning("torchrec.tables: stored are %s", "; ".join(said))
    return widened


def quantize(
    module: torch.nn.Module,
    collections: Collections,
    options: Tables,
    widened: Mapping[str, str],
) -> None:
    """Swap float collections for quantized ones without rows, in place.

    A managed-collision module keeps its place and its remapping; the collection inside it is
    swapped. TorchRec's own quantized form of it is had through `quantization_mapping`.

    Args:
        module: not sharded.
        collections: those of the module, found with `quantization_mapping`.
        options: as the user gave them.
        widened: table name -> data type, of those that are `unpackable`.

    Raises:
        OptionError: `per_table` or `quantization_mapping` names what the module lacks, or a
            quantized counterpart cannot be imported.
        FactoryError: TorchRec cannot quantize the module.
    """
    tables = collections.float_tables
    _check(module, tables, options)
    _check_own(collections)
    mapping = {name: _find_class(path) for name, path in options.quantization_mapping.items()}
    if not tables and not mapping:
        return
    for _, found in of_type(module, {FEATURE_PROCESSED_EBC_TYPE}):
        # One processor a feature: the quantized collection calls what it holds, which a
        # ModuleDict does not allow.
        if isinstance(found._feature_processors, torch.nn.ModuleDict):  # noqa: SLF001
            found._feature_processors = FeatureProcessorDictWrapper(found._feature_processors)  # noqa: SLF001
    dtype = DATA_TYPES[options.dtype].torch
    try:
        quantize_inference_model(
            module,
            quantization_mapping={**DEFAULT_QUANT_MAPPING, **mapping},
            per_table_weight_dtype={
                table.key.table: DATA_TYPES[
                    widened.get(table.key.table) or _wanted(table, options)
                ].torch
                for table in tables
            },
            fp_weight_dtype=dtype,
            quantization_dtype=dtype,
            output_dtype=DATA_TYPES[options.output_dtype].torch,
        )
    except Exception as error:
        message = f"quantize_inference_model raised {type(error).__name__}: {error}"
        raise FactoryError(message) from error


def _check(module: torch.nn.Module, tables: Sequence[Table], options: Tables) -> None:
    known = {table.key.table for table in tables}
    if unknown := sorted(set(options.per_table) - known):
        message = (
            f"torchrec.tables.per_table: names {', '.join(unknown)}, "
            f"but the tables to quantize are {', '.join(sorted(known)) or 'none'}"
        )
        raise OptionError(message)
    for name in options.quantization_mapping:
        if not any(True for _ in of_type(module, {name})):
            message = (
                f"torchrec.tables.quantization_mapping: the model has no module of type {name}"
            )
            raise OptionError(message)


def _check_own(collections: Collections) -> None:
    """Refuse what a quantized collection, which has modules of its own, would leave out."""
    for one in collections.of_kind("float"):
        owners = [(table.parameter.removesuffix(".weight"), table.owner) for table in one.tables]
        for where, part in [(one.path, one.module), *owners]:
            said = None
            if "forward" in vars(part):
                said = "its forward was replaced on the instance"
            elif part is not one.module and (part._forward_hooks or part._forward_pre_hooks):  # noqa: SLF001
                said = "it has hooks"
            if said:
                message = (
                    f"{where}: {said}, which quantizing would lose; do it in a module around the "
                    "collection"
                )
                raise FactoryError(message)


def _wanted(table: Table, options: Tables) -> str:
    return options.per_table.get(table.key.table, options.dtype)


def _multiple(dtype: str) -> int:
    return DATA_TYPES[dtype].width_multiple


def _find_class(path: str) -> type[torch.nn.Module]:
    module_name, _, class_name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        message = f"torchrec.tables.quantization_mapping: received {path!r}, {error}"
        raise OptionError(message) from error
    if not (isinstance(found, type) and issubclass(found, torch.nn.Module)):
        message = (
            f"torchrec.tables.quantization_mapping: received {path!r}, expected MODULE:CLASS of a "
            "torch.nn.Module"
        )
        raise OptionError(message)
    return found
