"""The `torchrec:` section: its defaults, and what is said of every wrong value in it."""

from dataclasses import dataclass

import pytest
import yaml
from pydantic import ValidationError

from torchrec_handler.errors import OptionError
from torchrec_handler.options import Options, Updates, read_options


def read(text: str) -> Options:
    return read_options(yaml.safe_load(text))


@pytest.mark.parametrize("text", ["", "minWorkers: 1", "torchrec:", "torchrec: {}"])
def test_every_option_has_a_default(text: str) -> None:
    assert read(text).model_dump() == {
        "device": "auto",
        "threads": 1,
        "tables": {
            "dtype": "int8",
            "per_table": {},
            "output_dtype": "float32",
            "quantization_mapping": {},
        },
        "dense": {"dtype": "float32", "max_error": None},
        "kernels": {"off": [], "dtype": "float32"},
        "sharding": {
            "world_size": 1,
            "type": "table_wise",
            "per_table": {},
            "plan": None,
            "exchange_dtype": "float32",
            "timeout_seconds": 5.0,
        },
        "limits": {
            "rows_per_request": 16_384,
            "ids_per_request": 1_048_576,
            "rows_per_batch": 20_480,
            "ids_per_batch": 2_097_152,
            "seconds_of_reading": 1.0,
            "rows_per_forward": 4_096,
        },
        "record": {"rate": 0.0, "folder": None, "max_bytes": 100_000_000},
        "updates": {
            "folder": None,
            "place": Updates().place,
            "poll_seconds": 0.02,
            "max_output_change": None,
        },
        "self_test": True,
        "verify": "code",
        "out_of_range_ids": "reject",
    }


def test_every_option_can_be_given() -> None:
    options = read(
        """
        torchrec:
          device: cpu
          threads: 2
          tables:
            dtype: float16
            per_table: {t_user: int4, t_movie: int2}
            output_dtype: float16
            quantization_mapping: {shop.Layer: "shop:QuantizedLayer"}
          dense: {dtype: bfloat16}
          kernels: {off: [direct, once], dtype: int8}
          sharding:
            world_size: 2
            type: row_wise
            per_table: {t_user: table_wise}
            plan: plan.pkl
          limits:
            rows_per_request: 1
            ids_per_request: 2
            rows_per_batch: 3
            ids_per_batch: 4
            seconds_of_reading: 5
            rows_per_forward: 6
          record: {rate: 0.5, folder: /var/requests, max_bytes: 7}
          updates:
            {folder: /var/deltas, place: /mnt/memory, poll_seconds: 0.5, max_output_change: 0.3}
          self_test: false
          verify: full
          out_of_range_ids: modulo
        """
    )
    assert options.model_dump() == {
        "device": "cpu",
        "threads": 2,
        "tables": {
            "dtype": "float16",
            "per_table": {"t_user": "int4", "t_movie": "int2"},
            "output_dtype": "float16",
            "quantization_mapping": {"shop.Layer": "shop:QuantizedLayer"},
        },
        "dense": {"dtype": "bfloat16", "max_error": None},
        "kernels": {"off": ["direct", "once"], "dtype": "int8"},
        "sharding": {
            "world_size": 2,
            "type": "row_wise",
            "per_table": {"t_user": "table_wise"},
            "plan": "plan.pkl",
            "exchange_dtype": "float32",
            "timeout_seconds": 5.0,
        },
        "limits": {
            "rows_per_request": 1,
            "ids_per_request": 2,
            "rows_per_batch": 3,
            "ids_per_batch": 4,
            "seconds_of_reading": 5.0,
            "rows_per_forward": 6,
        },
        "record": {"rate": 0.5, "folder": "/var/requests", "max_bytes": 7},
        "updates": {
            "folder": "/var/deltas",
            "place": "/mnt/memory",
            "poll_seconds": 0.5,
            "max_output_change": 0.3,
        },
        "self_test": False,
        "verify": "full",
        "out_of_range_ids": "modulo",
    }


