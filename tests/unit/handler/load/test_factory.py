"""The contract with a PredictFactory: what it may give, and what is said of what it may not."""

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torchrec.inference.modules import BatchingMetadata, QualNameMetadata

from tests.support.factories.ranking import RankingPredictFactory, RankingPredictModule
from torchrec_handler.errors import FactoryError
from torchrec_handler.load.factory import FactoryOutput, run_factory, run_weights_dependent

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
DENSE = BatchingMetadata(type="dense", device="cpu", pinned=[""])


class Shop(RankingPredictFactory):
    """A factory without what tables cost."""

    def create_predict_module(self) -> torch.nn.Module:
        return ShopModule(torch.nn.Linear(1, 1), "cpu")


class ShopModule(RankingPredictModule):
    """A predict module with a method beside forward."""

    def explain(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"default": batch["float_features"]}


def shop(**methods: Callable[..., Any]) -> Shop:
    """A factory of which some methods are replaced."""
    return type("ShopPredictFactory", (Shop,), methods)()  # type: ignore[no-any-return]


def returning(value: Any) -> Callable[..., Any]:
    return lambda _, *__: value


def raising(_: object, *__: object) -> None:
    message = "no"
    raise ValueError(message)


raising.__qualname__ = "ShopPredictFactory.method"


def run(factory: Shop, device: torch.device = CPU) -> FactoryOutput:
    return run_factory(factory, device, 2)


def error_of(factory: Shop) -> str:
    with pytest.raises(FactoryError) as caught:
        run(factory)
    return str(caught.value)


def test_a_factory_gives_its_module_and_how_to_feed_and_read_it() -> None:
    factory = RankingPredictFactory()
    output = run_factory(factory, CPU, 1)
    assert output.factory is factory
    assert isinstance(output.module, RankingPredictModule)
    assert output.batching == factory.batching_metadata()
    assert output.qualnames == {"forward": QualNameMetadata(need_preproc=True)}
    assert output.result_metadata == "dict_of_tensor"
    assert output.model_inputs_data == {}


def test_a_factory_that_wants_world_size_and_device_gets_them() -> None:
    """As TorchRec's own DLRM example does, against its base class."""
    seen: dict[str, object] = {}

    def create(_: Shop, world_size: int, device: str) -> torch.nn.Module:
        seen.update(world_size=world_size, device=device)
        return ShopModule(torch.nn.Linear(1, 1), device)

    run(shop(create_predict_module=create))
    assert seen == {"world_size": 2, "device": "cpu"}


def test_a_factory_that_wants_the_device_alone_gets_it() -> None:
    seen: dict[str, object] = {}

    def create(_: Shop, *, device: str = "meta") -> torch.nn.Module:
        seen.update(device=device)
        return ShopModule(torch.nn.Linear(1, 1), device)

    run(shop(create_predict_module=create))
    assert seen == {"device": "cpu"}


def test_a_factory_that_wants_more_is_told_what_it_lacks() -> None:
    def create(_: Shop, world_size: int, rank: int) -> torch.nn.Module:
        raise AssertionError((world_size, rank))

    create.__qualname__ = "ShopPredictFactory.create_predict_module"
    assert error_of(shop(create_predict_module=create)) == (
        "ShopPredictFactory.create_predict_module raised TypeError: "
        "ShopPredictFactory.create_predict_module() missing 1 required positional argument: 'rank'"
    )


def test_the_module_that_the_independent_transformations_return_goes_on() -> None:
    other = ShopModule(torch.nn.Linear(2, 2), "cpu")
    output = run(shop(run_weights_independent_tranformations=returning(other)))
    assert output.module is other


def test_the_module_that_the_dependent_transformations_return_is_served() -> None:
    other = ShopModule(torch.nn.Linear(2, 2), "cpu")
    output = run(shop(run_weights_dependent_transformations=returning(other)))
    assert output.module is not other
    assert run_weights_dependent(output) is other


@pytest.mark.parametrize(
    "method",
    [
        "create_predict_module",
        "run_weights_independent_tranformations",
        "batching_metadata",
        "batching_metadata_json",
        "qualname_metadata",
        "qualname_metadata_json",
        "result_metadata",
        "model_inputs_data",
    ],
)
def test_what_a_method_raises_is_a_factory_error(method: str) -> None:
    assert error_of(shop(**{method: raising})) == (
        "ShopPredictFactory.method raised ValueError: no"
    )


def test_what_the_dependent_transformations_raise_is_a_factory_error() -> None:
    output = run(shop(run_weights_dependent_transformations=raising))
    with pytest.raises(FactoryError) as caught:
        run_weights_dependent(output)
    assert str(caught.value) == "ShopPredictFactory.method raised ValueError: no"


