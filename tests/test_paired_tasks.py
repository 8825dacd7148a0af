"""Paired tasks: both images are of one view, exposures repeat, masks are exact, and both halves are mirrored as one."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor

from medshift.data.acquisition import DITHER, SHUTTER
from medshift.data.domains import EvaluationSet, ViewCounts, plan_views, render
from medshift.data.dual_energy import dual_energy
from medshift.data.heads import Heads, HeadSplit
from medshift.data.paired_tasks import TASKS, TaskViews
from medshift.data.projection import load_projections
from medshift.errors import ParameterError

NAMES = tuple(TASKS)
COUNTS = ViewCounts(train=6, validation=1, T0=1, T1=1, T2=6, T3=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six views of role ``paired`` and of T2, of two coarse heads."""
    plan = plan_views(COUNTS, HeadSplit(2, 1, 2), 0)
    parts = [plan[plan["role"] == "train:synthetic-high"].assign(role="paired"), plan[plan["role"] == "T2"]]
    table = pd.concat(parts, ignore_index=True)
    table["head"] = table["head"] % 2  # fewer heads to make
    made = tmp_path_factory.mktemp("paired")
    render(table, Heads("phantom", phantom_spacing_mm=4.0), 32, made)
    return made


def edges(images: Tensor) -> Tensor:
    """Lengths of the gradient, (N, D), standardised."""
    across, down = images.diff(dim=-1)[..., :-1, :], images.diff(dim=-2)[..., :-1]
    flat = (across**2 + down**2).sqrt().flatten(1).double()
    return (flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True)


@pytest.mark.parametrize("task", NAMES)
def test_source_and_target_show_the_same_view(folder: Path, task: str) -> None:
    """Edges are where edges are: more than in other views, and more than in its mirror image."""
    source, target = TaskViews(task, folder, "paired").clean()
    like = edges(source) @ edges(target).T / edges(source).shape[1]
    own, others = like.diagonal(), like[~torch.eye(len(like), dtype=torch.bool)]
    assert own.min() > 0.15 and own.mean() > others.mean() + 0.05
    if not TASKS[task].binary:  # a mask has few edges; that it is the view's own, another test says
        assert own.mean() > (edges(source) * edges(target.flip(-1))).mean(1).mean() + 0.05
        assert (like.argmax(1) == torch.arange(len(like))).float().mean() > 0.8


@pytest.mark.parametrize("task", NAMES)
def test_exposures_repeat_and_depend_on_no_neighbour(folder: Path, task: str) -> None:
    every, few = TaskViews(task, folder, "T2"), TaskViews(task, folder, "T2", limit=2)
    assert (len(every), len(few)) == (6, 2)
    first, again, other = every.exposure(3), every.exposure(3), every.exposure(4)
    for k, part in enumerate(few.exposure(3)):
        assert torch.equal(first[k], again[k]) and torch.equal(part, first[k][:2])
        assert torch.equal(first[k], other[k]) == (TASKS[task].binary and k == 1)
    noise = [(a - b)[0] for a, b in zip(first, every.clean(), strict=True)]
    assert not torch.equal(*noise)  # source and target have noise of their own


def test_the_modalitys_exposures_are_those_of_the_other_notebooks(folder: Path) -> None:
    """Where the blades of both volumes agree; elsewhere they differ by a pixel or two."""
    views, known = TaskViews("modality", folder, "T2"), EvaluationSet(folder, "T2")
    apart = (views.open_field != known.open_field).flatten(1).sum(1)
    same = apart == 0
    assert same.any() and apart.max() <= 3
    for number in (0, 7):
        source, target = views.exposure(number)
        assert torch.equal(source, known.exposure("synthetic-high", number))
        assert torch.equal(target[same], known.exposure("real-exposure", number)[same])
    for image, domain in zip(views.clean(), ("synthetic-high", "real-exposure"), strict=True):
        assert torch.equal(image[same], known.clean(domain)[same])
    source, _ = TaskViews("mask", folder, "T2").exposure(2)
    assert torch.equal(source[same], known.exposure("real-normal", 2)[same])
    assert torch.equal(views.landmarks, known.landmarks)


