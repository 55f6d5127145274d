"""The `torchrec:` section of model-config.yaml, typed and checked once, when it is read."""

import logging
from collections.abc import Mapping
from difflib import get_close_matches
from reprlib import Repr
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from torchrec_handler.errors import OptionError

logger = logging.getLogger(__name__)

SECTION = "torchrec"
MOST_SAID = 200
"""Letters of a wrong text or number in a message."""

TableDtype = Literal["float32", "float16", "int8", "int4", "int2"]
DenseDtype = Literal["float32", "float16", "bfloat16", "int8"]
KernelDtype = Literal["float32", "bfloat16", "int8"]
DenseOption = Literal["float32", "float16", "bfloat16", "int8", "auto"]
ExchangeDtype = Literal["float32", "float16", "bfloat16"]
ShardingType = Literal["table_wise", "row_wise"]

KERNEL_DTYPES: tuple[KernelDtype, ...] = ("float32", "bfloat16", "int8")
PRECISIONS: tuple[DenseDtype, ...] = ("float32", "float16", "bfloat16", "int8")
"""Data types of the dense part and of kernels, the most precise first."""
AUTO: Literal["auto"] = "auto"
"""In `dense.dtype`: decided by layer, at a build."""
ALL = "all"
GRAPH = "graph"
"""In `kernels.off`: a method's dense part as a graph (`kernels.graph`)."""
ONCE = "once"
"""In `kernels.off`: what all rows of a request share, looked up once (`tables.once`)."""


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


def _number(value: Any) -> Any:
    """YAML 1.1 takes 1e-3 for a word."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


class Dense(_Section):
    """How everything that is not a table computes."""

    dtype: DenseOption = "float32"
    """Data type of the dense part's weights and results. float16 is TorchRec's `quantize_dense`, on
    the CPU too; its largest number is 65,504. bfloat16 is for CUDA; on the CPU weights and results
    stay float32, and it allows what `kernels.dtype: bfloat16` allows. int8 is the old name of
    `kernels.dtype: int8`, with weights and results in float32. auto, on the CPU: the build gives
    each layer the fastest type of float32, bfloat16 and int8 with which no output is off by more
    than `max_error`, measured on all together, and the archive says which; weights and results
    stay float32."""
    max_error: Annotated[float | None, BeforeValidator(_number)] = Field(
        default=None, gt=0, allow_inf_nan=False
    )
    """With `dtype: auto`, and only there: the largest absolute difference to float32 that any
    output of the samples may have."""

    @model_validator(mode="after")
    def _error_belongs_to_auto(self) -> Self:
        if (self.dtype == AUTO) != (self.max_error is not None):
            message = f"max_error where dtype is {AUTO!r}, and only there"
            kind = "max_error"
            raise PydanticCustomError(kind, message)
        return self


def _names(value: Any) -> Any:
    if value == ALL or (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        return value
    message = "kernel_names"
    raise PydanticCustomError(message, "'all' or a list of kernels' names")


class Kernels(_Section):
    """Which modules are computed in another way than TorchRec's own, and how precisely."""

    off: Annotated[Literal["all"] | list[str], PlainValidator(_names)] = []
    """Names of kernels to leave out; `all`: every forward is TorchRec's own, which is what a wrong
    score is compared with first. `graph`: the dense part of a method, whatever its modules,
    followed as by torch.export and made smaller, or the parts of it that can be; it is used where
    it gives what the module gives, and at the sizes of batches at which it is no slower; `dlrm`:
    a whole DLRM, its layers and lookups included, and the SparseArch of other models; `crossnet`:
    CrossNet and LowRankCrossNet; `linear`: linear layers and the ReLU behind them, with packed
    weights; `direct`: lookups without TorchRec's distribution of ids; `once`: what all rows of a
    request share is looked up once. What was replaced, and what not and why, `torchrec-archiver
    inspect` tells of the machine that built, and TorchServe's `GET
    /models/NAME?customized=true` of the one that serves."""
    dtype: KernelDtype = "float32"
    """The least precise type that a kernel may compute in, on the CPU: float32, bfloat16 or int8.
    Linear layers and the products of an interaction do, where the processor has the instructions
    and the layer is large enough to gain; what they give is float32. int8 finds its scales row by
    row, so no row's score depends on the rows beside it; it is refused on CUDA."""

    @model_validator(mode="before")
    @classmethod
    def _off_is_a_name(cls, section: Any) -> Any:
        """YAML 1.1, which TorchServe reads, takes a plain `off` for false."""
        if isinstance(section, Mapping) and False in section and "off" not in section:
            return {"off" if key is False else key: value for key, value in section.items()}
        return section

    def allow(self, name: str) -> bool:
        """Whether a kernel may be used."""
        return self.off != ALL and name not in self.off


