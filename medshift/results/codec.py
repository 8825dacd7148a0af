"""What 02_codec draws: validation images through each codec, and what is left of their spectra."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from medshift.codec import KLCodec, PatchCodec
from medshift.metrics.physics import radial_power_spectrum
from medshift.metrics.structure import psnr, ssim
from medshift.stages.autoencoder import load_autoencoder
from medshift.stages.images import Images

Trips = dict[str, dict[str, tuple[Tensor, Tensor]]]


def round_trips(images: Images, autoencoder: Path, each: int = 32) -> Trips:
    """Codec -> domain -> (validation images, their round trips), both (N,1,H,W)."""
    shown = images.validation(each)
    codecs: dict[str, PatchCodec | KLCodec] = {
        "PatchCodec(2)": PatchCodec(2),
        "KLCodec, trained here": load_autoencoder(autoencoder),
    }
    trips: Trips = {}
    with torch.no_grad():
        for name, codec in codecs.items():
            codec.fit(torch.cat(list(shown.values())))
            trips[name] = {
                d: (x, codec.decode(codec.encode(x), size=(x.shape[-2], x.shape[-1]))) for d, x in shown.items()
            }
    return trips


def round_trip_table(trips: Trips) -> pd.DataFrame:
    """PSNR and SSIM of the round trip, and the share of the last octave's power that it keeps."""
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
