"""X-ray beams and what matter does to them: committed SpekPy tables and xraydb's attenuation coefficients.

A beam holds phi(E), photons per mm2 in each 1 keV bin for 1 uGy of air kerma. Attenuation coefficients are
Elam's (xraydb), which agree with NIST's tables to 0.1 % from 20 to 150 keV for the materials here.

References:
    ICRU Report 44 (1989): cortical bone and dry air. Elam, Ravel & Sieber, Radiat. Phys. Chem. 63 (2002) 121.
    IEC 61267 (2005): radiation qualities. Klein & Nishina, Z. Phys. 52 (1929) 853.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from medshift.errors import ParameterError

SPECTRA = Path(__file__).with_name("spectra")

# Mass fractions and density [g/cm3].
MATERIALS: dict[str, tuple[dict[str, float], float]] = {
    "water": ({"H": 0.111894, "O": 0.888106}, 1.0),
    "bone": (
        {
            "H": 0.034,
            "C": 0.155,
            "N": 0.042,
            "O": 0.435,
            "Na": 0.001,
            "Mg": 0.002,
            "P": 0.103,
            "S": 0.003,
            "Ca": 0.225,
        },
        1.92,
    ),
    "air": ({"C": 0.000124, "N": 0.755268, "O": 0.231781, "Ar": 0.012827}, 1.205e-3),
    "aluminium": ({"Al": 1.0}, 2.699),
    "caesium iodide": ({"Cs": 0.511549, "I": 0.488451}, 4.51),
}
PER_CM_TO_PER_MM = 0.1
ELECTRON_REST_KEV = 510.99895
UGY_MM2_PER_KEV_CM2_PER_G = 1.602176634e-16 * 1e3 * 1e2 * 1e6  # J/keV, g/kg, mm2/cm2, uGy/Gy


@dataclass(frozen=True)
class Beam:
    """An X-ray beam in air, without a patient.

    Attributes:
        name: the table's name.
        energy: (E,) centre of each bin [keV].
        fluence: (E,) photons per mm2 in each bin, for 1 uGy of air kerma.
        kvp: tube voltage [kV].
        filtration: what the beam went through.
        hvl: first half-value layer as SpekPy has it [mm of aluminium].
        photons_per_ugy: photons per mm2 and uGy as SpekPy has it.
    """

    name: str
    energy: np.ndarray
    fluence: np.ndarray
    kvp: float
    filtration: str
    hvl: float
    photons_per_ugy: float

    @property
    def weights(self) -> np.ndarray:
        """(E,) share of photons in each bin; they sum to one."""
        return self.fluence / self.fluence.sum()


def beam_names() -> list[str]:
    """Names of the tables that come with the package."""
    return sorted(path.stem for path in SPECTRA.glob("*.csv"))


@lru_cache(maxsize=16)
def load_beam(name: str) -> Beam:
    """Return the beam of the table ``spectra/<name>.csv``; ParameterError where there is none."""
    path = SPECTRA / f"{name}.csv"
    if not path.is_file():
        raise ParameterError(f"No beam is called {name!r}; the tables are {', '.join(beam_names())}.")
    lines = path.read_text(encoding="ascii").splitlines()
    header = dict(line[2:].split(": ", 1) for line in lines if line.startswith("#"))
    rows = [line for line in lines if line and line[0].isdigit()]
    energy, density = np.array([[float(cell) for cell in row.split(",")] for row in rows]).T
    return Beam(
        name=name,
        energy=energy,
        fluence=density * float(energy[1] - energy[0]),
        kvp=float(header["kvp"]),
        filtration=header["filter"],
        hvl=float(header["hvl1_mm_al"]),
        photons_per_ugy=float(header["photons_per_mm2_uGy"]),
    )


def mass_attenuation(material: str, energy: np.ndarray, kind: str = "total") -> np.ndarray:
    """Mass attenuation coefficient [cm2/g] at ``energy`` [keV], by the mixture rule.

    Args:
        material: a key of `MATERIALS`.
        energy: any shape.
        kind: ``total``, ``photo`` (photoelectric), ``incoh`` (Compton) or ``coh`` (Rayleigh).
    """
    import xraydb

    if material not in MATERIALS:
        raise ParameterError(f"No material is called {material!r}; there are {', '.join(MATERIALS)}.")
    fractions, _ = MATERIALS[material]
    ev = np.asarray(energy, dtype=float) * 1e3
    return sum(share * xraydb.mu_elam(element, ev, kind=kind) for element, share in fractions.items())


def linear_attenuation(material: str, energy: np.ndarray) -> np.ndarray:
    """Linear attenuation coefficient [1/mm] at ``energy`` [keV]."""
    return PER_CM_TO_PER_MM * MATERIALS[material][1] * mass_attenuation(material, energy)


def compton_transfer_fraction(energy: np.ndarray) -> np.ndarray:
    """Mean share of a photon's energy [keV] that Klein-Nishina scattering gives to the electron."""
    a = np.asarray(energy, dtype=float) / ELECTRON_REST_KEV
    log = np.log1p(2 * a)
    total = (1 + a) / a**2 * (2 * (1 + a) / (1 + 2 * a) - log / a) + log / (2 * a) - (1 + 3 * a) / (1 + 2 * a) ** 2
    kept = (
        log / a**3
        + 2 * (1 + a) * (2 * a**2 - 2 * a - 1) / (a**2 * (1 + 2 * a) ** 2)
        + 8 * a**2 / (3 * (1 + 2 * a) ** 3)
    )
    return 1 - kept / (2 * total)


def kerma_per_photon(energy: np.ndarray) -> np.ndarray:
    """Air kerma [uGy] of one photon per mm2, at ``energy`` [keV]: E times the mass energy transfer
    coefficient of air.

    Photoelectric absorption gives all its energy, Compton scattering the Klein-Nishina share. Fluorescence
    and bremsstrahlung, below 0.3 % of it in air at these energies, are left out.
    """
    transfer = mass_attenuation("air", energy, "photo") + compton_transfer_fraction(energy) * mass_attenuation(
        "air", energy, "incoh"
    )
    return np.asarray(energy) * transfer * UGY_MM2_PER_KEV_CM2_PER_G


def half_value_layer(beam: Beam) -> float:
    """First half-value layer [mm of aluminium], which halves the beam's air kerma; by bisection."""
    kerma = beam.fluence * kerma_per_photon(beam.energy)
    mu = linear_attenuation("aluminium", beam.energy)
    low, high = 0.0, 50.0
    for _ in range(50):
        middle = 0.5 * (low + high)
        if (kerma * np.exp(-mu * middle)).sum() > 0.5 * kerma.sum():
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def absorbed_share(energy: np.ndarray, surface_density: float) -> np.ndarray:
    """Share of photons of ``energy`` [keV] that interact in a CsI layer of ``surface_density`` [g/cm2].

    Photoelectric and Compton events count; a photon scattered coherently goes on.
    """
    coefficient = mass_attenuation("caesium iodide", energy, "photo") + mass_attenuation(
        "caesium iodide", energy, "incoh"
    )
    return 1 - np.exp(-coefficient * surface_density)
