"""`medshift`: a thin command line over `medshift.repro`. Imports nothing heavy, so `--help` answers at once."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from medshift import __version__
from medshift.errors import MedShiftError, ParameterError

DESCRIPTION = "Translate X-rays between domains, and rebuild every figure."
EXIT_CODES = """exit codes: 0 done; 2 a wrong parameter; 3 input missing or damaged, or output not writable; 4 a cell or
training failed; 5 a kernel died, ran out of memory or passed its limit; 130 interrupted."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="medshift", description=DESCRIPTION, epilog=EXIT_CODES)
    top.add_argument("-V", "--version", action="version", version=f"medshift {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, epilog=EXIT_CODES)

    paper = command("paper", "run the notebooks whose inputs changed, and draw every figure")
    paper.add_argument("--only", default="", help="notebooks to run, by number or name, separated by commas: 01,04")
    run = command("run", "run one notebook with parameters of your own")
    run.add_argument("notebook", help="path, name or number")
    run.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    run.add_argument("-f", "--file", default="", metavar="YAML", help="a file of lines `name: value`")
    for one in (paper, run):
        one.add_argument("--limit", type=float, default=0.0, metavar="MINUTES", help="stop a notebook after this long")
        one.add_argument("--force", action="store_true", help="run fresh notebooks too")
        one.add_argument("--workers", type=int, default=0, metavar="N", help="processes that build stages; 0 to choose")
    params = command("params", "list the parameters of a notebook")
    params.add_argument("notebook", help="path, name or number")
    data = command("data", "only make the data of a profile: fetch the CT, project every view")
    paper.add_argument(
        "--retrain", default="", metavar="NAMES", help="trainings of 06 and 07 to do though shipped, or all"
    )
    paper.add_argument("--pretrained", action="store_true", help="take the network from shipped weights")
    train = command("train", "only train the network of a profile, on several processes or GPUs where asked")
    train.add_argument("--method", default="", metavar="NAMES", help="trainings of 06 or 07 instead; all: of 06")
    train.add_argument("--processes", type=int, default=1, metavar="N", help="processes that share the batch")
    status = command("status", "say what is fresh, what is stale and why")
    ship = command("ship", "put trained weights among those that the repository ships")
    ship.add_argument("names", nargs="*", help="of trainings; none for all that are done")
    publish = command("publish", "copy the figures of a profile to figures/")
    site = command("site", "make a static site of the executed notebooks and all figures")
    for one in (paper, data, train, status, ship, publish, site):
        one.add_argument("--profile", default="auto", help="smoke, cpu, gpu, paper, or auto (gpu where there is one)")
    for one in (paper, data, train, status):
        one.add_argument("--data", default="", metavar="DIR", help="your own images: one folder per domain")
        one.add_argument("--seed", type=int, default=0, help="of every random number")
        one.add_argument("--set", default="", metavar="KEY=VALUE ...", help='change the profile: "train.images=6400"')
    grid = command("grid", "run every combination of a grid file and collect one table")
    grid.add_argument("file", help="path, or name of a file of notebooks/grids")
    grid.add_argument("--profile", default="auto", help="smoke, cpu, gpu, paper, or auto (gpu where there is one)")
    grid.add_argument("--workers", type=int, default=1, metavar="N", help="processes on this machine, one for each GPU")
    grid.add_argument("--slurm", nargs="*", metavar="KEY=VALUE", help="hand the runs to Slurm: partition=gpu time=60")
    grid.add_argument("--executor", default="slurm", choices=("slurm", "local", "debug"), help="of submitit, for tests")
    grid.add_argument("--print-commands", action="store_true", help="print one shell line for each run and stop")
    grid.add_argument("--run", type=int, metavar="I", help="only the run of this number")
    grid.add_argument("--limit", type=int, default=2000, metavar="RUNS", help="refuse a grid of more runs than this")
    lesson = command("lesson", "write a lesson's student and solution editions to build/lesson")
    lesson.add_argument("notebook", nargs="?", default="00", help="path, name or number; 00 if none is given")
    for one in (paper, run, data, train, status, ship, publish, site, grid, lesson):
        one.add_argument("--out", default=".", metavar="DIR", help="where runs/ and build/ go")
    doctor = command("doctor", "look at this machine: what is missing, what it costs, what mends it")
    doctor.add_argument("--out", default=".", metavar="DIR", help="where runs/ and build/ would go")
    figinfo = command("figinfo", "say how a figure was made, and the command that makes it again")
    figinfo.add_argument("figure", nargs="+", help="a PNG, PDF, SVG, CSV or MD file")
    _translate_words(command("translate", "translate a folder of your own images, file by file, in kind"))
    return top


def _translate_words(one: argparse.ArgumentParser) -> None:
    one.add_argument("input", metavar="IN", help="folder of PNG, TIFF, JPEG or DICOM files, with sub-folders or not")
    one.add_argument("output", metavar="OUT", help="folder for the translations, which keep names, sizes and depths")
    one.add_argument("--method", default="", metavar="NAME", help="what the checkpoint holds, or one on top of it")
    one.add_argument("--checkpoint", default="", metavar="DIR", help="of a training, such as runs/cpu/network-…")
    one.add_argument("--training", default="", metavar="DIR", help="images, one folder per domain, to fit a method to")
    one.add_argument("--size", type=int, metavar="PIXELS", help="resize the images of --training to this shorter side")
    one.add_argument("--base", default="", metavar="DIR", help="checkpoint that a method's adapters were trained on")
    one.add_argument("--source", default="", metavar="DOMAIN", help="of the images; a method for one pair knows it")
    one.add_argument("--target", default="", metavar="DOMAIN", help="wanted; a method for one pair knows it")
    one.add_argument("--tau", metavar="TAU", help="where the legs meet: 1 keeps the image, 0 goes through noise")
    one.add_argument("--set", action="append", default=[], metavar="KNOB=VALUE", help="another knob; repeat for more")
    one.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of how a method is made")
    one.add_argument("--overwrite", action="store_true", help="make translations that are there already again")
    one.add_argument("--batch", type=int, default=1, metavar="N", help="images of equal size translated at once")
    one.add_argument("--seed", type=int, default=0, help="of the noise of methods that draw some")
    one.add_argument("--tile", type=int, metavar="PIXELS", help="encode larger images in tiles, which saves memory")
    one.add_argument("--device", default="auto", help="cpu, cuda, or auto (cuda where there is one)")


def _common(options: argparse.Namespace) -> dict[str, Any]:
    return {"data": options.data, "seed": options.seed, "overrides": options.set}


def _paper(options: argparse.Namespace) -> None:
    from medshift.repro.runner import paper

    only = _names(options.only)
    how = {"force": options.force, "limit": 60 * options.limit, "workers": options.workers}
    if options.retrain:
        how["retrain"] = _names(options.retrain)
    if options.pretrained:
        how["pretrained"] = True
    paper(options.profile, only=only, out_dir=options.out, **how, **_common(options))


def _run(options: argparse.Namespace) -> None:
    from medshift.repro.cells import find_notebook
    from medshift.repro.runner import run_tasks, task
    from medshift.repro.values import parse_pairs, read_mapping

    values = parse_pairs(options.parameter)
    held = read_mapping(Path(options.file)) if options.file else {}
    if both := sorted(set(values) & set(held)):
        raise ParameterError(f"Parameter {both[0]!r} is given by -p and in {options.file}; give it once.")
    one = task(find_notebook(options.notebook), {**held, **values}, out_dir=options.out)
    run_tasks([one], force=options.force, limit=60 * options.limit, workers=options.workers)


def _params(options: argparse.Namespace) -> None:
    from medshift.repro.cells import find_notebook, model_of
    from medshift.repro.parameters import table

    rows = [("name", "type", "default", "what it is"), *table(model_of(find_notebook(options.notebook)))]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) + "  " + row[3])


