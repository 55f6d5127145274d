"""The `torchrec:` section of model-config.yaml, typed and checked once, when it is read."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from torchrec_handler.errors import OptionError

SECTION = "torchrec"

TableDtype = Literal["float32", "float16", "int8", "int4", "int2"]
DenseDtype = Literal["float32", "float16", "bfloat16", "int8"]
ShardingType = Literal["table_wise", "row_wise"]


class _Section(BaseModel):
    # The docstrings are the descriptions that docs/options.md is made of.
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )


class Tables(_Section):
    """How embedding tables are stored."""

    dtype: TableDtype = "int8"
    """Data type of every table that `per_table` does not name. int8 packs widths that are multiples
    of 2, int4 of 4, int2 of 8: a table of another width (1, 3) is stored as float16, or as float32
    where only that holds its values, with a warning."""
    per_table: Mapping[str, TableDtype] = {}
    """Table name to data type."""
    output_dtype: Literal["float32", "float16"] = "float32"
    """What a lookup gives to the dense part."""
    quantization_mapping: Mapping[str, str] = {}
    """More module types to quantize, beside TorchRec's collections: full type name to MODULE:CLASS
    of its quantized counterpart, for `quantize_inference_model`."""


class Dense(_Section):
    """How everything that is not a table computes."""

    dtype: DenseDtype = "float32"
    """On the CPU, bfloat16 and int8 are the least precise type that linear layers, and the products
    of an interaction, may compute in; all else, and what they give, is float32. int8 finds its
    scales row by row, so no row's score depends on the rows beside it. On CUDA, bfloat16 is the
    type of all dense weights and inputs, and int8 is refused. float16, on either, is TorchRec's
    `quantize_dense`: all dense weights, and what layers take and give, whose largest number is then
    65,504."""


class Sharding(_Section):
    """How tables are laid over devices; the worker drives all of them from one process."""

    world_size: int = Field(default=1, ge=1, le=64)
    """Devices that the worker drives."""
    type: ShardingType = "table_wise"
    """For every table that `per_table` does not name."""
    per_table: Mapping[str, ShardingType] = {}
    """Table name to sharding type, TorchRec's `ParameterConstraints.sharding_types`."""
    plan: str | None = None
    """Name of a config of the package that holds a pickled `ShardingPlan`; the rest of this
    section, `world_size` apart, is then not looked at."""


class Limits(_Section):
    """What one request, one batch and one forward call may hold at most."""

    rows_per_request: int = Field(default=16_384, ge=1)
    """A request with more is answered 413. One of this size holds a worker for some 0.4 s."""
    ids_per_request: int = Field(default=1_048_576, ge=1)
    """A request with more is answered 413. What all of its rows share counts in each of them."""
    rows_per_batch: int = Field(default=20_480, ge=1)
    """Of the requests that TorchServe hands over together the smallest are taken, at least one, and
    the others answered 503 at once. A largest request and 4,096 rows of others, or 20 of 1,000
    rows: with more clients of 1,000 rows than that at a time, raise it."""
    ids_per_batch: int = Field(default=2_097_152, ge=1)
    """The same for ids."""
    seconds_of_reading: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """What is left unread of a batch after them is answered 503; the smallest bodies are read
    first."""
    rows_per_forward: int = Field(default=4_096, ge=1)
    """A larger batch is cut at request boundaries, a larger request by rows. Beyond 4,096 a row
    costs a CPU's caches 10 % more; a GPU may want more."""


class Options(_Section):
    """All options; every one has a default, so the section may be left out."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: the GPU that TorchServe gave to the worker, else the CPU."""
    threads: int = Field(default=1, ge=1, le=1024)
    """Threads of one forward call on the CPU. Workers multiply it."""
    tables: Tables = Tables()
    dense: Dense = Dense()
    sharding: Sharding = Sharding()
    limits: Limits = Limits()
    self_test: bool = True
    """Replay the archive's samples before the first request, which also warms the worker up; a
    plain archive's model has to take some of what is drawn. A signature that is not the model's is
    refused either way."""
    verify: Literal["code", "full"] = "code"
    """What is checked against its sha256 at load. `code`: every member but tables and samples;
    `full`: those too, which reads them all."""
    out_of_range_ids: Literal["reject", "zero", "modulo"] = "reject"
    """`reject`: answer 400; `zero`: look up row 0; `modulo`: the remainder by the table's rows."""


def read_options(model_config: Mapping[str, Any] | None) -> Options:
    """Take our section out of a parsed model-config.yaml.

    Args:
        model_config: the whole document; TorchServe's own settings in it are left to TorchServe.

    Raises:
        OptionError: an unknown key or a wrong value; the message names each with what is allowed.
    """
    section = (model_config or {}).get(SECTION)
    if section is None:
        return Options()
    if not isinstance(section, Mapping):
        message = f"{SECTION}: received {section!r}, expected a mapping of options"
        raise OptionError(message)
    try:
        return Options.model_validate(section)
    except ValidationError as error:
        raise OptionError("; ".join(map(_explain, error.errors()))) from None


def _explain(fault: Mapping[str, Any]) -> str:
    """One of pydantic's faults in our words; it names Python's types, where a file holds YAML's."""
    path = [SECTION, *map(str, fault["loc"])]
    received = repr(fault["input"])
    expected = str(fault["msg"]).removeprefix("Input should be ")
    if path[-1] == "[key]" or fault["type"] == "invalid_key":
        del path[-2 if path[-1] == "[key]" else -1 :]
        received, expected = f"the name {received}", "strings as names"
    elif fault["type"] == "extra_forbidden":
        owner: Any = Options
        for part in path[1:-1]:
            owner = owner.model_fields[part].annotation
        known = ", ".join(sorted(owner.model_fields))
        return f"{'.'.join(path)}: unknown option, expected one of {known}"
    elif fault["type"] in {"model_type", "dict_type"}:
        expected = "a mapping"
    expected = expected.replace("greater than or equal to", "at least")
    expected = expected.replace("less than or equal to", "at most")
    return f"{'.'.join(path)}: received {received}, expected {expected}"