@dataclass(frozen=True, kw_only=True)
class Wrong:
    text: str
    message: str


WRONG = [
    Wrong(text="torchrec: 5", message="torchrec: received 5, expected a mapping of options"),
    Wrong(text="torchrec: []", message="torchrec: received [], expected a mapping of options"),
    Wrong(
        text="torchrec: {1: 2}", message="torchrec: received the name 1, expected strings as names"
    ),
    Wrong(
        text="torchrec: {dtype: int8}",
        message=(
            "torchrec.dtype: unknown option, expected one of dense, device, kernels, "
            "limits, out_of_range_ids, record, self_test, sharding, tables, threads, updates, "
            "verify"
        ),
    ),
    Wrong(
        text="torchrec: {tables: {type: int8}}",
        message=(
            "torchrec.tables.type: unknown option (did you mean dtype?), expected one of dtype, "
            "output_dtype, per_table, quantization_mapping"
        ),
    ),
    Wrong(
        text="torchrec: {record: {rate: 1.5, folder: /var}}",
        message="torchrec.record.rate: received 1.5, expected at most 1",
    ),
    Wrong(
        text="torchrec: {record: {rate: 0.5}}",
        message="torchrec.record: received {'rate': 0.5}, expected a folder, which rate needs",
    ),
    Wrong(
        text="torchrec: {record: {folder: requests}}",
        message="torchrec.record.folder: received 'requests', expected a full path",
    ),
    Wrong(
        text="torchrec: {dense: {type: int8}}",
        message=(
            "torchrec.dense.type: unknown option (did you mean dtype?), "
            "expected one of dtype, max_error"
        ),
    ),
    Wrong(
        text="torchrec: {kernels: {type: int8}}",
        message=(
            "torchrec.kernels.type: unknown option (did you mean dtype?), "
            "expected one of dtype, off"
        ),
    ),
    Wrong(
        text="torchrec: {kernels: {dtype: float16}}",
        message=(
            "torchrec.kernels.dtype: received 'float16', expected 'float32', 'bfloat16' or 'int8'"
        ),
    ),
    Wrong(
        text="torchrec: {kernels: {off: linear}}",
        message=(
            "torchrec.kernels.off: received 'linear', expected 'all' or a list of kernels' names"
        ),
    ),
    Wrong(
        text="torchrec: {kernels: {off: [once], 'off': [direct]}}",
        message="torchrec.kernels: received the name False, expected strings as names",
    ),
    Wrong(
        text="torchrec: {kernels: {off: [1]}}",
        message="torchrec.kernels.off: received [1], expected 'all' or a list of kernels' names",
    ),
    Wrong(
        text="torchrec: {sharding: {ranks: 2}}",
        message=(
            "torchrec.sharding.ranks: unknown option, expected one of exchange_dtype, "
            "per_table, plan, timeout_seconds, type, world_size"
        ),
    ),
    Wrong(
        text="torchrec: {limits: {rows: 2}}",
        message=(
            "torchrec.limits.rows: unknown option, expected one of ids_per_batch, "
            "ids_per_request, rows_per_batch, rows_per_forward, rows_per_request, "
            "seconds_of_reading"
        ),
    ),
    Wrong(
        text="torchrec: {tables: }", message="torchrec.tables: received None, expected a mapping"
    ),
    Wrong(
        text="torchrec: {tables: int8}",
        message="torchrec.tables: received 'int8', expected a mapping",
    ),
    Wrong(
        text="torchrec: {device: gpu}",
        message="torchrec.device: received 'gpu', expected 'auto', 'cpu' or 'cuda'",
    ),
    Wrong(
        text="torchrec: {threads: 0}", message="torchrec.threads: received 0, expected at least 1"
    ),
    Wrong(
        text="torchrec: {threads: 2000}",
        message="torchrec.threads: received 2000, expected at most 1024",
    ),
    Wrong(
        text="torchrec: {threads: '2'}",
        message="torchrec.threads: received '2', expected a valid integer",
    ),
    Wrong(
        text="torchrec: {threads: 2.0}",
        message="torchrec.threads: received 2.0, expected a valid integer",
    ),
    Wrong(
        text="torchrec: {threads: true}",
        message="torchrec.threads: received True, expected a valid integer",
    ),
    Wrong(
        text="torchrec: {tables: {dtype: 8}}",
        message=(
            "torchrec.tables.dtype: received 8, "
            "expected 'float32', 'float16', 'int8', 'int4' or 'int2'"
        ),
    ),
    Wrong(
        text="torchrec: {tables: {per_table: {t_user: int7}}}",
        message=(
            "torchrec.tables.per_table.t_user: received 'int7', "
            "expected 'float32', 'float16', 'int8', 'int4' or 'int2'"
        ),
    ),
    Wrong(
        text="torchrec: {tables: {per_table: {1: int8}}}",
        message="torchrec.tables.per_table: received the name 1, expected strings as names",
    ),
    Wrong(
        text="torchrec: {tables: {per_table: [t_user]}}",
        message="torchrec.tables.per_table: received ['t_user'], expected a mapping",
    ),
    Wrong(
        text="torchrec: {tables: {output_dtype: int8}}",
        message="torchrec.tables.output_dtype: received 'int8', expected 'float32' or 'float16'",
    ),
    Wrong(
        text="torchrec: {tables: {quantization_mapping: {shop.Layer: 5}}}",
        message=(
            "torchrec.tables.quantization_mapping.shop.Layer: received 5, expected a valid string"
        ),
    ),
    Wrong(
        text="torchrec: {dense: {dtype: int4}}",
        message=(
            "torchrec.dense.dtype: received 'int4', "
            "expected 'float32', 'float16', 'bfloat16', 'int8' or 'auto'"
        ),
    ),
    *(
        Wrong(
            text=f"torchrec: {{dense: {{{text}}}}}",
            message=(
                f"torchrec.dense: received {received}, "
                "expected max_error where dtype is 'auto', and only there"
            ),
        )
        for text, received in (
            ("dtype: auto", {"dtype": "auto"}),
            ("dtype: int8, max_error: 0.1", {"dtype": "int8", "max_error": 0.1}),
        )
    ),
    Wrong(
        text="torchrec: {dense: {dtype: auto, max_error: 0}}",
        message="torchrec.dense.max_error: received 0, expected greater than 0",
    ),
    Wrong(
        text="torchrec: {dense: {dtype: auto, max_error: .inf}}",
        message="torchrec.dense.max_error: received inf, expected a finite number",
    ),
    Wrong(
        text="torchrec: {dense: {dtype: auto, max_error: little}}",
        message="torchrec.dense.max_error: received 'little', expected a valid number",
    ),
    Wrong(
        text="torchrec: {dense: {dtype: auto, max_error: 1}, kernels: {dtype: int8}}",
        message=(
            "torchrec: received {'dense': {'dtype': 'auto', 'max_error': 1}, "
            "'kernels': {'dtype': 'int8'}}, "
            "expected no kernels.dtype beside dense.dtype 'auto', which decides it by layer"
        ),
    ),
    Wrong(
        text="torchrec: {sharding: {world_size: 0}}",
        message="torchrec.sharding.world_size: received 0, expected at least 1",
    ),
    Wrong(
        text="torchrec: {sharding: {type: column_wise}}",
        message=(
            "torchrec.sharding.type: received 'column_wise', expected 'table_wise' or 'row_wise'"
        ),
    ),
    Wrong(
        text="torchrec: {sharding: {plan: 5}}",
        message="torchrec.sharding.plan: received 5, expected a valid string",
    ),
    Wrong(
        text="torchrec: {limits: {rows_per_forward: -1}}",
        message="torchrec.limits.rows_per_forward: received -1, expected at least 1",
    ),
    Wrong(
        text="torchrec: {out_of_range_ids: clip}",
        message=(
            "torchrec.out_of_range_ids: received 'clip', "
            "expected 'reject', 'zero', 'modulo' or 'drop'"
        ),
    ),
    Wrong(
        text="torchrec: {threads: 0, dense: {dtype: int4, type: x}}",
        message=(
            "torchrec.threads: received 0, expected at least 1; "
            "torchrec.dense.dtype: received 'int4', "
            "expected 'float32', 'float16', 'bfloat16', 'int8' or 'auto'; "
            "torchrec.dense.type: unknown option (did you mean dtype?), "
            "expected one of dtype, max_error"
        ),
    ),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: str(wrong.text))
