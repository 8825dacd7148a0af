"""The stages of the companion, each one call: views, codec, autoencoder, network, trade-off.

Notebooks call these and draw (`medshift.repro.report` shapes what they draw); the work is the library's. Whoever calls
a stage again gets the finished one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medshift.repro.profiles import Profile, profile_folder, require_data
from medshift.repro.progress import Progress
from medshift.repro.run import Run
from medshift.repro.stages import Stage, run_stage

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from medshift.codec import KLCodec, PatchCodec
    from medshift.data.folders import FolderSet
    from medshift.data.heads import Heads
    from medshift.translate import MedShift, Translator

STATISTICS_IMAGES = 400  # per domain, for a codec's statistics and the floors' tone curves
TRAINING_MODULES = ("train", "schedules", "processes", "flow_training", "flow", "network", "codec", "checkpoint")


@dataclass(frozen=True)
class Views:
    """Where training and evaluation images come from."""

    stage: Stage
    rendered: bool
    data: str  # a user's folder, or empty

    @property
    def folder(self) -> Path:
        """Of the line integrals."""
        return self.stage.folder


@lru_cache(maxsize=2)
def heads_of(source: str, size: int) -> Heads:
    """The heads of a source; the phantom is built coarser for coarser pixels."""
    from medshift.data.heads import Heads

    return Heads(source, phantom_spacing_mm=1.5 if size > 32 else 3.0)


@lru_cache(maxsize=2)
def folder_set(root: str, size: int) -> FolderSet:
    """A user's own images at the profile's size, every file read once and checked."""
    from medshift.data.folders import read_folders

    found = read_folders(root, size=size)
    found.verify(progress=Progress("reading images"))
    return found


def domains_of(run: Run) -> tuple[str, ...]:
    """Names of the domains in label order."""
    from medshift.data.domains import DOMAINS

    data = run.parameters.data
    return folder_set(data, run.profile.size).domains if data else DOMAINS


def views(run: Run) -> Views:
    """Render every view of the profile, or check the user's folders."""
    profile = run.profile
    if profile.source == "folders":
        require_data(profile, run.parameters.data)
        run.source = "user's folders"
        stage = run_stage(
            run.runs,
            "folders",
            lambda folder: _list_folders(run, folder),
            arguments=_folder_arguments(run),
            modules=["data"],
        )
        views = Views(stage, rendered=False, data=run.parameters.data)
    else:
        heads = heads_of(profile.source, profile.size)
        run.source = heads.source
        arguments = {
            "source": heads.source,
            "head": heads.fingerprint(),
            "size": profile.size,
            "heads": profile.heads.model_dump(),
            "views": profile.views.model_dump(),
            "seed": run.parameters.seed,
        }
        stage = run_stage(
            run.runs, "views", lambda folder: _render(run, heads, folder), arguments=arguments, modules=["data"]
        )
        views = Views(stage, rendered=True, data="")
    run.stages["views"] = stage
    return views


def _render(run: Run, heads: Heads, folder: Path) -> None:
    from medshift.data.domains import ViewCounts, plan_views, render
    from medshift.data.heads import HeadSplit

    split = HeadSplit(**run.profile.heads.model_dump())
    table = plan_views(ViewCounts(**run.profile.views.model_dump()), split, run.parameters.seed)
    render(table, heads, run.profile.size, folder, device=run.device, progress=Progress("projecting views"))


def _folder_arguments(run: Run) -> dict[str, Any]:
    found = folder_set(run.parameters.data, run.profile.size)
    files = {
        domain: {split: [(p.name, p.stat().st_size) for p in paths] for split, paths in splits.items()}
        for domain, splits in found.files.items()
    }
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return {"files": digest, "counts": found.counts(), "size": run.profile.size, "seed": run.parameters.seed}


def _list_folders(run: Run, folder: Path) -> None:
    counts = folder_set(run.parameters.data, run.profile.size).counts()
    (folder / "counts.json").write_text(json.dumps(counts, indent=1))