class Sharding(_Section):
    """How tables are laid over devices that one process drives, or over ranks of torchrun."""

    world_size: int = Field(default=1, ge=1, le=64)
    """Devices that the worker drives. With ranks of torchrun these are the devices, and it is to be
    left out."""
    type: ShardingType = "table_wise"
    """For every table that `per_table` does not name."""
    per_table: Mapping[str, ShardingType] = {}
    """Table name to sharding type, TorchRec's `ParameterConstraints.sharding_types`."""
    plan: str | None = None
    """Name of a config of the package that holds a pickled `ShardingPlan`; the rest of this
    section, `world_size` and the timeout apart, is then not looked at."""
    exchange_dtype: ExchangeDtype = "float32"
    """What looked up rows travel in between ranks; float16 and bfloat16 halve their bytes."""
    timeout_seconds: float = Field(default=5.0, gt=0, allow_inf_nan=False)
    """How long one rank waits for another before the worker ends. Below `responseTimeout`, so that
    no request waits longer for a rank that is gone."""


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
    first. What other programs take of the processor meanwhile does not count."""
    rows_per_forward: int = Field(default=4_096, ge=1)
    """A larger batch is cut at request boundaries, a larger request by rows. Beyond 4,096 a row
    costs a CPU's caches 10 % more; a GPU may want more."""


def _full_path(value: str | None) -> str | None:
    if value is not None and not value.startswith("/"):
        message = "full_path"
        raise PydanticCustomError(message, "a full path")
    return value


class Record(_Section):
    """Which requests are kept in files, as `build --samples` reads them: personal data, mostly."""

    rate: float = Field(default=0.0, ge=0, le=1)
    """The share of the answered requests, drawn one by one."""
    folder: Annotated[str | None, AfterValidator(_full_path)] = None
    """Where they are written: a full path, outside of the archive. A file a worker and method, that
    its owner alone can read, of one JSON body a line. A folder that cannot be written to ends the
    recording, with an error in the log, and nothing else."""
    max_bytes: int = Field(default=100_000_000, ge=1)
    """What a worker writes until it records no more."""

    @model_validator(mode="after")
    def _has_folder(self) -> Self:
        if self.rate and self.folder is None:
            message = "no_folder"
            raise PydanticCustomError(message, "a folder, which rate needs")
        return self


class Updates(_Section):
    """Rows and dense weights that change while they are served, from delta files; on the CPU."""

    folder: Annotated[str | None, AfterValidator(_full_path)] = None
    """Where deltas are published: a full path, outside of the archive. None: nothing changes, and
    nothing is paid for it. Those that are refused are renamed, with `.refused` behind their names,
    where the worker may do that."""
    place: Annotated[str, AfterValidator(_full_path)] = "/dev/shm"  # noqa: S108  every Linux's
    """Where the live copy of the tables lies, in a folder of its own: a full path in a tmpfs. One
    for all workers of a machine, as large as the archive's tables. On a disk each row that changes
    would cost pages of writing."""
    poll_seconds: float = Field(default=0.02, ge=0.001, le=60)
    """How often the folder is looked at."""
    max_output_change: float | None = Field(default=None, ge=0)
    """The most that a delta may change an output of the archive's samples by, of what is served
    before it; one that changes more is refused, unless it rolls back. None: not checked, as without
    `self_test`."""


