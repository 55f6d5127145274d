"""What takes a line each to say of an archive, each safe to print."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, fields

from torchrec_archiver.report.words import MOST_NAMES, counted, joined, listed, number, plain, size
from torchrec_handler.archive.format import FORMAT_VERSION, DenseDtypes, Index, Signature
from torchrec_handler.archive.read import Call, Description

SHOWN = frozenset(
    {
        *("format_version", "versions", "signature", "tables", "extra_files", "sha256"),
        *("samples", "plan", "output_change", "kernels", "dense"),
    }
)
"""Fields of an index that have a place; others are shown as they are."""
MOST_CALLS = 8


def title(description: Description) -> str:
    """What the model is called, and its version."""
    model = description.model
    found = [model.get(key) for key in ("modelName", "modelVersion")]
    return (
        " ".join(plain(text) for text in found if isinstance(text, str))
        or "an archive without a manifest"
    )


def facts(description: Description) -> dict[str, str]:
    """What takes a line each, by name."""
    index = description.index
    signature = index.signature
    methods = [
        name if need_preproc else f"{name} (keyword arguments)"
        for name, need_preproc in signature.methods.items()
    ]
    outputs = [f"{name} {shape}" for name, shape in signature.outputs.items()]
    return {
        "model": title(description),
        "size": size(sum(description.sizes.values())),
        "methods": joined(methods),
        "outputs": f"{signature.result_metadata}: {joined(outputs) or 'not observed'}",
        "batched": _batched(signature),
        "samples": _samples(index, description.calls),
        "output change": _change(index),
        **({"dense.dtype auto": _auto(index.dense)} if index.dense else {}),
        "extra files": joined(list(index.extra_files)) or "none",
        "built with": joined([f"{name} {version}" for name, version in index.versions.items()]),
        "format": plain(index.format_version)
        + (f", read as {FORMAT_VERSION}; newer fields are not shown" if index.is_newer else ""),
        **_others(index),
    }


def _batched(signature: Signature) -> str:
    """How each method's requests share a forward call."""
    if signature.splits is None:
        return "seen at load"
    inputs = {entry.name: entry.features for entry in signature.inputs}
    said = []
    for qualname, batched in signature.methods.items():
        outputs = signature.splits.get(qualname)
        if not batched or outputs is None:
            said.append(f"{qualname} one request a call")
            continue
        # Where several counts fit, they cut alike, and rows come first.
        counts = {
            name: [part.counts[0] for part in parts if part.counts]
            for name, parts in outputs.items()
        }
        by_ids = [
            f"{name} by ids of {count.input}"
            + "".join(f" {inputs[count.input][at]}" for at in count.features if inputs[count.input])
            for name, found in counts.items()
            for count in found
            if count.input is not None
        ]
        said.append(f"{qualname} by rows" + "".join(f", {one}" for one in by_ids))
    return "; ".join(plain(one, 400) for one in said[:MOST_NAMES])


def _samples(index: Index, calls: Sequence[Call]) -> str:
    if not calls:
        return counted(index.samples, "call") if index.samples else "none"
    by_method: defaultdict[str, list[str]] = defaultdict(list)
    for call in calls[: MOST_NAMES * MOST_CALLS]:
        by_method[call.qualname].append(plain(call.rows))
    said = []
    for name, rows in by_method.items():
        more = ["more"] if len(rows) > MOST_CALLS else []
        unit = "row" if rows == ["1"] else "rows"
        said.append(f"{plain(name)} with {listed([*rows[:MOST_CALLS], *more])} {unit}")
    return f"{counted(len(calls), 'call')}: {'; '.join(said)}"


def _change(index: Index) -> str:
    if not index.output_change:
        return "not measured"
    return joined(
        [
            f"{name} not finite" if change is None else f"{name} at most {number(change)}"
            for name, change in index.output_change.items()
        ]
    )


def _auto(dense: DenseDtypes) -> str:
    instructions = joined(list(dense.instructions)) or "float32 alone"
    return (
        f"off from float32 by at most {number(dense.max_error)}, of {number(dense.allowed)} "
        f"allowed, by {number(dense.mean_error)} in the mean, on {dense.rows:,} rows; decided "
        f"on a processor with {instructions}"
    )


def _others(index: Index) -> dict[str, str]:
    """Fields that have no place here yet, but for those that say nothing."""
    return {
        known.name.replace("_", " "): plain(json.dumps(value, default=asdict), 400)
        for known in fields(index)
        if known.name not in SHOWN and (value := getattr(index, known.name))
    }
