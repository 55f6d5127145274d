"""Draws up a factory from a checkpoint alone: from the names and shapes of its tensors."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torchrec_archiver.checkpoint.entries import Checkpoint
from torchrec_archiver.checkpoint.names import WRAPPERS
from torchrec_archiver.draft.guess import IDS as GIVEN_IDS
from torchrec_archiver.draft.guess import NUMBERS, Pooled, guess_forward
from torchrec_archiver.draft.layers import layers
from torchrec_archiver.draft.parts import FLOATS, IDS, Draft, DraftInput, numbered
from torchrec_handler.errors import BuildError

Shapes = Mapping[str, tuple[int, ...]]
"""Name -> shape."""

TABLE = re.compile(r"(?:(.*)\.)?(embedding_bags|embeddings)\.([^.]+)\.weight")
DLRM = "sparse_arch.embedding_bag_collection"
CONFIGS = {"embedding_bags": "EmbeddingBagConfig", "embeddings": "EmbeddingConfig"}
COLLECTIONS = {"embedding_bags": "EmbeddingBagCollection", "embeddings": "EmbeddingCollection"}


class _Table(NamedTuple):
    collection: str
    """Path in the model."""
    kind: str
    """embedding_bags or embeddings."""
    name: str
    feature: str
    rows: int
    width: int


def draft_checkpoint(checkpoint: Checkpoint, path: Path) -> Draft:
    """Draw up a factory for what a checkpoint holds.

    TorchRec's DLRMs are known by their names; of any other model the factory builds the parts, and
    guesses how they are called, which every build of it warns of.

    Raises:
        BuildError: the checkpoint holds no tables of TorchRec's collections.
    """
    shapes = _model_part(checkpoint)
    tables = _tables(shapes)
    if not tables:
        few = ", ".join(list(checkpoint.entries)[:3])
        message = (
            f"weights: {path} holds no tables of TorchRec's collections "
            "(embedding_bags.NAME.weight or embeddings.NAME.weight), its first entries are "
            f"{few or 'none'}"
        )
        raise BuildError(message, hint="name what makes the model with --model MODULE:NAME")
    said = f"Drawn up from the names and shapes in {path.name}."
    return _dlrm(shapes, tables, said) or _unknown(shapes, tables, said, path.name)


def _model_part(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """The entries of the dict that has most tables, wrappers left out of their names."""
    parts = Counter(
        entry.part for name, entry in checkpoint.entries.items() if TABLE.fullmatch(name)
    )
    part = max(parts, key=lambda one: parts[one], default="")
    found = {}
    for name, entry in checkpoint.entries.items():
        if part and not name.startswith(f"{part}."):
            continue
        inner = name.removeprefix(f"{part}.") if part else name
        plain = ".".join(one for one in inner.split(".") if one not in WRAPPERS)
        found[plain] = entry.shape
    return found


def _tables(shapes: Shapes) -> list[_Table]:
    found = [
        (match[1] or "", match[2], match[3], shape)
        for name, shape in shapes.items()
        if (match := TABLE.fullmatch(name)) and len(shape) == 2
    ]
    prefix = next(
        (one for one in ("t_", "table_") if all(name.startswith(one) for _, _, name, _ in found)),
        "",
    )
    return [
        _Table(collection, kind, name, name.removeprefix(prefix), *shape)
        for collection, kind, name, shape in found
    ]


def _inputs(tables: Sequence[_Table], width: int) -> tuple[DraftInput, ...]:
    sparse = DraftInput(
        name=IDS,
        type="sparse",
        features=tuple(dict.fromkeys(table.feature for table in tables)),
        ids_below={table.feature: table.rows for table in tables},
    )
    dense = DraftInput(name=FLOATS, type="dense", features=numbered(width), ids_below={})
    return (dense, sparse) if width else (sparse,)


def _dlrm(shapes: Shapes, tables: Sequence[_Table], said: str) -> Draft | None:
    """TorchRec's DLRM, DLRM_DCN or DLRM_Projection; None of another model."""
    root = tables[0].collection.removesuffix(DLRM)
    own = {
        name.removeprefix(root): shape for name, shape in shapes.items() if name.startswith(root)
    }
    dense = _perceptrons(own, "dense_arch.model")
    over = _perceptrons(own, "over_arch.model.0")
    last = own.get("over_arch.model.1.weight")
    if not (tables[0].collection == f"{root}{DLRM}" and dense and over and last):
        return None
    width, features = tables[0].width, len(tables)
    guesses = [
        "features: each table is taken to be of one feature, called as the table is",
        f"{FLOATS}: names of the {dense[0][1]} numbers are made up",
    ]
    kind, more = "DLRM", []
    crossed = own.get("inter_arch.crossnet.V_kernels.0")
    branches = [_perceptrons(own, f"inter_arch.interaction_branch{n}.model") for n in (1, 2)]
    if crossed:
        kind = "DLRM_DCN"
        count = sum(name.startswith("inter_arch.crossnet.V_kernels.") for name in own)
        more = [f"dcn_num_layers={count},", f"dcn_low_rank_dim={crossed[0]},"]
    elif all(branches):
        kind = "DLRM_Projection"
        more = [
            f"interaction_branch{n}_layer_sizes={_sizes(branch)},"
            for n, branch in enumerate(branches, 1)
        ]
    elif over[0][1] != width + features * (features + 1) // 2:
        guesses.append(
            f"tables: over_arch takes {over[0][1]} numbers, which {features} features do not make: "
            "some tables are of several features; name them in feature_names"
        )
    return Draft(
        said=said,
        inputs=_inputs(tables, dense[0][1]),
        imports=(
            f"from torchrec.models.dlrm import {kind}",
            "from torchrec.modules.embedding_configs import EmbeddingBagConfig",
            "from torchrec.modules.embedding_modules import EmbeddingBagCollection",
        ),
        code=_table_list(tables),
        model=(
            "# Tables without memory: theirs come from the archive.",
            *_collection(tables, "tables", "TABLES"),
            f"return {kind}(",
            "    tables,",
            f"    dense_in_features={dense[0][1]},",
            f"    dense_arch_layer_sizes={_sizes(dense)},",
            f"    over_arch_layer_sizes={[*_sizes(over), last[0]]},",
            *(f"    {line}" for line in more),
            "    dense_device=device,",
            ")",
        ),
        forward=(
            f'scores = model(batch["{FLOATS}"], batch["{IDS}"])',
            "# As the model gives them: torch.sigmoid(scores) makes probabilities of logits.",
            'return {"default": scores.reshape(-1)}',
        ),
        guesses=tuple(guesses),
    )