def test_wrong_options_are_named_with_what_is_allowed(wrong: Wrong) -> None:
    with pytest.raises(OptionError) as caught:
        read(wrong.text)
    assert str(caught.value) == wrong.message


def test_options_cannot_change_after_they_were_checked() -> None:
    options = read("torchrec: {threads: 2}")
    with pytest.raises(ValidationError):
        options.threads = 1
    with pytest.raises(ValidationError):
        options.tables.dtype = "int4"


@pytest.mark.parametrize(
    ("dense", "kernels", "computed", "precision"),
    [
        ("float32", "float32", "float32", "float32"),
        ("float32", "int8", "int8", "int8"),
        ("float16", "float32", "float32", "float16"),
        ("float16", "bfloat16", "bfloat16", "bfloat16"),
        ("bfloat16", "float32", "bfloat16", "bfloat16"),
        ("bfloat16", "int8", "int8", "int8"),
        ("int8", "float32", "int8", "int8"),
        ("int8", "bfloat16", "int8", "int8"),
    ],
)
def test_kernels_compute_as_either_option_allows(
    dense: str, kernels: str, computed: str, precision: str
) -> None:
    options = read(f"torchrec: {{dense: {{dtype: {dense}}}, kernels: {{dtype: {kernels}}}}}")
    assert (options.kernel_dtype, options.precision) == (computed, precision)


