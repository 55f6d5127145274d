"""What depends on the user alone, computed on one row a request: a program for shared inputs.

Requests that give some features once for all of their rows are a batch of U users and one of B
candidates. Each node is the user's, the candidate's or neither's by what it reads; where a
candidate meets its user, the user's row is repeated, and of a layer over both each has a half.
Shapes: B rows, U users, F features, N ids.
"""

import operator
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from torchrec_handler.kernels.graph.blocks import USER
from torchrec_handler.kernels.graph.capture import Captured
from torchrec_handler.kernels.graph.cats import columns_of, pieces_of
from torchrec_handler.kernels.graph.clean import clean
from torchrec_handler.kernels.graph.layers import ACTIVATION, emit_layer, weights_of
from torchrec_handler.kernels.graph.packing import join
from torchrec_handler.kernels.graph.program import (
    Node,
    Program,
    Site,
    aten,
    is_call,
    is_tensor,
)
from torchrec_handler.kernels.graph.rows import mixes
from torchrec_handler.kernels.graph.sites import look_up

Mask = npt.NDArray[np.bool_]
Shared = Mapping[str, Mask | None]
"""Input -> which of its features [F] requests give once; None for all of a dense one."""

SUFFIXES = (".lengths", ".values", ".weights")


class CannotShare(Exception):
    """Why the user cannot be told from the candidate."""


def split_user(captured: Captured, shared: Shared) -> tuple[Program, list[int]]:
    """A program that has the user's inputs apart.

    Args:
        captured: a method, cleaned and merged, its lookups not in place yet.
        shared: what requests give once.

    Returns:
        The program; its inputs are those of the batch of candidates, then some of those of the
        batch of users, by their positions in it, and last the user of each row [B].

    Raises:
        CannotShare: says why.
    """
    program = captured.program.copy()
    inputs = program.inputs
    names = [name for name, _ in captured.names]
    users: list[int] = []
    of_user: dict[Node, Node] = {}
    last = inputs[-1]
    for position, (name, node) in enumerate(zip(names, inputs, strict=True)):
        if _owner(name) in shared:
            with program.graph.inserting_after(last):
                last = program.graph.placeholder(f"user_{node.name}")
            last.meta |= {"val": node.meta["val"], USER: True}
            of_user[node] = last
            users.append(position)
    with program.graph.inserting_after(last):
        index = program.graph.placeholder("user_of_row")
    index.meta["val"] = next(
        node.meta["val"]
        for node in program.nodes
        if is_tensor(node) and program.shape(node)[:1] == (captured.rows,)
    )
    _split_lookups(program, captured, shared, of_user)
    parted: list[Node] = []
    for node, own in of_user.items():
        mask = shared[_owner(names[inputs.index(node)])]
        if mask is None or mask.all():
            node.replace_all_uses_with(own)
        else:
            parted.append(node)
    clean(program)
    if not all(is_call(one, look_up, aten.sym_size.int) for node in parted for one in node.users):
        message = "something beside lookups reads an input of which some is shared"
        raise CannotShare(message)
    _Sides(program, captured.rows, index).run()
    clean(program)
    return program, users


def _owner(name: str) -> str:
    return next((name.removesuffix(one) for one in SUFFIXES if name.endswith(one)), name)


def _split_lookups(
    program: Program, captured: Captured, shared: Shared, of_user: Mapping[Node, Node]
) -> None:
    """Look up the user's features and the candidate's apart, where a collection has both.

    Raises:
        CannotShare: that cannot be told of its tensors.
    """
    names = dict(zip(program.inputs, (name for name, _ in captured.names), strict=False))
    for node in program.nodes:
        owners = [_owner(names[one]) for one in _inputs_of(node, names)]
        if len(owners) > 1 and 0 < sum(owner in shared for owner in owners) < len(owners):
            message = "a collection looks up several inputs, some of them shared"
            raise CannotShare(message)
        mask = shared.get(owners[0]) if len(owners) == 1 else None
        if mask is None or mask.all():
            continue
        site = captured.sites[node.args[3]]
        if not site.is_pooled:
            message = "a collection gives sequences of features of which some are shared"
            raise CannotShare(message)
        with program.before(node):
            found = _apart(program, node, site, mask, of_user)
        for reader in list(node.users):
            program.replace(reader, found)
        program.graph.erase_node(node)


