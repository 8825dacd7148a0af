"""What this machine offers: Python, libraries, GPU, memory, disk and fonts, one check each for `medshift doctor`."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

GB, GIB = 10**9, 2**30
DISK = {"smoke": 0.1, "cpu": 1.0, "gpu": 10.0}  # GB that runs/ and build/ of a profile take
PYTHON = (3, 11)
SETUP = "make setup"
GLYPHS = "τ→"


@dataclass(frozen=True)
class Check:
    """One line: ``OK``, ``missing`` or ``warning``, what was found, what its lack costs, and what mends it."""

    state: str
    name: str
    found: str
    costs: str = ""
    mend: str = ""


def problem(name: str) -> str:
    """Why a module cannot be imported, or nothing."""
    try:
        import_module(name)
    except Exception as error:  # a build for another library raises whatever it likes
        return f"{name} cannot be imported: {(str(error) or repr(error)).splitlines()[0]}"
    return ""


def python() -> Check:
    """Whether Python is new enough."""
    version = platform.python_version()
    if sys.version_info < PYTHON:
        return Check("missing", "Python", version, "nothing runs", "make PYTHON=python3.12 setup")
    return Check("OK", "Python", version)


def torch_pair() -> Check:
    """Whether torch and torchvision load and are made for each other: else torchvision's own operations fail."""
    name = "torch, torchvision"
    if why := problem("torch") or problem("torchvision"):
        return Check("missing", name, why, "nothing can be trained or shown", SETUP)
    import torch
    import torchvision

    found = f"{torch.__version__}, {torchvision.__version__}"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torchvision.ops.nms(torch.zeros(1, 4, device=device), torch.zeros(1, device=device), 0.5)
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        why = f"{found} are not made for each other: {str(error).splitlines()[0]}"
        return Check("warning", name, why, "LPIPS and all else of torchvision", SETUP)
    return Check("OK", name, found)


def gpu() -> Check:
    """GPUs that torch can use."""
    if problem("torch"):
        return Check("missing", "GPU", "not known without torch", "profiles gpu and paper", SETUP)
    import torch

    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return Check("OK", "GPU", ", ".join(f"{card.name}, {card.total_memory / GIB:.0f} GiB" for card in cards))
    if shutil.which("nvidia-smi"):
        found = f"a driver is there, but torch {torch.__version__} sees no GPU: auto means the cpu profile"
        return Check("warning", "GPU", found, "profiles gpu and paper", "nvidia-smi shows whether the driver answers")
    return Check("missing", "GPU", "none: auto means the cpu profile", "profiles gpu and paper")


def bf16() -> Check:
    """Whether bfloat16 is multiplied in hardware."""
    if problem("torch"):
        return Check("missing", "bfloat16", "not known without torch", "speed", SETUP)
    import torch

    from medshift.schedules import autocast_dtype

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if autocast_dtype(device):
        return Check("OK", "bfloat16", f"in hardware ({device})")
    return Check("warning", "bfloat16", f"not in hardware ({device})", "speed: float32 takes its place")


def memory() -> Check:
    """Memory, of a container where this is one, and cores."""
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else ""
    size = min(size, int(text)) if text.isdigit() else size
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = f"{size / GIB:.0f} GiB, {cores} core{'s' if cores > 1 else ''}"
    if size < 4 * GIB:
        return Check("warning", "memory, cores", found, "a notebook may run out of memory", "PROFILE=smoke")
    return Check("OK", "memory, cores", found)


def fonts() -> Check:
    """Whether figures can show Greek letters and arrows."""
    from matplotlib import font_manager

    name, costs = "fonts", "boxes in place of letters in figures"
    try:
        file = font_manager.findfont("DejaVu Sans", fallback_to_default=False)
    except ValueError:
        return Check("missing", name, "no DejaVu Sans", costs, SETUP)
    font = font_manager.get_font(file)
    lacking = [glyph for glyph in GLYPHS if not font.get_char_index(ord(glyph))]
    if lacking:
        return Check("warning", name, f"DejaVu Sans without {' '.join(lacking)}", costs, SETUP)
    return Check("OK", name, f"DejaVu Sans with {' '.join(GLYPHS)}")


def kernel() -> Check:
    """The kernel that runs notebooks."""
    from jupyter_client.kernelspec import KernelSpecManager

    mend = f"{sys.executable} -m ipykernel install --sys-prefix"
    specs = KernelSpecManager().get_all_specs()
    if "python3" not in specs:
        return Check("missing", "Jupyter kernel", "no kernel python3", "no notebook runs", mend)
    program = Path(specs["python3"]["spec"]["argv"][0])
    # Bare names stand for the Python that starts the kernel.
    if program.is_absolute() and program.parent != Path(sys.executable).parent:
        found = f"kernel python3 is another Python ({program})"
        return Check("warning", "Jupyter kernel", found, "notebooks may not find medshift", mend)
    return Check("OK", "Jupyter kernel", "python3")


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))


def disk(out: Path) -> Check:
    """Space where results go, by profile."""
    free = shutil.disk_usage(_existing(out)).free / GB
    short = [f"{name} needs {need:g} GB" for name, need in DISK.items() if free < need]
    found = f"{free:.1f} GB free at {out}"
    if short:
        state = "missing" if len(short) == len(DISK) else "warning"
        return Check(state, "disk", found, "; ".join(short), "free some, or choose another folder with --out")
    return Check("OK", "disk", found)


def writable(out: Path) -> Check:
    """Whether results can be written."""
    folder = _existing(out)
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        mend = "make it writable, or choose another folder with --out"
        return Check("missing", "output", f"{folder} cannot be written", "nothing can be kept", mend)
    return Check("OK", "output", f"{out} can be written")
