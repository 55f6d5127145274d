"""Models that `init` is pointed at: what a user has, without a factory."""

import torch
from torchrec.models.dlrm import DLRM, DLRM_DCN, DLRM_Projection
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

WIDTH = 8


def bags(*, is_weighted: bool = False, **rows: int) -> EmbeddingBagCollection:
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=f"t_{name}", feature_names=[name], num_embeddings=count, embedding_dim=WIDTH
            )
            for name, count in rows.items()
        ],
        is_weighted=is_weighted,
    )


def dlrm(device: torch.device | None = None) -> DLRM:
    return DLRM(bags(user=50, movie=40), 5, [16, WIDTH], [16, 1], dense_device=device)


def dlrm_dcn() -> DLRM_DCN:
    return DLRM_DCN(bags(user=50, movie=40), 5, [16, WIDTH], [16, 1], 2, 4)


def dlrm_projection() -> DLRM_Projection:
    sizes = [16, 2 * WIDTH]
    return DLRM_Projection(bags(user=50, movie=40), 5, [16, WIDTH], [16, 1], sizes, sizes)


class TwoTower(torch.nn.Module):
    """Two vectors a row."""

    def __init__(self) -> None:
        super().__init__()
        self.user_bags = bags(user=50, country=2)
        self.item_bags = bags(movie=40)
        self.user = torch.nn.Linear(2 * WIDTH, 4)
        self.item = torch.nn.Linear(WIDTH, 4)

    def forward(self, features: KeyedJaggedTensor) -> tuple[torch.Tensor, torch.Tensor]:
        user, item = self.user_bags(features).values(), self.item_bags(features).values()
        return self.user(user), self.item(item)


class Untyped(torch.nn.Module):
    """Takes numbers beside its tables, and says of neither which it is."""

    def __init__(self) -> None:
        super().__init__()
        self.sparse = bags(user=50, movie=40)
        self.over = torch.nn.Sequential(
            torch.nn.Linear(7 + 2 * WIDTH, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)
        )

    def forward(self, dense, kjt):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        return self.over(torch.cat([dense, self.sparse(kjt).values()], dim=1))


class Keywords(torch.nn.Module):
    """Takes several inputs by keyword, two of them sparse, and answers with a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.user_bags = bags(user=50, country=2)
        self.item_bags = bags(is_weighted=True, movie=40)
        self.context = torch.nn.Linear(3, WIDTH)

    def forward(
        self,
        *,
        user: KeyedJaggedTensor,
        item: KeyedJaggedTensor,
        context: torch.Tensor,
        scale: float = 1.0,
    ) -> dict[str, torch.Tensor]:
        users, items = self.user_bags(user).values(), self.item_bags(item).values()
        score = (self.context(context) * items).sum(1) + users.sum(1)
        return {"score": score * scale, "items": items}


class Sequences(torch.nn.Module):
    """Looks up sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.history = EmbeddingCollection(
            tables=[
                EmbeddingConfig(
                    name="t_seen", feature_names=["seen"], num_embeddings=30, embedding_dim=WIDTH
                )
            ]
        )

    def forward(self, history: KeyedJaggedTensor) -> torch.Tensor:
        seen: torch.Tensor = self.history(history)["seen"].to_padded_dense(5)
        return seen.sum((1, 2))


def asking_for(rows: int) -> EmbeddingBagCollection:
    return bags(user=rows)


def a_number() -> int:
    return 1


def broken() -> None:
    message = "no model today"
    raise ValueError(message)
