"""Peak memory of a training in a process of its own: ``python training_memory.py CASE NAME PLACE``, as JSON in MiB.

Three steps are taken; what the process held before the first is told beside.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))


def main() -> None:
    from sizes import training_case

    from peers.first_image import peak

    case, name, place = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    ways = training_case(case, place).ways()
    held = peak()
    step = ways[name].start()
    for _ in range(3):
        step()
    print(json.dumps({"held": held, "peak": peak()}))


if __name__ == "__main__":
    main()