def _data(options: argparse.Namespace) -> None:
    from medshift.repro.run import configure

    run = configure("01_data", {"profile": options.profile, "out_dir": options.out, **_common(options)})
    made = run.stage("views")
    print(f"{'Made' if made.built else 'Already made'}: {made.folder}")


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _train(options: argparse.Namespace) -> None:
    from medshift.repro.launch import train_methods, train_network

    values = {"profile": options.profile, "out_dir": options.out, **_common(options)}
    if options.method:
        for made in train_methods(values, _names(options.method)):
            print(f"{'Trained' if made.built else 'Already trained'}: {made.folder}")
        return
    made = train_network(values, processes=options.processes)
    print(f"{'Trained' if made.built else 'Already trained'}: {made.folder}")


def _status(options: argparse.Namespace) -> None:
    from medshift.repro.status import report

    print(report(options.profile, out_dir=options.out, **_common(options)))


def _ship(options: argparse.Namespace) -> None:
    from medshift.repro.shipping import ship

    for folder in ship(options.profile, options.names, out_dir=options.out):
        print(folder)


def _publish(options: argparse.Namespace) -> None:
    from medshift.repro.publish import publish

    folder, names = publish(options.profile, out_dir=options.out)
    print(f"{len(names)} files: {folder}")


def _site(options: argparse.Namespace) -> None:
    from medshift.repro.site import build_site

    print(f"Open {build_site(options.profile, out_dir=options.out)} in a browser; it needs no network.")


