"""`medshift`: a thin command line over `medshift.repro`. Imports nothing heavy, so `--help` answers at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from medshift import __version__
from medshift.errors import MedShiftError


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="medshift", description="Translate X-rays between domains, and rebuild every figure.")
    top.add_argument("--version", action="version", version=f"medshift {__version__}")
    commands = top.add_subparsers(dest="command", required=True)
    paper = commands.add_parser("paper", help="run the notebooks and draw every figure")
    paper.add_argument("--profile", default="auto", help="smoke, cpu, gpu, paper, or auto: gpu where there is one, else cpu")
    paper.add_argument("--only", default="", help="notebooks to run, by number or name, separated by commas: 01,04")
    paper.add_argument("--data", default="", metavar="DIR", help="your own images: one folder per domain")
    paper.add_argument("--seed", type=int, default=0, help="of every random number")
    paper.add_argument("--set", default="", metavar="KEY=VALUE ...", help='change the profile: --set "train.images=6400"')
    paper.add_argument("--out", default=".", metavar="DIR", help="where runs/ and build/ go")
    data = commands.add_parser("data", help="fetch and check the head CT")
    data.add_argument("--path", action="store_true", help="print where the file is")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; an input's error is one line on stderr and its exit code, never a traceback."""
    options = parser().parse_args(arguments)
    try:
        if options.command == "paper":
            from medshift.repro.runner import paper

            only = [name for name in options.only.split(",") if name]
            paper(
                options.profile, only=only, data=options.data, seed=options.seed, overrides=options.set, out_dir=options.out
            )
        else:
            from medshift.data.cranium import fetch

            path = fetch()
            print(path if options.path else f"The head CT is there and its checksum is right: {path.name}")
    except MedShiftError as error:
        print(f"medshift: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("medshift: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
