"""04(g): objects that no training view has: the contrast a translation gives them, and how well they are detected."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file
from torch import Tensor

from medshift.data.domains import INSERTS, EvaluationSet
from medshift.metrics.objects import FAINTEST, SMOOTHINGS, contrast_recovery, hotelling_dprime, template_channels
from medshift.results.findings import left_out, measured, over_heads
from medshift.stages.objects import ABSENT, PRESENT
from medshift.viz.failures import ObjectRow, fig_objects

WRONG = 0.2  # a contrast off by more than this share is wrong
FIGURE = "04_objects"
TRANSLATED, EXPOSED = "translation", "target's own exposures"


def _translated(objects: Path) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in load_file(objects / "images.safetensors").items()}


def object_scores(views: Path, untouched: Path, objects: Path, target: str) -> pd.DataFrame:
    """One row a view of T3: contrast of the object over the truth's, mean over exposures.

    Columns `TRANSLATED`, and `EXPOSED` of as many exposures of the target itself, which is what noise alone makes of a
    right contrast. There the exposures with and without the object have noise of their own, as two translations have.
    """
    images = _translated(objects)
    there, gone = EvaluationSet(views, "T3"), EvaluationSet(untouched, "T3")
    truth = there.clean(target), gone.clean(target)
    mask, k = there.open_field & gone.open_field, len(images[PRESENT])
    exposed = [(there.exposure(target, i), gone.exposure(target, k + i)) for i in range(k)]
    table = there.table[["head", "region", "insert"]].assign(view=range(len(there)))
    for name, pairs in (
        (TRANSLATED, zip(images[PRESENT], images[ABSENT], strict=True)),
        (EXPOSED, exposed),
    ):
        shares = [contrast_recovery(present, absent, *truth, mask) for present, absent in pairs]
        table[name] = torch.stack(shares).mean(dim=0).numpy()
    return table


def object_table(views: Path, untouched: Path, objects: Path, target: str) -> pd.DataFrame:
    """By kind of object: contrast over the truth's with its interval over heads, and the share of views it is wrong on.

    Beside both what as many of the target's own exposures have, since noise alone spreads a right contrast.
    """
    scores = object_scores(views, untouched, objects, target)
    rows = []
    for kind in (*INSERTS, "all"):
        here = scores if kind == "all" else scores[scores["insert"] == kind]
        here = here[here[TRANSLATED].notna()]
        if len(here):
            row: dict[str, Any] = {"object": kind}
            for name in (TRANSLATED, EXPOSED):
                # One head gives no interval, and says so by giving none.
                several = here["head"].nunique() > 1
                row[f"contrast / truth, {name}"] = (
                    str(over_heads(here[name], here["head"])) if several else f"{here[name].mean():.2f}"
                )
                row[f"off by more than {WRONG:.0%}, {name}"] = float(((here[name] - 1).abs() > WRONG).mean())
            low, high = here[TRANSLATED].min(), here[TRANSLATED].max()
            rows.append(row | {"lowest": low, "highest": high, "n": len(here), "heads": here["head"].nunique()})
    return pd.DataFrame(rows)


def object_findings(views: Path, untouched: Path, objects: Path, target: str) -> list[dict[str, Any]]:
    """Contrast of objects that no training head has, over the truth's; how often it is wrong, and by noise alone."""
    scores = object_scores(views, untouched, objects, target)
    scores = scores[scores[TRANSLATED].notna()]
    wrong = {name: ((scores[name] - 1).abs() > WRONG).astype(float) for name in (TRANSLATED, EXPOSED)}
    share = f"share of views on which the contrast of an unseen object is off by more than {WRONG:.0%}"
    return [
        measured("insert_contrast", scores[TRANSLATED], scores["head"],
                 "contrast of unseen objects in translations over the truth's, 1 is right", figure=FIGURE, null=1.0),
        measured("insert_wrong", wrong[TRANSLATED], scores["head"], f"{share}, translations", figure=FIGURE),
        measured("insert_wrong_excess", wrong[TRANSLATED] - wrong[EXPOSED], scores["head"],
                 f"{share}, translations minus the target's own exposures", figure=FIGURE),
    ]  # fmt: skip