def _apart(
    program: Program, node: Node, site: Site, mask: Mask, of_user: Mapping[Node, Node]
) -> Node:
    """What a site gives [B, D], of each side's features what that side looks up."""
    values, lengths, weights, *rest = node.args
    if any(one not in of_user for one in (values, lengths, *([weights] if weights else []))):
        message = "a collection looks up what is made of an input of which some is shared"
        raise CannotShare(message)
    user = program.emit(look_up, of_user[values], of_user[lengths], of_user.get(weights), *rest)
    item = program.emit(look_up, values, lengths, weights, *rest)
    sides = [program.emit(_first, item), program.emit(_first, user)]
    ends = list(accumulate(site.widths, initial=0))
    runs: list[tuple[bool, int, int]] = []
    for source, (start, stop) in zip(site.sources, pairwise(ends), strict=True):
        is_user = bool(mask[source])
        begin = runs.pop()[1] if runs and runs[-1][0] == is_user else start
        runs.append((is_user, begin, stop))
    pieces = [
        program.emit(aten.slice.Tensor, sides[is_user], 1, start, stop)
        for is_user, start, stop in runs
    ]
    return program.emit(aten.cat.default, pieces, 1)


def _inputs_of(node: Node, names: Mapping[Node, str]) -> list[Node]:
    """The inputs whose lists a lookup is given, where it is given them as they are."""
    if not is_call(node, look_up):
        return []
    lengths = node.args[1]
    if lengths in names:
        return [lengths]
    is_cat = is_call(lengths, aten.cat.default)
    return list(lengths.args[0]) if is_cat and all(one in names for one in lengths.args[0]) else []


def _first(found: Sequence[torch.Tensor]) -> torch.Tensor:
    return found[0]