def batches(run: Run, views: Views, n: int) -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
    """The ``batches`` of a training on these views: n images and labels a call."""
    if views.rendered:
        from medshift.data.domains import TrainingSet

        return TrainingSet(views.folder, n, device=run.device)
    found = folder_set(views.data, run.profile.size)

    def draw(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        import torch

        cpu = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
        images, labels = found.batch(n, cpu)
        return images.to(run.device), labels.to(run.device)

    return draw


def training_images(run: Run, views: Views) -> list[Tensor]:
    """Training images (N,1,H,W) of every domain on the CPU, for statistics and floors."""
    if views.rendered:
        from medshift.data.domains import DOMAINS, TrainingSet

        data = TrainingSet(views.folder, 1)
        return [data.images(domain, run.profile.views.train, seed=run.parameters.seed) for domain in DOMAINS]
    found = folder_set(views.data, run.profile.size)
    return [found.images(domain, "train", limit=STATISTICS_IMAGES) for domain in found.domains]


def codec(run: Run, views: Views) -> PatchCodec | KLCodec:
    """The profile's codec with its statistics: exact patches, the autoencoder trained here, or a local one."""
    import torch

    from medshift import checkpoint
    from medshift.codec import KLCodec, PatchCodec, from_description

    wanted = run.profile.codec
    inputs = [views.stage]
    # A relative folder is one of this checkout, from wherever a notebook runs.
    pretrained = profile_folder().parents[1] / wanted.folder
    if wanted.kind == "kl":
        inputs.append(autoencoder(run, views))

    def build(folder: Path) -> None:
        made: PatchCodec | KLCodec
        if wanted.kind == "patch":
            made = PatchCodec(wanted.factor)
        elif wanted.kind == "kl":
            made = load_autoencoder(inputs[1])
        else:
            made = KLCodec.from_local(pretrained)
        made.fit(part for images in training_images(run, views) for part in images[:STATISTICS_IMAGES].split(32))
        checkpoint.save(folder, 0, {"codec": made.tensors()}, {"codec": made.describe()})

    arguments = wanted.model_dump()
    if wanted.kind == "pretrained":
        weights = sorted(pretrained.glob("*.safetensors"))
        arguments["weights"] = [hashlib.sha256(path.read_bytes()).hexdigest() for path in weights]
    stage = run_stage(run.runs, "codec", build, arguments=arguments, inputs=inputs, modules=["codec", "data"])
    run.stages["codec"] = stage
    held = checkpoint.load(stage.folder)
    with torch.no_grad():
        return from_description(held.state["codec"], held.tensors["codec"]).to(run.device)


def autoencoder(run: Run, views: Views) -> Stage:
    """Train the profile's KL autoencoder."""
    profile, seed = run.profile.kl, run.parameters.seed

    def build(folder: Path) -> None:
        import torch

        from medshift.codec import KLCodec
        from medshift.codec_training import KLTraining
        from medshift.schedules import TrainConfig

        draw = batches(run, views, profile.batch)
        steps = max(1, profile.images // profile.batch)
        torch.manual_seed(seed)
        made = KLCodec.build(tuple(profile.widths), profile.channels).to(run.device)
        method = KLTraining(made, warmup=int(0.5 * steps))
        config = TrainConfig(steps=steps, seed=seed, checkpoint_every=max(1, steps // 4))
        _fit(method, draw, folder, config, views, "training the autoencoder")

    modules = [*TRAINING_MODULES, "codec_training", "data"]
    arguments = {**profile.model_dump(), "seed": seed}
    stage = run_stage(run.runs, "autoencoder", build, arguments=arguments, inputs=[views.stage], modules=modules)
    run.stages["autoencoder"] = stage
    return stage


def load_autoencoder(stage: Stage) -> KLCodec:
    """The autoencoder of its stage, statistics not yet measured."""
    from medshift.codec_training import load_codec

    return load_codec(stage.folder)


def network(run: Run, views: Views, codec: PatchCodec | KLCodec) -> Stage:
    """Train the velocity network."""
    profile, seed = run.profile.train, run.parameters.seed
    domains = domains_of(run)

    def build(folder: Path) -> None:
        import torch

        from medshift.flow_training import FlowMatching
        from medshift.network import build_network
        from medshift.schedules import TrainConfig

        torch.manual_seed(seed)
        net = build_network(profile.network, n_domains=len(domains), in_channels=codec.channels).to(run.device)
        method = FlowMatching(net, codec, domains, learning_rate=profile.learning_rate)
        steps = max(1, profile.images // profile.batch)
        config = TrainConfig(
            steps=steps, seed=seed, checkpoint_every=profile.checkpoint_every, accumulation=profile.accumulation
        )
        draw = batches(run, views, profile.batch // profile.accumulation)
        _fit(method, draw, folder, config, views, "training the network")

    modules = [*TRAINING_MODULES, "data"]
    arguments = {**profile.model_dump(), "seed": seed, "domains": list(domains)}
    inputs = [views.stage, run.stages["codec"]]
    stage = run_stage(run.runs, "network", build, arguments=arguments, inputs=inputs, modules=modules)
    run.stages["network"] = stage
    return stage


def _fit(method: Any, draw: Any, folder: Path, config: Any, views: Views, label: str) -> None:
    """Drive `medshift.train.train`, writing at most 2000 lines to history.jsonl; resumes with the checkpoints."""
    from medshift.train import train

    progress, history = Progress(label), folder / "history.jsonl"
    pending: list[Any] = []
    every = max(1, config.steps // 2000)
    for record in train(method, draw, folder=folder, config=config, data={"views": views.stage.key}):
        pending.append(record)
        last = record.step % config.checkpoint_every == 0 or record.step == config.steps
        if record.step % config.check_every == 0 or last:
            rows = [r for r in pending if r.step % every == 0]
            _append(history, rows)
            loss = float(next(iter(record.losses.values())))
            progress(record.step / config.steps, f"step {record.step}, loss {loss:.3f}")
            pending.clear()


def _append(history: Path, records: list[Any]) -> None:
    """Add one JSON line a record; a resumed run repeats the steps after its last checkpoint, the later line counts."""
    with history.open("a") as file:
        for r in records:
            row = {"step": r.step, "images": r.images, "learning_rate": r.learning_rate, "seconds": round(r.seconds, 4)}
            file.write(json.dumps(row | {name: round(float(loss), 6) for name, loss in r.losses.items()}) + "\n")


def translator(run: Run, network: Stage) -> MedShift:
    """The trained model of its stage, on the run's device, in bfloat16 where that has hardware for it."""
    from medshift.flow_training import load_flow
    from medshift.guidance import in_precision
    from medshift.schedules import autocast_dtype
    from medshift.translate import MedShift

    flow = load_flow(network.folder, device=run.device)
    velocity = in_precision(flow.network, autocast_dtype(run.device))
    return MedShift(velocity, flow.codec, len(flow.domains), flow.domains)


def floors(run: Run, views: Views) -> list[Translator]:
    """The baselines without a network, fitted to the unpaired training images."""
    from medshift.baselines.blur_tone import BlurTone
    from medshift.baselines.histogram import HistogramMatch
    from medshift.baselines.identity import Identity
    from medshift.baselines.nearest import NearestTarget

    images, domains = training_images(run, views), domains_of(run)
    few = [i[:STATISTICS_IMAGES] for i in images]
    return [Identity(), HistogramMatch(few, domains), BlurTone(few, domains), NearestTarget(images, domains)]


def tradeoff(run: Run, views: Views, network: Stage) -> Stage:
    """The study of notebook 04."""
    from medshift.tradeoff import Settings, study, study_unpaired

    profile: Profile = run.profile
    settings = Settings(**profile.tradeoff.model_dump(), device=run.device)

    def build(folder: Path) -> None:
        progress = Progress("evaluating")
        model = translator(run, network)
        if views.rendered:
            study(model, floors(run, views), views.folder, folder, settings, progress)
            return
        found = folder_set(views.data, profile.size)
        images = found.images(0, "test", limit=settings.headline)
        study_unpaired(model, images, (found.domains[0], found.domains[-1]), folder, settings, progress)

    modules = ["tradeoff", "evaluate", "translate", "ode", "guidance", "tone", "metrics", "baselines", "data"]
    stage = run_stage(
        run.runs,
        "tradeoff",
        build,
        arguments=profile.tradeoff.model_dump(),
        inputs=[views.stage, network],
        modules=modules,
    )
    run.stages["tradeoff"] = stage
    return stage