@pytest.mark.parametrize(
    "method", ["create_predict_module", "run_weights_independent_tranformations"]
)
def test_what_is_no_module_is_refused(method: str) -> None:
    assert error_of(shop(**{method: returning(None)})) == (
        f"ShopPredictFactory.{method}: returned a NoneType, expected a Module"
    )


def test_forgetting_to_return_the_transformed_module_is_named() -> None:
    output = run(shop(run_weights_dependent_transformations=returning(None)))
    with pytest.raises(FactoryError) as caught:
        run_weights_dependent(output)
    assert str(caught.value) == (
        "ShopPredictFactory.run_weights_dependent_transformations: returned a NoneType, "
        "expected a Module"
    )


def test_a_transformation_that_loses_a_method_is_named() -> None:
    lost = torch.nn.Linear(1, 1)
    output = run(
        shop(
            qualname_metadata=returning({"explain": QualNameMetadata(need_preproc=True)}),
            run_weights_dependent_transformations=returning(lost),
        )
    )
    with pytest.raises(FactoryError) as caught:
        run_weights_dependent(output)
    assert str(caught.value) == (
        "ShopPredictFactory.run_weights_dependent_transformations: returned a Linear without the "
        "method 'explain' that qualname_metadata names"
    )


# batching_metadata


def test_plain_type_names_are_taken() -> None:
    """As TorchRec's own DLRM example gives them, which have no JSON form."""
    plain = {"float_features": "dense", "id_list_features": "sparse"}
    assert run(shop(batching_metadata=returning(plain))).batching == {
        "float_features": BatchingMetadata(type="dense", device="cpu", pinned=[]),
        "id_list_features": BatchingMetadata(type="sparse", device="cpu", pinned=[]),
    }
    assert run(shop(batching_metadata=returning(plain)), CUDA).batching == {
        "float_features": BatchingMetadata(type="dense", device="cuda", pinned=[]),
        "id_list_features": BatchingMetadata(type="sparse", device="cuda", pinned=[]),
    }


def test_the_json_form_decides() -> None:
    """As in TorchRec's C++ server, which reads nothing else."""
    document = json.dumps({"x": {"type": "embedding", "device": "cpu", "pinned": ["", "weights"]}})
    output = run(shop(batching_metadata_json=returning(document)))
    assert output.batching == {
        "x": BatchingMetadata(type="embedding", device="cpu", pinned=["", "weights"])
    }


def test_inputs_for_cuda_are_served_on_a_machine_without_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cuda = {"x": BatchingMetadata(type="dense", device="cuda", pinned=[""])}
    with caplog.at_level(logging.WARNING):
        output = run(shop(batching_metadata=returning(cuda)))
    assert output.batching == {"x": BatchingMetadata(type="dense", device="cpu", pinned=[])}
    assert caplog.messages == [
        "ShopPredictFactory.batching_metadata['x']: device cuda, served on cpu"
    ]


def test_each_input_keeps_its_device_where_there_is_cuda() -> None:
    both = {
        "x": BatchingMetadata(type="dense", device="cuda:0", pinned=[""]),
        "y": BatchingMetadata(type="sparse", device="cpu", pinned=["lengths", "values"]),
    }
    assert run(shop(batching_metadata=returning(both)), CUDA).batching == both


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, ": received no inputs, expected at least one"),
        (None, ": returned a NoneType, expected a Mapping"),
        ([DENSE], ": returned a list, expected a Mapping"),
        ({"x": 5}, "['x']: received a int, expected BatchingMetadata"),
        (
            {"x": DENSE, "y": "sparse"},
            "['y']: received a str, expected BatchingMetadata",
        ),
        (
            {"x": "densely"},
            (
                "['x']: received type 'densely', "
                "expected one of dense, sparse, weighted_sparse, embedding"
            ),
        ),
        (
            {"x": BatchingMetadata(type="float", device="cpu", pinned=[])},
            (
                "['x']: received type 'float', "
                "expected one of dense, sparse, weighted_sparse, embedding"
            ),
        ),
        (
            {"x": BatchingMetadata(type="dense", device="gpu", pinned=[])},
            "['x']: received device 'gpu', expected cpu or cuda",
        ),
        (
            {"x": BatchingMetadata(type="dense", device="cpu", pinned="values")},
            "['x']: received pinned 'values', expected a list of suffixes",
        ),
        (
            {"x": QualNameMetadata(need_preproc=True)},
            (
                '_json: received \'{"x": {"need_preproc": true}}\', '
                "expected a JSON object of BatchingMetadata fields by name"
            ),
        ),
    ],
)
def test_wrong_batching_metadata_is_named(metadata: object, message: str) -> None:
    said = error_of(shop(batching_metadata=returning(metadata)))
    assert said == f"ShopPredictFactory.batching_metadata{message}"


