"""What notebooks draw: the stages' files shaped into arrays, tables and captions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from medshift.repro.pipeline import Views, domains_of, folder_set, heads_of, load_autoencoder, translator
from medshift.repro.run import Run
from medshift.repro.stages import Stage

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from torch import Tensor

    from medshift.data.volume import HeadVolume

Trips = dict[str, dict[str, tuple["Tensor", "Tensor"]]]


def footer(run: Run) -> str:
    """The line under every figure that says what the data is."""
    from medshift.data.domains import STAND_IN

    if run.source == "user's folders":
        return "your own images"
    kind = {"cranium": "head CT of invesalius-examples", "phantom": "procedural phantom", "user": "your own CT"}
    return f"{kind[run.source]}: {STAND_IN}"


def head(run: Run, number: int) -> HeadVolume:
    """A head of the run's source."""
    return heads_of(run.profile.source, run.profile.size)[number]


def _acquired(volumes: dict[bool, HeadVolume], poses: Tensor, size: int, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Domain -> (one exposure, free of noise) of the views; ``volumes`` by whether the domain is synthetic."""
    import torch

    from medshift.data.acquisition import acquire
    from medshift.data.domains import DOMAINS, is_synthetic
    from medshift.data.projection import level_for, project

    pitch = float(poses[:, 5].min()) / size
    projections = {kind: project(level_for(volume, pitch), poses, size) for kind, volume in volumes.items()}
    pictures = {}
    for domain in DOMAINS:
        p = projections[is_synthetic(domain)]
        arguments = (p.line_integrals, p.open_field, poses[:, 5], domain)
        noisy = acquire(*arguments, generator=torch.Generator().manual_seed(seed))
        pictures[domain] = (noisy, acquire(*arguments, generator=None, clean=True))
    return pictures


def named_views(run: Run) -> dict[str, tuple[Tensor, Tensor]]:
    """Domain -> (one exposure, free of noise) of the named radiographic projections of head 0."""
    import torch

    from medshift.data.simulator import simulator_volume
    from medshift.data.views import NAMED_VIEWS, named_view

    volume = head(run, 0)
    poses = torch.cat([named_view(name) for name in NAMED_VIEWS])
    volumes = {False: volume, True: simulator_volume(volume)}
    return _acquired(volumes, poses, max(run.profile.size, 64), run.parameters.seed)


def lateral_views(run: Run, each: int = 4) -> dict[str, Tensor]:
    """Split -> lateral views of its first heads in the domain real-exposure."""
    import torch

    from medshift.data.acquisition import acquire
    from medshift.data.heads import HeadSplit
    from medshift.data.projection import level_for, project
    from medshift.data.views import named_view

    split, size, pose = HeadSplit(**run.profile.heads.model_dump()), max(run.profile.size, 64), named_view("lateral")
    pictures = {}
    for name in ("train", "validation", "test"):
        images = []
        for number in split.numbers(name)[:each]:
            p = project(level_for(head(run, number), float(pose[0, 5]) / size), pose, size)
            generator = torch.Generator().manual_seed(number)
            images.append(acquire(p.line_integrals, p.open_field, pose[:, 5], "real-exposure", generator=generator))
        pictures[name] = torch.cat(images)
    return pictures


def folder_images(run: Run, each: int = 6) -> dict[str, Tensor]:
    """The first images of each of the user's domains."""
    found = folder_set(run.parameters.data, run.profile.size)
    return {domain: found.images(domain, "train", limit=each) for domain in found.domains}


def view_list(views: Views) -> pd.DataFrame:
    """Every view, one row each."""
    import pandas as pd

    return pd.read_csv(views.folder / "views.csv", keep_default_na=False)


def view_table(views: Views) -> pd.DataFrame:
    """Views by role, with how near the nearest training view of another role comes."""
    import numpy as np
    import pandas as pd

    from medshift.data.domains import poses_of
    from medshift.data.views import directions, neighbours

    table = view_list(views)
    forbidden = len(neighbours(poses_of(table), table["role"].tolist()))
    train = table[table["role"].str.startswith("train:")]
    trained = directions(train["azimuth"].to_numpy(), train["elevation"].to_numpy())
    rows = []
    for role, group in table.groupby("role", sort=False):
        cosine = directions(group["azimuth"].to_numpy(), group["elevation"].to_numpy()) @ trained.T
        if str(role).startswith("train:"):
            cosine[:, (train["role"] == role).to_numpy()] = -1
        angle = np.rad2deg(np.arccos(np.clip(cosine.max(axis=1), -1, 1)))
        row = {
            "role": role,
            "views": len(group),
            "heads": group["head"].nunique(),
            "regions": group["region"].nunique(),
        }
        rows.append(
            row | {"nearest training direction, median [deg]": float(np.median(angle)), "least [deg]": angle.min()}
        )
    return pd.DataFrame(rows).assign(**{"forbidden neighbours": forbidden})


def history(stage: Stage) -> pd.DataFrame:
    """Losses by step; where a resumed run repeated steps, the last row of each counts."""
    import pandas as pd

    return (
        pd.read_json(stage.folder / "history.jsonl", lines=True)
        .drop_duplicates("step", keep="last")
        .sort_values("step")
    )


def _validation_images(run: Run, views: Views, each: int) -> dict[str, Tensor]:
    from medshift.data.domains import DOMAINS, EvaluationSet

    if views.rendered:
        some = EvaluationSet(views.folder, "validation", limit=each)
        return {domain: some.exposure(domain, 0) for domain in DOMAINS}
    found = folder_set(views.data, run.profile.size)
    return {domain: found.images(domain, "val", limit=each) for domain in found.domains}


def round_trips(run: Run, views: Views, autoencoder: Stage, each: int = 32) -> Trips:
    """Codec -> domain -> (validation images, their round trips)."""
    import torch

    from medshift.codec import PatchCodec

    images = _validation_images(run, views, each)
    codecs = {"PatchCodec(2)": PatchCodec(2), "KLCodec, trained here": load_autoencoder(autoencoder)}
    trips: Trips = {}
    with torch.no_grad():
        for name, codec in codecs.items():
            codec.fit(torch.cat(list(images.values())))
            trips[name] = {
                d: (x, codec.decode(codec.encode(x), size=(x.shape[-2], x.shape[-1]))) for d, x in images.items()
            }
    return trips


def round_trip_table(trips: Trips) -> pd.DataFrame:
    """PSNR and SSIM of the round trip, and the share of the last octave's power that it keeps."""
    import pandas as pd

    from medshift.metrics.physics import radial_power_spectrum
    from medshift.metrics.structure import psnr, ssim

    rows = []
    for codec, by_domain in trips.items():
        for domain, (image, back) in by_domain.items():
            frequency, before = radial_power_spectrum(image)
            after = radial_power_spectrum(back)[1]
            last = frequency >= 0.25
            row = {"codec": codec, "domain": domain, "PSNR [dB]": float(psnr(back, image).clamp(max=100).mean())}
            row |= {"SSIM": float(ssim(back, image).mean())}
            rows.append(
                row | {"last octave kept": float(after[:, last].sum() / before[:, last].sum()), "n": len(image)}
            )
    return pd.DataFrame(rows)


def network_summary(network: Stage) -> pd.DataFrame:
    """Size, steps and time of a training."""
    import pandas as pd

    from medshift.flow_training import load_flow

    flow, rows = load_flow(network.folder), history(network)
    values = {
        "parameters": f"{sum(p.numel() for p in flow.network.parameters()) / 1e6:.2f} M",
        "steps": flow.step,
        "images seen": int(rows["images"].iloc[-1]),
        "median seconds a step": f"{rows['seconds'].median():.3f}",
        "loss, mean of the last twentieth": f"{rows['network'].iloc[-max(1, len(rows) // 20) :].mean():.4f}",
        "weights' SHA-256": flow.sha256[:16],
    }
    return pd.DataFrame({"": list(values), "value": [str(v) for v in values.values()]})


def translation_matrix(run: Run, views: Views, network: Stage, tau: float) -> tuple[list[list[Tensor]], list[str]]:
    """One validation view: rows are source domains, columns the source and its translation to every domain."""
    import torch

    model, names = translator(run, network), domains_of(run)
    images = _validation_images(run, views, 1)
    rows = []
    for source in names:
        copies = images[source].expand(len(names), -1, -1, -1).to(run.device)
        targets = torch.arange(len(names), device=run.device)
        outputs = model.translate(copies, source, targets, tau=tau).cpu()
        rows.append([images[source][0], *outputs])
    return rows, list(names)


def _read(study: Stage, name: str) -> pd.DataFrame:
    import pandas as pd

    return pd.read_csv(study.folder / f"{name}.csv", keep_default_na=False)


def headline_table(study: Stage) -> pd.DataFrame:
    """Headroom by pair, tier and solver, at the tau chosen on validation heads."""
    import pandas as pd

    from medshift.evaluate import FAILURE_DB, TWIN, headroom

    floors, rows = _read(study, "floors"), []
    for (source, target, solver, role), method in _read(study, "headline").groupby(
        ["source", "target", "solver", "role"], sort=False
    ):
        chosen = floors[(floors["source"] == source) & (floors["role"] == role)]
        interval, best = headroom(method, chosen)
        means = chosen.groupby("method")["psnr_clean"].mean()
        rows.append(
            {
                "pair": f"{source} → {target}",
                "tier": role,
                "solver": solver,
                "τ": f"{method['tau'].iloc[0]:g}",
                "PSNR [dB]": method["psnr_clean"].mean(),
                "best floor": f"{best}, {means[best]:.2f} dB",
                "noise twin [dB]": means[TWIN],
                "headroom [95 %]": str(interval),
                "views < 20 dB": float((method["psnr_clean"] < FAILURE_DB).mean()),
                "high-pass / target": float(method["high_pass"].mean() / method["high_pass_target"].mean()),
                "n": len(method),
                "heads": method["head"].nunique(),
            }
        )
    return pd.DataFrame(rows)


def methods_table(study: Stage) -> pd.DataFrame:
    """Every method's PSNR and SSIM to the noise-free truth, with intervals, by pair and tier."""
    import pandas as pd

    from medshift.evaluate import summary

    headline = _read(study, "headline")
    headline["method"] = headline["method"] + ", " + headline["solver"] + ", τ=" + headline["tau"].map("{:g}".format)
    table = summary(pd.concat([headline, _read(study, "floors")]), ["source", "target", "role", "method"])
    for metric, digits in (("psnr_clean", 2), ("ssim_clean", 3)):
        columns = (table[metric], table[f"{metric}_low"], table[f"{metric}_high"])
        table[metric] = [f"{m:.{digits}f} [{a:.{digits}f}, {b:.{digits}f}]" for m, a, b in zip(*columns, strict=True)]
    kept = ["source", "target", "role", "method", "psnr_clean", "ssim_clean", "below_20_db", "high_pass_ratio", "n"]
    names = {"role": "tier", "psnr_clean": "PSNR [dB]", "ssim_clean": "SSIM", "below_20_db": "views < 20 dB"}
    return table[kept].rename(columns={**names, "high_pass_ratio": "high-pass / target"})


def tradeoff_figures(run: Run, study: Stage) -> Iterator[tuple[str, str, Figure]]:
    """Name, caption and figure of the trade-off on every tier, for every pair; on a user's folders, one figure."""
    import pandas as pd

    from medshift.evaluate import summary
    from medshift.tradeoff import HEUN, spread_over_views
    from medshift.viz.tradeoff import fig_tradeoff

    sweep = _read(study, "sweep")
    if "role" not in sweep:
        table, pair = spread_over_views(sweep), f"{sweep['source'].iloc[0]} → {sweep['target'].iloc[0]}"
        note = f"n = {sweep['view'].nunique()} test images, 95 % intervals over images; {footer(run)}"
        yield "tradeoff", pair, fig_tradeoff(table, pd.DataFrame({"method": []}), title=pair, footer=note)
        return
    chosen = json.loads((study.folder / "chosen.json").read_text())
    floors = summary(_read(study, "floors"), ["source", "target", "role", "method"])
    for (source, target, role), rows in sweep.groupby(["source", "target", "role"], sort=False):
        here = floors[(floors["source"] == source) & (floors["role"] == role)]
        table = summary(rows, ["solver", "tau"])
        tau = chosen[f"{source} > {target} | {HEUN}"]
        n, heads = int(table["n"].iloc[0]), int(table["heads"].iloc[0])
        note = f"curves: n = {n} views of {heads} heads; lines: n = {int(here['n'].iloc[0])}; {footer(run)}"
        figure = fig_tradeoff(table, here, title=f"{role}: {source} → {target}", chosen=tau, footer=note)
        caption = f"Agreement with source and truth against τ on {role}, {source} to {target}; {note}."
        yield f"tradeoff_{role}_{source}", caption, figure


def panel_figures(run: Run, study: Stage) -> Iterator[tuple[str, str, Figure]]:
    """Name, caption and figure of the panels source | tau ... | truth | twin."""
    from safetensors.torch import load_file

    from medshift.viz.images import fig_grid

    for path in sorted(Path(study.folder).glob("panels-*.safetensors")):
        source, images = path.stem.removeprefix("panels-"), load_file(path)
        taus = sorted((float(name[4:]), name) for name in images if name.startswith("tau"))
        columns = ["source", *(name for _, name in taus), *(n for n in ("truth", "exposure", "twin") if n in images)]
        titles = [c.replace("tau ", "τ = ") for c in columns]
        titles = [{"truth": "truth,\nnoise-free", "exposure": "truth", "twin": "noise twin"}.get(t, t) for t in titles]
        rows = [[images[c][i] for c in columns] for i in range(len(images["source"]))]
        names = [f"view {i + 1}" for i in range(len(rows))]
        figure = fig_grid(rows, titles, names, footer=footer(run), side=0.8)
        yield (
            f"panel_{source}",
            f"Translations from {source} against τ, Heun on the refined grid, unseen heads.",
            figure,
        )


def spectra_figures(run: Run, study: Stage) -> Iterator[tuple[str, str, Figure]]:
    """Name, caption and figure of the power spectra on unseen heads."""
    from medshift.data.views import FIELD_OF_VIEW
    from medshift.viz.tradeoff import fig_spectra

    spectra = _read(study, "spectra")
    pitch = sum(FIELD_OF_VIEW) / 2 / run.profile.size
    for (source, target), rows in spectra.groupby(["source", "target"], sort=False):
        curves = {str(name): g["power"].to_numpy() for name, g in rows.groupby("image", sort=False)}
        frequency = rows[rows["image"] == rows["image"].iloc[0]]["frequency"].to_numpy()
        title = f"T2: {source} → {target}"
        figure = fig_spectra(frequency, curves, pixel_mm=pitch, title=title, footer=footer(run))
        yield (
            f"spectra_{source}",
            f"Radial power spectra on unseen heads at the chosen τ, {source} to {target}.",
            figure,
        )