def test_the_mask_is_bone_of_more_than_15_mm_in_the_open_field(folder: Path) -> None:
    views = TaskViews("mask", folder, "paired")
    held = load_projections(folder / "paired.real.safetensors")
    thick = held.line_integrals[:, 1:].float() > 15
    for _, mask in (views.exposure(0), views.clean()):
        assert torch.equal(mask == 1, thick & held.open_field) and torch.equal(mask == -1, ~(mask == 1))
        assert (mask[~held.open_field] == -1).all()
    assert 0.02 < float((thick & held.open_field).float().mean()) < 0.5 and (thick & ~held.open_field).any()


def test_the_two_images_of_dual_energy_are_one_acquisition(folder: Path) -> None:
    views = TaskViews("dual-energy", folder, "T2")
    held = load_projections(folder / "T2.real.safetensors")
    rays = held.line_integrals.float(), held.open_field, held.poses[:, 5]
    clean = [image.where(held.open_field, SHUTTER) for image in dual_energy(*rays, generator=None)]
    for image, expected in zip(views.clean(), clean, strict=True):
        assert torch.equal(image, expected)
    inside = held.open_field & (rays[0].sum(1, keepdim=True) > 60) & (clean[0].abs() < 0.5) & (clean[1].abs() < 0.5)
    soft, bone = ((a - b)[inside] for a, b in zip(views.exposure(0), clean, strict=True))
    assert float(torch.corrcoef(torch.stack([soft, bone]))[0, 1]) < -0.5
    behind = views.exposure(0)[0][~held.open_field] - SHUTTER
    assert float(behind.std()) == pytest.approx(DITHER, rel=0.2)


@pytest.mark.parametrize("task", NAMES)
def test_draws_repeat_and_mirror_both_halves_as_one(folder: Path, task: str) -> None:
    views, n = TaskViews(task, folder, "paired"), 24
    drawn, again, other = (views.draw(n, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    same = torch.Generator().manual_seed(1)
    index, flip = torch.randint(len(views), (n,), generator=same), torch.rand(n, generator=same) < 0.5
    assert flip.any() and not flip.all() and len(index.unique()) > 3
    for k, truth in enumerate(views.clean()):
        assert torch.equal(drawn[k], again[k]) and not torch.equal(drawn[k], other[k])
        plain = truth[index]
        right = torch.where(flip.view(-1, 1, 1, 1), plain.flip(-1), plain)
        error = [(drawn[k] - image).square().flatten(1).mean(1) for image in (right, right.flip(-1))]
        assert (error[0] < error[1]).all()
        if TASKS[task].binary and k:
            assert torch.equal(drawn[k], right)
        else:
            twin = [i for i in range(n) if i and index[i] == index[0] and flip[i] == flip[0]]
            assert all(not torch.equal(drawn[k][i], drawn[k][0]) for i in twin)  # noise is fresh


@pytest.mark.parametrize("task", NAMES)
def test_clean_images_are_free_of_noise(folder: Path, task: str) -> None:
    views = TaskViews(task, folder, "T2")
    for k, (one, again) in enumerate(zip(views.clean(), views.clean(), strict=True)):
        assert torch.equal(one, again)
        if not (TASKS[task].binary and k):
            kind = "simulated" if task == "modality" and k == 0 else "real"
            assert (one[~views.held[kind].open_field] == SHUTTER).all()  # not even dither
        exposures = torch.stack([views.exposure(number)[k] for number in range(4)])
        single, mean = ((part - one).square().mean().sqrt() for part in (exposures[0], exposures.mean(0)))
        assert mean < 0.75 * single or single == 0


def test_what_does_not_exist_is_refused(folder: Path) -> None:
    with pytest.raises(ParameterError, match="modality, mask, dual-energy"):
        TaskViews("colour", folder, "T2")
    with pytest.raises(ParameterError, match="no views of 'T3'"):
        TaskViews("mask", folder, "T3")
    views = TaskViews("mask", folder, "T2", limit=1)
    for number in (-1, 8):
        with pytest.raises(ParameterError, match="0 to 7"):
            views.exposure(number)