def _lesson(options: argparse.Namespace) -> None:
    from medshift.repro.cells import find_notebook
    from medshift.repro.editions import lesson

    print("\n".join(map(str, lesson(find_notebook(options.notebook), out_dir=options.out))))


def _grid(options: argparse.Namespace) -> None:
    from medshift.repro.grid import load_grid
    from medshift.repro.profiles import load_profile, resolve
    from medshift.repro.workers import print_commands, run_grid, run_one, submit

    grid = load_grid(options.file, load_profile(resolve(options.profile)), out_dir=options.out, limit=options.limit)
    if options.print_commands:
        print_commands(grid, options.file)
    elif options.run is not None:
        run_one(grid, options.run)
    elif options.slurm is not None:
        submit(grid, options.slurm, executor=options.executor)
    else:
        run_grid(grid, workers=options.workers)


def _doctor(options: argparse.Namespace) -> None:
    from medshift.repro.doctor import examine

    print(examine(Path(options.out)))


def _figinfo(options: argparse.Namespace) -> None:
    from medshift.repro.figinfo import describe

    print("\n\n".join(describe(Path(figure)) for figure in options.figure))


def _translate(options: argparse.Namespace) -> None:
    from medshift.folder_translation import check_folders, translate_folder
    from medshift.opening import in_tiles, open_asked
    from medshift.repro.run import pick_device
    from medshift.repro.values import parse_pairs

    check_folders(options.input, options.output)
    tau = [] if options.tau is None else [("tau", options.tau)]
    knobs = parse_pairs([*_named(options.set), *tau])
    device = "cpu" if options.training else pick_device(options.device)
    asked = {name: getattr(options, name) for name in ("checkpoint", "training", "base", "size", "source", "target")}
    made = parse_pairs(_named(options.option))
    translator, source, target = open_asked(options.method, **asked, device=device, options=made)
    if options.tile is not None:
        translator = in_tiles(translator, options.tile)
    how = {"overwrite": options.overwrite, "batch": options.batch, "seed": options.seed, "device": device}
    print(f"{translate_folder(translator, source, target, options.input, options.output, knobs=knobs, **how)}.")


def _named(words: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [word.partition("=") for word in words]
    if wrong := [name for name, sign, value in pairs if not (name and sign and value)]:
        raise ParameterError(f"{wrong[0]!r} has no value; write NAME=VALUE.")
    return [(name, value) for name, _, value in pairs]


COMMANDS = {
    "paper": _paper,
    "run": _run,
    "params": _params,
    "data": _data,
    "train": _train,
    "status": _status,
    "ship": _ship,
    "publish": _publish,
    "site": _site,
    "lesson": _lesson,
    "grid": _grid,
    "doctor": _doctor,
    "figinfo": _figinfo,
    "translate": _translate,
}


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; an input's error is a message on stderr and its exit code, never a traceback."""
    options = parser().parse_args(arguments)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        COMMANDS[options.command](options)
    except MedShiftError as error:
        print(f"medshift: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("medshift: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


if __name__ == "__main__":
    sys.exit(main())
