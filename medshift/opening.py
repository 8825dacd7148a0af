"""Open any method by its name: from a checkpoint, on top of one, or from training images.

Three sorts of method, listed in `medshift.methods`: those trained for one pair, which their checkpoint names; those
that come free with a trained MedShift; and those fitted to unpaired training images, which need no checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from medshift.checkpoint import load
from medshift.codec import KLCodec
from medshift.data.folders import read_folders
from medshift.errors import CheckpointError, DataError, ParameterError
from medshift.fast import KIND, load_fast
from medshift.knobs import parts_of
from medshift.methods_index import FLOORS, FREE_MODULES, TRAINED
from medshift.schedules import autocast_dtype
from medshift.translate import Domain, MedShift, Translator

if TYPE_CHECKING:
    from medshift.network import VelocityNetwork

__all__ = ["in_tiles", "open_asked", "open_fitted", "open_method", "trained_pair"]

OWN, STYLED = "medshift", "z-star"
TRAINING_IMAGES = 400  # of each domain, in file order


def open_asked(
    method: str,
    *,
    checkpoint: str = "",
    training: str = "",
    base: str = "",
    size: int | None = None,
    source: str = "",
    target: str = "",
    device: str = "cpu",
    options: Mapping[str, Any] | None = None,
) -> tuple[Translator, str, str]:
    """A method from the words of a command line, and the domains to translate from and to.

    Args:
        method: its name; empty for what the checkpoint holds.
        checkpoint: folder; either this or `training` is given, and both for z-star.
        training: folder of images, see `open_fitted`.
        base: see `open_method`.
        size: see `open_fitted`.
        source: domain; empty for that of a checkpoint for one pair.
        target: likewise.
        device: where to put the method.
        options: see `open_method`.

    Raises:
        ParameterError: words that do not fit each other, or a domain is missing; see also the functions named.
    """
    styled = method == STYLED
    if styled and not (checkpoint and training):
        raise ParameterError(
            f"{STYLED} takes its styles from images of the target, for the network of a MedShift: give --checkpoint "
            "FOLDER and --training FOLDER, both."
        )
    if not styled and bool(checkpoint) == bool(training):
        raise ParameterError("Give --checkpoint FOLDER, or --training FOLDER for a method fitted to images; one alone.")
    if training and (base or options) and not styled:
        raise ParameterError("--base and --option go with --checkpoint; a method fitted to images takes neither.")
    if checkpoint and size is not None and not styled:
        raise ParameterError("--size is of the images of --training; images to translate keep their size.")
    pair = trained_pair(Path(checkpoint)) if checkpoint else None
    source, target = source or (pair[0] if pair else ""), target or (pair[1] if pair else "")
    if not (source and target):
        raise ParameterError("Give --source and --target: only a method trained for one pair knows its domains.")
    if styled:
        made = _open_styled(Path(checkpoint), Path(training), size=size, device=device, options=options or {})
        return made, source, target
    if training:
        return open_fitted(method, Path(training), size=size), source, target
    held, under = Path(checkpoint), Path(base) if base else None
    return open_method(held, name=method, device=device, base=under, options=options), source, target


def open_method(
    folder: Path,
    *,
    name: str = "",
    device: str = "cpu",
    base: Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> Translator:
    """The method of a checkpoint, or one on top of it.

    Args:
        folder: a checkpoint's, or that of a training.
        name: of the method: what the checkpoint holds, or one on top of a MedShift; empty for the former.
        device: where to put it.
        base: checkpoint folder of the training whose network a method's adapters were trained on.
        options: of a method on top of a MedShift that has to be told something once, such as a starting time.

    Raises:
        CheckpointError: no checkpoint, or a damaged one, or one of no method, or no base or the wrong one for adapters.
        ParameterError: the checkpoint does not give the method asked for, or options it does not know.
    """
    if name in FLOORS:
        raise ParameterError(
            f"{name!r} is fitted to training images and has no checkpoint: give a folder of images with one "
            "sub-folder for each domain, by --training."
        )
    kind = _method(folder)["kind"]
    if kind != KIND:
        if name not in ("", kind):
            raise ParameterError(f"The checkpoint {folder} is of {kind!r}, not of {name!r}. {_known()}")
        if options:
            raise ParameterError(f"A trained {kind!r} takes no options; its checkpoint says all.")
        return _open_trained(folder, device, base)
    if name not in ("", OWN, KIND, *FREE_MODULES):
        raise ParameterError(f"The checkpoint {folder} is of MedShift, which does not give {name!r}. {_known()}")
    model = load_fast(folder, device=device)  # methods on top ask for its velocity, and for nothing inside it
    if name in ("", OWN, KIND) and not options:
        return model
    from medshift import methods

    try:
        return methods.FREE[OWN if name in ("", KIND) else name](model, **(options or {}))
    except TypeError as error:
        raise ParameterError(f"{name or OWN} cannot be made ({error}); give --option NAME=VALUE as it asks.") from error


def in_tiles(translator: Translator, tile: int) -> Translator:
    """`translator`, encoding and decoding images in tiles, see `medshift.tiled_codec`; those up to one tile as before.

    Args:
        translator: a MedShift, or a method on top of one, with a KL codec.
        tile: side [pixels]; neighbours overlap by about a quarter of it.

    Raises:
        ParameterError: a method without such a codec, or a tile that does not suit it.
    """
    from medshift.tiled_codec import TiledCodec

    models = [part for part in parts_of(translator) if isinstance(part, MedShift)]
    for model in models:
        if not isinstance(model.codec, KLCodec):
            raise ParameterError("--tile is for autoencoders; a codec of patches needs no more memory than the image.")
        stride = model.codec.stride
        model.codec = TiledCodec(model.codec, tile=tile, overlap=tile // 4 // stride * stride)
    if not models:
        raise ParameterError(f"--tile is for MedShift and methods on top of one; {translator.name} is none.")
    return translator


def open_fitted(name: str, training: Path, *, size: int | None = None) -> Translator:
    """A method fitted to training images; it works on the CPU.

    Args:
        name: one of `medshift.methods.FLOORS`.
        training: folder with one sub-folder of images for each domain, see `medshift.data.folders`. At most 400
            training images of each domain are read.
        size: shorter side [pixels] to which these are resized; None where all are of one size. A blur or a spectrum
            is in pixels, so it should be at the scale of the images to translate.

    Raises:
        ParameterError: no such method, or images of several sizes.
        DataError: no folder, a domain without images, a damaged file.
    """
    if name not in FLOORS:
        raise ParameterError(
            f"--method {name!r} is none of those fitted to training images, which are {', '.join(FLOORS)}; "
            "name one of these by --method, or give --checkpoint in place of --training."
        )
    from medshift import methods

    found = read_folders(training, size=size)
    images = [found.images(domain, "train", limit=TRAINING_IMAGES) for domain in found.domains]
    made = methods.floor(name, images, found.domains)
    sizes = {tuple(of.shape[-2:]) for of in images}
    return _SameSize(made, sizes) if name == "nearest" else made


def trained_pair(folder: Path) -> tuple[str, str] | None:
    """Source and target of a checkpoint that was trained for one pair of domains, else None."""
    pair = _method(folder).get("pair")
    return None if pair is None else (str(pair[0]), str(pair[1]))


def _method(folder: Path) -> dict[str, Any]:
    held = load(folder, only=())
    method = held.state.get("method")
    if not isinstance(method, dict) or "kind" not in method:
        raise CheckpointError(f"{held.path} is a checkpoint of no method; give the folder of a training.")
    return method


def _open_trained(folder: Path, device: str, base: Path | None) -> Translator:
    from medshift import methods

    method = _method(folder)
    if base is None:
        if "base" in method:
            raise CheckpointError(
                f"{folder} holds adapters of {method['kind']!r} without the network they were trained on: give the "
                "checkpoint of that network by --base FOLDER."
            )
        return methods.open_trained(folder, device=device, base=None)
    from medshift.adapters import check_base

    network = _network_of(base, device)
    check_base(method, network)
    return methods.open_trained(folder, device=device, base=network)


def _network_of(folder: Path, device: str) -> VelocityNetwork:
    """The velocity network of a checkpoint, of a MedShift or of a training for one pair that has one."""
    from medshift.flow_training import load_flow
    from medshift.methods import open_training
    from medshift.network import VelocityNetwork

    method = _method(folder)
    if method["kind"] == KIND:
        return load_flow(folder, device=device).network
    network = None if "base" in method else open_training(folder, device=device).modules().get("network")
    if not isinstance(network, VelocityNetwork):
        raise CheckpointError(
            f"The base {folder} is a training of {method['kind']!r}, which has no velocity network of its own; give "
            "the training that the adapters were trained on."
        )
    return network


def _open_styled(
    folder: Path, training: Path, *, size: int | None, device: str, options: Mapping[str, Any]
) -> Translator:
    """Z-STAR on the network of a MedShift, with styles from training images as in `open_fitted`."""
    from medshift import methods
    from medshift.flow_training import load_flow

    flow, found = load_flow(folder, device=device), read_folders(training, size=size)
    if missing := [domain for domain in flow.domains if domain not in found.domains]:
        raise ParameterError(
            f"{training} has no images of {', '.join(missing)}; {STYLED} needs some of every domain of its network."
        )
    places = [found.domains.index(domain) for domain in flow.domains]
    images = [found.images(place, "train", limit=TRAINING_IMAGES) for place in places]
    try:
        made = methods.other(STYLED)(
            flow.network, flow.codec, images, flow.domains, precision=autocast_dtype(device), **options
        )
    except TypeError as error:
        raise ParameterError(f"{STYLED} cannot be made ({error}); give --option NAME=VALUE as it asks.") from error
    return cast(Translator, made)


def _known() -> str:
    """What can be asked for, as the end of an error."""
    return (
        f"From a MedShift's checkpoint come {', '.join(FREE_MODULES)}; from their own {', '.join(TRAINED)}; "
        f"from training images (--training) {', '.join(FLOORS)}."
    )


class _SameSize:
    """A method whose results are training images, which refuses images of another size by a message."""

    needs_pairs = False

    def __init__(self, method: Translator, sizes: set[tuple[int, ...]]) -> None:
        self.method, self.name, self.sizes = method, method.name, sizes

    def translate(self, images: Tensor, source: Domain, target: Domain) -> Tensor:
        """Images (B,1,H,W), of the training images' size."""
        if self.sizes != {tuple(images.shape[-2:])}:
            height, width = images.shape[-2:]
            known = ", ".join(f"{w} × {h}" for h, w in sorted(self.sizes))
            raise DataError(f"The image has {width} × {height} pixels, training images {known}; resize one of them.")
        return self.method.translate(images, source, target)

    def nfe(self) -> int:
        """No network is evaluated."""
        return self.method.nfe()