def test_auto_may_take_any_type_and_reads_yaml_s_numbers() -> None:
    """1e-3 is a word to YAML 1.1."""
    options = read("torchrec: {dense: {dtype: auto, max_error: 1e-3}}")
    assert options.dense.max_error == 0.001
    assert (options.kernel_dtype, options.precision) == ("int8", "int8")


def test_int8_of_the_dense_part_is_told_its_new_name(caplog: pytest.LogCaptureFixture) -> None:
    read("torchrec: {dense: {dtype: bfloat16}, kernels: {dtype: int8}}")
    assert caplog.messages == []
    read("torchrec: {dense: {dtype: int8}}")
    (message,) = caplog.messages
    assert message == (
        "torchrec.dense.dtype: int8 is called torchrec.kernels.dtype: int8 now; "
        "weights and results stay float32"
    )


@pytest.mark.parametrize("off", ["off", "'off'", "false"])
def test_off_is_a_name_whatever_yaml_makes_of_it(off: str) -> None:
    """Its version 1.1 says that it is false."""
    assert read(f"torchrec: {{kernels: {{{off}: [direct]}}}}").kernels.off == ["direct"]


def test_kernels_are_left_out_by_name_or_all() -> None:
    one, every = read("torchrec: {kernels: {off: [once]}}"), read("torchrec: {kernels: {off: all}}")
    assert [one.kernels.allow(name) for name in ("once", "linear")] == [False, True]
    assert [every.kernels.allow(name) for name in ("once", "linear")] == [False, False]


def test_aliases_that_multiply_are_said_in_part() -> None:
    """As in a model-config.yaml of 200 letters that would be a line of 10^9."""
    value: list[object] = ["x"] * 10
    for _ in range(8):
        value = [value] * 10
    for document in ({"torchrec": value}, {"torchrec": {"device": value}}):
        with pytest.raises(OptionError) as caught:
            read_options(document)
        assert len(str(caught.value)) < 20_000