@pytest.mark.parametrize("text", ["{", "[]", '{"x": 5}', '{"x": {"type": "dense"}}'])
@pytest.mark.parametrize(
    ("method", "kind"),
    [("batching_metadata", "BatchingMetadata"), ("qualname_metadata", "QualNameMetadata")],
)
def test_a_wrong_json_form_is_named(method: str, kind: str, text: str) -> None:
    assert error_of(shop(**{f"{method}_json": returning(text)})) == (
        f"ShopPredictFactory.{method}_json: received {text!r}, "
        f"expected a JSON object of {kind} fields by name"
    )


# qualname_metadata


def test_forward_is_always_served() -> None:
    explain = {"explain": QualNameMetadata(need_preproc=False)}
    assert run(shop(qualname_metadata=returning(explain))).qualnames == {
        "forward": QualNameMetadata(need_preproc=True),
        "explain": QualNameMetadata(need_preproc=False),
    }
    assert run(shop(qualname_metadata=returning({}))).qualnames == {
        "forward": QualNameMetadata(need_preproc=True)
    }


def test_forward_itself_may_want_its_own_arguments() -> None:
    own = {"forward": QualNameMetadata(need_preproc=False)}
    assert run(shop(qualname_metadata=returning(own))).qualnames == own


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (
            {"rank": QualNameMetadata(need_preproc=True)},
            ": names 'rank', but ShopModule has no such method",
        ),
        (
            {"training": QualNameMetadata(need_preproc=True)},
            ": names 'training', but ShopModule has no such method",
        ),
        (None, ": returned a NoneType, expected a Mapping"),
        ({"forward": True}, "['forward']: received a bool, expected QualNameMetadata"),
        ({"forward": "true"}, "['forward']: received a str, expected QualNameMetadata"),
        (
            {"forward": QualNameMetadata(need_preproc="no")},
            "['forward']: received need_preproc 'no', expected True or False",
        ),
    ],
)
def test_wrong_qualname_metadata_is_named(metadata: object, message: str) -> None:
    said = error_of(shop(qualname_metadata=returning(metadata)))
    assert said == f"ShopPredictFactory.qualname_metadata{message}"


# result_metadata


@pytest.mark.parametrize("kind", ["dict_of_tensor", "dict_of_tensors", "dict_with_mask_tensor"])
def test_every_result_type_of_torchrec_is_taken(kind: str) -> None:
    assert run(shop(result_metadata=returning(kind))).result_metadata == kind


@pytest.mark.parametrize("kind", ["tensor", "", None])
def test_an_unknown_result_type_is_named(kind: str | None) -> None:
    assert error_of(shop(result_metadata=returning(kind))) == (
        f"ShopPredictFactory.result_metadata: received {str(kind)!r}, "
        "expected one of dict_of_tensor, dict_of_tensors, dict_with_mask_tensor"
    )


# model_inputs_data


def test_model_inputs_data_may_hold_anything_beside_its_own_keys() -> None:
    data = {
        "id_list_features": {"features": ("user", "movie"), "rows_per_table": [5, 6]},
        "float_features": {"features": ["age"], "num_features": 1, "width": 3},
        "batch_size": 10,
        "notes": {"features": []},
    }
    assert run(shop(model_inputs_data=returning(data))).model_inputs_data == data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, ": returned a NoneType, expected a Mapping"),
        ({"x": {"features": "user"}}, "['x']['features']: received 'user', expected names"),
        ({"x": {"features": [1]}}, "['x']['features']: received [1], expected names"),
        ({"x": {"features": None}}, "['x']['features']: received None, expected names"),
        ({"x": {"num_features": "3"}}, "['x']['num_features']: received '3', expected 1 or more"),
        ({"x": {"num_features": 0}}, "['x']['num_features']: received 0, expected 1 or more"),
        ({"x": {"width": 2.5}}, "['x']['width']: received 2.5, expected 1 or more"),
    ],
)
def test_wrong_model_inputs_data_is_named(data: object, message: str) -> None:
    said = error_of(shop(model_inputs_data=returning(data)))
    assert said == f"ShopPredictFactory.model_inputs_data{message}"


def test_model_inputs_data_that_contradicts_itself_is_named() -> None:
    data = {"x": {"features": ["user", "movie"], "num_features": 3}}
    assert error_of(shop(model_inputs_data=returning(data))) == (
        "ShopPredictFactory.model_inputs_data['x']: received 2 features, but num_features 3"
    )


def test_a_missing_module_in_a_method_is_named() -> None:
    def create(_: Shop) -> torch.nn.Module:
        import nowhere_library  # type: ignore[import-not-found]  # noqa: PLC0415  is nowhere

        return ShopModule(nowhere_library.Model(), "cpu")

    create.__qualname__ = "ShopPredictFactory.create_predict_module"
    assert error_of(shop(create_predict_module=create)) == (
        "ShopPredictFactory.create_predict_module needs the extern module 'nowhere_library', which "
        "this worker lacks; install it, list it in --requirements-file, or let the packager "
        "intern it"
    )
