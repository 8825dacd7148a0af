"""Make the beam tables beside this file with SpekPy (`pip install spekpy`, then run this script).

Each table is one X-ray beam leaving the tube housing: photons per mm2 and keV for 1 uGy of air kerma, in 1
keV bins. The half-value layers and the fluence per kerma in the header are SpekPy's own and serve as an
oracle: the library recomputes both from the table and xraydb's coefficients. SpekPy: Poludniowski et al.,
    Med. Phys. 48 (2021) 3630.
"""

from pathlib import Path

# Filters (1 mm Al with 0.1 to 0.9 mm Cu) are the selectable ones of interventional C-arms (Philips); 2.5 mm
# Al is the least total filtration IEC 60601-1-3 allows and stands for tube, cooling oil and housing. RQA5:
# IEC 61267.
INHERENT_AL_MM = 2.5
BEAMS: dict[str, tuple[float, dict[str, float]]] = {
    "fluoroscopy-low": (80.0, {"Al": INHERENT_AL_MM + 1.0, "Cu": 0.9}),
    "fluoroscopy-normal": (75.0, {"Al": INHERENT_AL_MM + 1.0, "Cu": 0.4}),
    "exposure": (70.0, {"Al": INHERENT_AL_MM + 1.0, "Cu": 0.1}),
    "rqa5": (70.0, {"Al": INHERENT_AL_MM + 21.0}),
}
ANODE_ANGLE_DEG = 11.0


def table(name: str) -> str:
    """Return the CSV text of one beam."""
    import spekpy

    kvp, filters = BEAMS[name]
    beam = spekpy.Spek(kvp=kvp, th=ANODE_ANGLE_DEG, dk=1.0, z=100.0)
    beam.multi_filter(list(filters.items()))
    energy, per_cm2 = beam.get_spectrum()
    photons = per_cm2 / 100.0 / beam.get_kerma()
    header = {
        "beam": name,
        "kvp": kvp,
        "anode": f"tungsten {ANODE_ANGLE_DEG:g} deg",
        "filter": " + ".join(f"{thickness:g} mm {material}" for material, thickness in filters.items()),
        "hvl1_mm_al": round(beam.get_hvl1(), 4),
        "hvl2_mm_al": round(beam.get_hvl2(), 4),
        "photons_per_mm2_uGy": round(beam.get_flu() / 100.0 / beam.get_kerma(), 1),
        "made_with": f"SpekPy {spekpy.__version__}, its default physics",
    }
    lines = [f"# {key}: {value}" for key, value in header.items()]
    lines.append("energy_keV,photons_per_mm2_keV_uGy")
    kept = photons > 1e-5 * photons.max()
    lines += [f"{e:.1f},{n:.5g}" for e, n in zip(energy[kept], photons[kept], strict=True)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for beam_name in BEAMS:
        Path(__file__).with_name(f"{beam_name}.csv").write_text(table(beam_name), encoding="ascii")