class Options(_Section):
    """All options; every one has a default, so the section may be left out."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: the GPU that TorchServe gave to the worker, else the CPU."""
    threads: int = Field(default=1, ge=1, le=1024)
    """Threads of one forward call on the CPU. Workers multiply it."""
    tables: Tables = Tables()
    dense: Dense = Dense()
    kernels: Kernels = Kernels()
    sharding: Sharding = Sharding()
    limits: Limits = Limits()
    record: Record = Record()
    updates: Updates = Updates()
    self_test: bool = True
    """Replay the archive's samples before the first request, which also warms the worker up; a
    plain archive's model has to take some of what is drawn. A signature that is not the model's is
    refused either way."""
    verify: Literal["code", "full"] = "code"
    """What is checked against its sha256 at load. `code`: every member but tables and samples;
    `full`: those too, which reads them all."""
    out_of_range_ids: Literal["reject", "zero", "modulo", "drop"] = "reject"
    """`reject`: answer 400; `zero`: look up row 0; `modulo`: the remainder by the table's rows;
    `drop`: leave the id out of its list, and its weight too: an output with a value for each id has
    none for it. A factory may say it of a feature, which then goes before this."""

    @model_validator(mode="after")
    def _auto_decides(self) -> Self:
        if self.dense.dtype == AUTO and self.kernels.dtype != "float32":
            message = f"no kernels.dtype beside dense.dtype {AUTO!r}, which decides it by layer"
            kind = "auto"
            raise PydanticCustomError(kind, message)
        return self

    @property
    def kernel_dtype(self) -> KernelDtype:
        """The least precise type that a kernel may compute in, whichever option allows it."""
        dense = self._dense_dtype
        return max(
            self.kernels.dtype, "float32" if dense == "float16" else dense, key=PRECISIONS.index
        )

    @property
    def precision(self) -> DenseDtype:
        """The least precise type that anything computes or travels in: how exact outputs can be."""
        types = self.kernels.dtype, self._dense_dtype, self.sharding.exchange_dtype
        return max(types, key=PRECISIONS.index)

    @property
    def _dense_dtype(self) -> DenseDtype:
        return self.dense.dtype if self.dense.dtype != "auto" else "int8"


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
        message = f"{SECTION}: received {_said(section)}, expected a mapping of options"
        raise OptionError(message)
    try:
        options = Options.model_validate(section)
    except ValidationError as error:
        raise OptionError("; ".join(map(_explain, error.errors()))) from None
    if options.dense.dtype == "int8":
        logger.warning(
            "%s.dense.dtype: int8 is called %s.kernels.dtype: int8 now; weights and results stay "
            "float32",
            SECTION,
            SECTION,
        )
    return options


def _said(value: object) -> str:
    """A wrong value, in part where it is long: YAML's aliases make 10^9 letters of a hundred."""
    say = Repr()
    say.maxlevel = 4
    say.maxstring = say.maxother = say.maxlong = MOST_SAID
    return say.repr(value)


def _explain(fault: Mapping[str, Any]) -> str:
    """One of pydantic's faults in our words; it names Python's types, where a file holds YAML's."""
    path = [SECTION, *map(str, fault["loc"])]
    received = _said(fault["input"])
    expected = str(fault["msg"]).removeprefix("Input should be ")
    if path[-1] == "[key]" or fault["type"] == "invalid_key":
        del path[-2 if path[-1] == "[key]" else -1 :]
        received, expected = f"the name {received}", "strings as names"
    elif fault["type"] == "extra_forbidden":
        owner: Any = Options
        for part in path[1:-1]:
            owner = owner.model_fields[part].annotation
        known = sorted(owner.model_fields)
        close = get_close_matches(path[-1], known, n=1)
        near = f" (did you mean {close[0]}?)" if close else ""
        return f"{'.'.join(path)}: unknown option{near}, expected one of {', '.join(known)}"
    elif fault["type"] in {"model_type", "dict_type"}:
        expected = "a mapping"
    expected = expected.replace("greater than or equal to", "at least")
    expected = expected.replace("less than or equal to", "at most")
    return f"{'.'.join(path)}: received {received}, expected {expected}"
