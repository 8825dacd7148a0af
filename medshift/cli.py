"""`medshift`: a thin command line over `medshift.repro`. Imports nothing heavy, so `--help` answers at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from medshift import __version__
from medshift.errors import MedShiftError

DESCRIPTION = "Translate X-rays between domains, and rebuild every figure."


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="medshift", description=DESCRIPTION)
    top.add_argument("--version", action="version", version=f"medshift {__version__}")
    commands = top.add_subparsers(dest="command", required=True)
    paper = commands.add_parser("paper", help="run the notebooks and draw every figure")
    data = commands.add_parser("data", help="only make the data of a profile: fetch the CT, project every view")
    for command in (paper, data):
        command.add_argument(
            "--profile", default="auto", help="smoke, cpu, gpu, paper, or auto (gpu where there is one)"
        )
        command.add_argument("--data", default="", metavar="DIR", help="your own images: one folder per domain")
        command.add_argument("--seed", type=int, default=0, help="of every random number")
        command.add_argument(
            "--set", default="", metavar="KEY=VALUE ...", help='change the profile: "train.images=6400"'
        )
        command.add_argument("--out", default=".", metavar="DIR", help="where runs/ and build/ go")
    paper.add_argument("--only", default="", help="notebooks to run, by number or name, separated by commas: 01,04")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; an input's error is one line on stderr and its exit code, never a traceback."""
    options = parser().parse_args(arguments)
    try:
        common = {"data": options.data, "seed": options.seed, "overrides": options.set, "out_dir": options.out}
        if options.command == "paper":
            from medshift.repro.runner import paper

            paper(options.profile, only=[name for name in options.only.split(",") if name], **common)
        else:
            from medshift.repro.pipeline import views
            from medshift.repro.run import configure

            made = views(configure("01_data", {"profile": options.profile, **common}))
            print(f"{'Made' if made.stage.built else 'Already made'}: {made.folder}")
    except MedShiftError as error:
        print(f"medshift: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("medshift: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
