"""The DLRM that training and serving share."""

import torch

from examples.movielens.data import Dataset
from examples.movielens.model import build_model, id_list_features
from examples.movielens.train import logits, model_config

CPU = torch.device("cpu")


def test_a_row_scores_the_same_alone_and_among_others(dataset: Dataset) -> None:
    config = model_config(dataset)
    model = build_model(config, CPU).eval()
    rows = dataset.test()
    with torch.inference_mode():
        together = logits(model, config, rows.take(slice(0, 5)))
        alone = logits(model, config, rows.take(slice(3, 4)))
    torch.testing.assert_close(together[3:4], alone)


def test_tables_on_meta_take_no_memory(dataset: Dataset) -> None:
    model = build_model(model_config(dataset), CPU, tables_device=torch.device("meta"))
    on_meta = {name for name, weight in model.named_parameters() if weight.is_meta}
    assert on_meta == {
        name for name, _ in model.named_parameters() if name.startswith("sparse_arch")
    }


def test_ids_come_feature_by_feature(dataset: Dataset) -> None:
    config = model_config(dataset)
    rows = dataset.test().take(slice(0, 4))
    features = id_list_features(
        config, torch.from_numpy(rows.lengths), torch.from_numpy(rows.values)
    )
    assert features.keys() == list(config.sparse_features)
    assert features["user_id"].values().tolist() == dataset.test_ratings.user[:4].tolist()