def crop_of(template: Tensor, side: int) -> tuple[slice, slice]:
    """Rows and columns of a square of ``side`` pixels inside an image about where a template (1,H,W) is strongest."""
    strength = template.squeeze(0).abs()
    row, column = divmod(int(strength.argmax()), strength.shape[1])
    places = []
    for centre, size in zip((row, column), strength.shape, strict=True):
        start = min(max(centre - side // 2, 0), max(size - side, 0))
        places.append(slice(start, start + side))
    return places[0], places[1]


def object_figure(
    views: Path, untouched: Path, objects: Path, pair: tuple[str, str], footer: str
) -> tuple[str, Figure]:
    """Caption and figure: about one object of each kind, what it adds to source, truth and translation."""
    images = _translated(objects)
    there, gone = EvaluationSet(views, "T3"), EvaluationSet(untouched, "T3")
    scores, rows = object_scores(views, untouched, objects, pair[1]), []
    added = {name: there.clean(name) - gone.clean(name) for name in pair}
    mean, source, truth = (
        (images[PRESENT] - images[ABSENT]).mean(dim=0),
        there.exposure(pair[0], 0),
        there.clean(pair[1]),
    )
    for kind in INSERTS:
        here = scores[(scores["insert"] == kind) & scores[TRANSLATED].notna()]
        if not len(here):
            continue
        # The view of the median contrast: an example neither of the best nor of the worst.
        i = int(here.sort_values(TRANSLATED)["view"].iloc[len(here) // 2])
        place = (slice(None), *crop_of(added[pair[1]][i], max(8, 2 * truth.shape[-1] // 5)))
        share = scores.loc[scores["view"] == i, TRANSLATED].iloc[0]
        row = [x[place] for x in (source[i], images[PRESENT][0, i], truth[i])]
        changes = [x[place] for x in (added[pair[0]][i], mean[i], added[pair[1]][i])]
        rows.append(ObjectRow(f"{kind}\n× {share:.2f}, n = {len(here)}", row, changes))
    titles = ("source", "translation", "truth", "added to\nsource", f"to translation,\nmean of {len(images[PRESENT])}",
              "to truth")  # fmt: skip
    n = f"n = {scores[TRANSLATED].notna().sum()} views of {scores['head'].nunique()} heads, one shown of each kind"
    figure = fig_objects(rows, titles, footer=f"{n}; {footer}")
    caption = (
        "Objects no training head has, cut out about each: images, and what the object adds to source, translation and "
        f"truth on one scale a row; ×: contrast over the truth's on the view shown, that of the median; {n}; {footer}."
    )
    return caption, figure


def dprime_table(views: Path, untouched: Path, objects: Path, target: str) -> pd.DataFrame:
    """d' of each object for a channelised Hotelling observer, in translations and in as many exposures of the truth.

    Intervals are by leaving out one head at a time, of the signed square, whose root is shown; none where what is left
    would be too few responses for the observer's covariance.
    """
    images = _translated(objects)
    there, gone = EvaluationSet(views, "T3"), EvaluationSet(untouched, "T3")
    # Views with and without the object share their seeds, and so the noise of an exposure: the observer, who assumes
    # independent noise, gets the first half of the exposures with the object and the second half without.
    half = len(images[PRESENT]) // 2
    sets = {
        "truth": (
            torch.stack([there.exposure(target, k) for k in range(half)]),
            torch.stack([gone.exposure(target, half + k) for k in range(half)]),
        ),
        "translation": (images[PRESENT][:half], images[ABSENT][half : 2 * half]),
    }
    template = there.clean(target) - gone.clean(target)
    seen = (template * there.open_field).abs().flatten(1).amax(dim=1) > FAINTEST
    rows = []
    for kind in INSERTS:
        index = np.flatnonzero((there.table["insert"] == kind).to_numpy() & seen.numpy())
        heads = there.table["head"].to_numpy()[index]
        row: dict[str, Any] = {"object": kind, "views": len(index), "heads": len(set(heads)), "exposures": half}
        if _enough(len(index), half):
            channels = template_channels(template[index], there.open_field[index])
            cut = {name: [x[:, index] for x in some] for name, some in sets.items()}
            row |= _observed(cut, channels, heads, half)
        rows.append(row)
    return pd.DataFrame(rows)


def _enough(views: int, exposures: int) -> bool:
    """Whether the observer's covariance can be had of so many responses."""
    return views * (2 * exposures - 2) >= len(SMOOTHINGS) + 2


def _observed(sets: dict[str, list[Tensor]], channels: Tensor, heads: np.ndarray, exposures: int) -> dict[str, Any]:
    """d' of both sets as text with intervals, and their ratio."""

    def squared(name: str, rows: np.ndarray) -> float:
        present, absent = (x[:, rows] for x in sets[name])
        found = hotelling_dprime(present, absent, channels[rows])
        return float((found * found.abs()).mean())  # d' of a noisy estimate averages as its signed square

    def without(name: str, head: Any) -> float:
        return squared(name, np.flatnonzero(heads != head))

    every, least = np.arange(len(heads)), min(int((heads != head).sum()) for head in set(heads))
    row: dict[str, Any] = {}
    for name in sets:
        value = squared(name, every)
        text = f"{_root(value):.2f}"
        if len(set(heads)) > 2 and _enough(least, exposures):
            found = left_out(partial(without, name), heads)
            text += f" [{_root(found.low):.2f}, {_root(found.high):.2f}]"
        row[f"d' in {name}"] = text
    ratio = _root(squared("translation", every)) / _root(squared("truth", every))
    return row | {"ratio": f"{ratio:.2f}"}


def _root(squared: float) -> float:
    """The root of a signed square, with its sign."""
    return float(np.sign(squared) * abs(squared) ** 0.5)