def rows_of(user: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """What each row's user has [B, ...], of [U, ...]; of one user it is a view."""
    if user.shape[0] == 1:
        return user.expand(index.shape[0], *user.shape[1:])
    return user.index_select(0, index)


class _Sides:
    """The walk that gives every node its side."""

    def __init__(self, program: Program, rows: Any, index: Node) -> None:
        self._program, self._rows, self._index = program, rows, index
        self._users: set[Node] = set()
        self._items: set[Node] = set()
        self._known: dict[tuple[Node, bool], Node] = {}

    def run(self) -> None:
        """Change the program."""
        program = self._program
        for node in program.nodes:
            if node.op == "placeholder":
                (self._users if node.meta.get(USER) else self._items).add(node)
            elif node.op == "call_function":
                self._enter(node)
            elif node.op == "output":
                node.args = (tuple(self._item(one, node) for one in node.args[0]),)
        for node in program.nodes:
            if node in self._users:
                node.meta[USER] = True

    def _enter(self, node: Node) -> None:
        program, given = self._program, node.all_input_nodes
        if not is_tensor(node) and not isinstance(node.meta.get("val"), list | tuple):
            # A size has the side of who reads it.
            return
        is_user = any(one in self._users for one in given)
        is_item = any(one in self._items for one in given)
        if not is_user and not is_item:
            return
        if is_user and not is_item:
            if mixes(program, node, self._rows, given):
                message = f"{node.name} computes across users what it does across rows"
                raise CannotShare(message)
            node.args, node.kwargs = self._in(node, of_user=True)
            self._users.add(node)
            return
        self._items.add(node)
        if self._split(node):
            return
        node.args, node.kwargs = self._in(node, of_user=False)

    def _in(self, node: Node, *, of_user: bool) -> Any:
        def turned(one: Node) -> Node:
            return self._form(one, node, of_user=of_user)

        return torch.fx.map_arg(node.args, turned), torch.fx.map_arg(node.kwargs, turned)

    def _item(self, one: Node, before: Node) -> Node:
        return self._form(one, before, of_user=False)

    def _form(self, one: Node, before: Node, *, of_user: bool) -> Node:
        """A node as the user's nodes read it, or as the candidate's do."""
        program = self._program
        if one.op == "get_attr":
            return one
        key = (one, of_user)
        if key in self._known:
            return self._known[key]
        if one in self._users:
            made = one if of_user else self._repeated(one, before)
        elif one in self._items:
            if of_user:
                message = f"a user's node reads {one.name}, which is a candidate's"
                raise CannotShare(message)
            made = one
        elif isinstance(one.meta.get("val"), torch.SymInt) and is_call(one, aten.sym_size.int):
            made = self._size(one, before, of_user=of_user)
        else:
            with program.before(before):
                made = program.graph.node_copy(
                    one, lambda inner: self._form(inner, before, of_user=of_user)
                )
            if of_user and is_tensor(made):
                self._users.add(made)
        self._known[key] = made
        return made

    def _size(self, one: Node, before: Node, *, of_user: bool) -> Node:
        source: Any = one.args[0]
        if source in (self._users if of_user else self._items):
            return one
        if self._program.size(one.meta["val"]) != self._rows:
            message = f"the size {one.name} is neither's"
            raise CannotShare(message)
        at, per_row = self._of_users() if of_user else (self._index, 1)
        with self._program.before(before):
            made = self._program.graph.call_function(aten.sym_size.int, (at, 0))
            if per_row > 1:
                made = self._program.graph.call_function(operator.floordiv, (made, per_row))
        made.meta["val"] = one.meta["val"]
        return made

    def _of_users(self) -> tuple[Node, int]:
        """What tells how many users there are, and how many elements of its first axis each has."""
        for node in self._program.nodes:
            if node in self._users and is_tensor(node) and node.meta["val"].dim():
                per_row = self._program.shape(node)[0] / self._rows
                if getattr(per_row, "is_Integer", False):
                    return node, int(per_row)
        message = "nothing tells how many users there are"
        raise CannotShare(message)

    def _has_rows(self, node: Node) -> bool:
        return bool(self._program.shape(node)[:1] == (self._rows,))

    def _repeated(self, one: Node, before: Node) -> Node:
        if not is_tensor(one) or not self._has_rows(one):
            message = f"a candidate's node reads {one.name}, which has no row a user"
            raise CannotShare(message)
        with self._program.before(before):
            made = self._program.graph.call_function(rows_of, (one, self._index))
        made.meta["val"] = one.meta["val"]
        self._items.add(made)
        return made

    def _split(self, node: Node) -> bool:
        """Give each side its half of a layer over both."""
        program = self._program
        weights = weights_of(node)
        pieces = pieces_of(node.args[0]) if weights else None
        if not weights or not pieces:
            return False
        sides: tuple[list[Any], list[Any]] = ([], [])
        for piece, column in zip(pieces, columns_of(program, pieces, weights), strict=True):
            whole = piece.args[0] if is_call(piece, rows_of) else piece
            sides[whole in self._users].append((whole, column))
        if not all(sides):
            return False
        halves = []
        for is_user, terms in enumerate(sides):
            with program.before(node):
                sources = [source for source, _ in terms]
                x = sources[0] if len(sources) == 1 else program.emit(aten.cat.default, sources, -1)
                bias = weights.bias if is_user else torch.zeros_like(weights.bias)
                weight = torch.cat([part for _, part in terms], dim=1).contiguous()
                own = weights._replace(weight=weight, bias=bias)
                half = emit_layer(program, x, own, None)
            (self._users if is_user else self._items).update({x, half})
            halves.append(half)
        with program.before(node):
            total = program.graph.call_function(join, (*halves, self._index))
        total.meta |= {"val": node.meta["val"], ACTIVATION: node.meta.get(ACTIVATION)}
        self._items.add(total)
        self._known[node, False] = total
        node.replace_all_uses_with(total)
        return True