def _perceptrons(shapes: Shapes, path: str) -> list[tuple[int, ...]]:
    """Shapes [out, in] of the layers of TorchRec's MLP."""
    found: list[tuple[int, ...]] = []
    while shape := shapes.get(f"{path}._mlp.{len(found)}._linear.weight"):
        found.append(shape)
    return found


def _sizes(layers_of: Sequence[tuple[int, ...]]) -> list[int]:
    return [shape[0] for shape in layers_of]


def _table_list(tables: Sequence[_Table], name: str = "TABLES") -> str:
    rows = "\n".join(
        f'    ("{table.name}", ["{table.feature}"], {table.rows}, {table.width}),'
        for table in tables
    )
    return f"{name} = [  # name, features, rows, width\n{rows}\n]"


def _collection(tables: Sequence[_Table], target: str, listed: str) -> Iterator[str]:
    kind = tables[0].kind
    yield f"{target} = {COLLECTIONS[kind]}("
    yield '    device=torch.device("meta"),'
    yield "    tables=["
    yield f"        {CONFIGS[kind]}("
    yield "            name=name, feature_names=features, num_embeddings=rows, embedding_dim=width"
    yield "        )"
    yield f"        for name, features, rows, width in {listed}"
    yield "    ],"
    yield ")"


def _unknown(shapes: Shapes, tables: Sequence[_Table], said: str, file: str) -> Draft:
    """A model of the parts that the names show; how they are called, no name tells."""
    collections: dict[str, list[_Table]] = {}
    for table in tables:
        collections.setdefault(table.collection, []).append(table)
    made: dict[str, list[str]] = {}
    lists = []
    for number, (path, own) in enumerate(collections.items(), 1):
        listed = "TABLES" if len(collections) == 1 else f"TABLES_{number}"
        lists.append(_table_list(own, listed))
        made[path] = list(_collection(own, "{target}", listed))
    rest = {name: shape for name, shape in shapes.items() if not TABLE.fullmatch(name)}
    drawn = layers(rest, made)
    guess = guess_forward(
        drawn,
        [
            Pooled(path, sum(table.width for table in own), own[0].kind == "embeddings")
            for path, own in collections.items()
        ],
    )
    kinds = sorted({table.kind for table in tables})
    inputs = _inputs(tables, guess.numbers)
    body = "\n".join(f"            {line}".rstrip() for line in drawn.lines)
    forward = "\n".join(f"        {line}" for line in guess.lines)
    tabled = "\n\n".join(lists)
    left_out = "".join(f"\n        # Not called: {one}." for one in guess.left_out)
    code = f'''{tabled}


class Model(torch.nn.Module):
    """The parts that the checkpoint's names show; activations are guessed."""

    def __init__(self, device):
        super().__init__()
        with device:  # tables aside, which need no memory: theirs come from the archive
{body}

    def forward(self, {", ".join(([NUMBERS] if guess.numbers else []) + [GIVEN_IDS])}):
        # A guess, by widths alone. Put the forward here that was trained, then delete
        # Factory.guessed, which every build warns of.{left_out}
{forward}
'''
    return Draft(
        said=said,
        inputs=inputs,
        imports=(
            f"from torchrec.modules.embedding_configs import {_listed(CONFIGS, kinds)}",
            f"from torchrec.modules.embedding_modules import {_listed(COLLECTIONS, kinds)}",
            *(["from torchrec.modules.mlp import MLP"] if drawn.uses_mlp else []),
        ),
        code=code,
        model=("return Model(device)",),
        forward=(f"return model({', '.join(f'batch[{json.dumps(one.name)}]' for one in inputs)})",),
        guesses=("features: each table is taken to be of one feature, called as the table is",),
        guessed=(
            f"Model.forward is guessed from the shapes in {file}: its answers are wrong until it "
            "is the forward that was trained; then delete this line"
        ),
    )


def _listed(names: Mapping[str, str], kinds: Sequence[str]) -> str:
    return ", ".join(names[kind] for kind in kinds)
