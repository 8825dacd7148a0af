"""MedShift as a translator: labels, tau, cost, codec, and what it refuses."""

import math
from itertools import product

import pytest
import torch
from oracles.gaussian import IdentityCodec, IsotropicGaussians

from medshift.errors import ParameterError
from medshift.guidance import CountingVelocity
from medshift.translate import AS_PUBLISHED, MedShift

NAMES = ("synthetic", "real", "exposed")
FIELD = IsotropicGaussians(torch.randn(3, 12, generator=torch.Generator().manual_seed(1)), (0.3, 0.5, 0.8))
IMAGES = torch.randn(6, 1, 3, 4, generator=torch.Generator().manual_seed(2))
SOURCE, TARGET = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([1, 0, 2, 2, 2, 1])


class OffsetCodec:
    """Not its own inverse, and made for multiples of its stride only, as a lossy codec is."""

    def __init__(self, stride=1):
        self.stride = stride

    def encode(self, image):
        """Halved, shifted and padded to a multiple of the stride."""
        pad = [-size % self.stride for size in image.shape[:-3:-1]]
        return torch.nn.functional.pad(0.5 * image + 0.25, (0, pad[0], 0, pad[1]))

    def decode(self, latent, size=None):
        """Doubled and shifted, but not by as much."""
        image = 2 * latent + 0.125
        return image if size is None else image[..., : size[0], : size[1]]


def translator(velocity=FIELD, codec=None):
    return MedShift(velocity, codec or IdentityCodec(), 3, NAMES)


KNOBS = [
    {},
    AS_PUBLISHED,
    {"solver": "rk4", "steps": 5},
    {"solver": "midpoint", "grid": "uniform", "steps": 9},
    {"solver": "dopri5"},
]


@pytest.mark.parametrize("knobs", KNOBS)
def test_tau_one_returns_decode_of_encode_without_evaluating(knobs):
    def never(x, t, label):
        raise AssertionError("evaluated")

    model = translator(never, OffsetCodec())
    out = model.translate(IMAGES, "synthetic", "real", tau=1.0, guidance=2.0, **knobs)
    assert torch.equal(out, model.codec.decode(model.codec.encode(IMAGES)))
    torch.testing.assert_close(out, IMAGES + 0.625)


@pytest.mark.parametrize("knobs", KNOBS)
def test_labels_by_number_name_or_tensor_are_the_same(knobs):
    model = translator()
    out = model.translate(IMAGES, 0, 1, tau=0.3, **knobs)
    assert torch.equal(out, model.translate(IMAGES, "synthetic", "real", tau=0.3, **knobs))
    zeros = torch.zeros(6, dtype=torch.int32)
    assert torch.equal(out, model.translate(IMAGES, zeros, zeros + 1, tau=0.3, **knobs))
    assert not torch.allclose(out, model.translate(IMAGES, 0, 2, tau=0.3, **knobs))


@pytest.mark.parametrize("guidance", [1.0, (2.0, 1.5)])
@pytest.mark.parametrize("knobs", KNOBS[:4])
def test_a_mixed_batch_is_its_images_one_at_a_time(knobs, guidance):
    model = translator()
    source, target = SOURCE.clone(), TARGET.clone()
    together = model.translate(IMAGES, source, target, tau=0.2, guidance=guidance, **knobs)
    for i in range(6):
        labels = (int(SOURCE[i]), NAMES[int(TARGET[i])])
        alone = model.translate(IMAGES[i : i + 1], *labels, tau=0.2, guidance=guidance, **knobs)
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=1e-5)
    assert torch.equal(source, SOURCE) and torch.equal(target, TARGET)


@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize("grid", ["uniform", "refined"])
@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun", "rk4"])
def test_nfe_is_what_is_counted(solver, grid, steps):
    for tau, guidance in product((0.0, 0.25, 0.3, 1.0), (1.0, 2.0, (0.0, 3.0))):
        counted = CountingVelocity(lambda x, t, label: x)
        knobs = {"tau": tau, "guidance": guidance, "solver": solver, "grid": grid, "steps": steps}
        model = translator(counted)
        model.translate(IMAGES, SOURCE, TARGET, **knobs)
        assert counted.nfe(len(IMAGES)) == model.nfe(**knobs)


def test_nfe_as_published():
    """ceil(50 (1 - tau)) Euler steps a leg, each evaluated with and without its label."""
    model = translator()
    assert model.nfe(0.3, guidance=2.0, **AS_PUBLISHED) == 140
    assert [model.nfe(tau, **AS_PUBLISHED) for tau in (0.0, 0.3, 0.45, 0.6)] == [100, 70, 56, 40]
    assert model.nfe(0.02) == 2 * 30
    with pytest.raises(ParameterError, match="dopri5"):
        model.nfe(0.3, solver="dopri5")


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("knobs", KNOBS)
def test_encoding_to_several_tau_is_bit_for_bit_separate_encoding(knobs, guidance):
    model = translator(codec=OffsetCodec())
    taus = [0.3, 0.0, 0.02, 1.0, 0.1, 0.6, 0.11]
    together = model.encode(IMAGES, SOURCE, taus, guidance=guidance, **knobs)
    assert isinstance(together, list) and len(together) == len(taus)
    for tau, z in zip(taus, together, strict=True):
        assert torch.equal(z, model.encode(IMAGES, SOURCE, tau, guidance=guidance, **knobs))
        out = model.decode(z, TARGET, tau, size=(3, 4), guidance=guidance, **knobs)
        assert torch.equal(out, model.translate(IMAGES, SOURCE, TARGET, tau=tau, guidance=guidance, **knobs))


def test_several_tau_cost_one_leg():
    counted = CountingVelocity(FIELD)
    translator(counted).encode(IMAGES, 0, [0.0, 0.02, 0.1, 0.3])
    assert counted.nfe(6) == 30 + 3 * 2


def test_the_guidance_of_each_leg_is_its_own():
    model = translator()
    z = model.encode(IMAGES, 0, 0.2, guidance=3.0)
    out = model.decode(z, 1, 0.2, size=(3, 4), guidance=0.5)
    assert torch.equal(out, model.translate(IMAGES, 0, 1, tau=0.2, guidance=(3.0, 0.5)))
    assert not torch.allclose(out, model.translate(IMAGES, 0, 1, tau=0.2, guidance=(0.5, 3.0)), atol=1e-3)
    # With scale 0 the label does not matter at all.
    assert torch.equal(model.encode(IMAGES, 0, 0.2, guidance=0.0), model.encode(IMAGES, 1, 0.2, guidance=0.0))


@pytest.mark.parametrize("size", [(3, 4), (5, 7), (1, 1)])
def test_images_keep_their_size_dtype_and_need_no_gradient(size):
    weight = torch.ones((), requires_grad=True)
    model = translator(lambda x, t, label: weight * x, OffsetCodec(stride=4))
    images = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(0))
    out = model.translate(images, 0, 1, tau=0.5)
    assert out.shape == images.shape and out.dtype == images.dtype and not out.requires_grad
    assert model.decode(model.encode(images, 0, 0.5), 1, 0.5).shape[-1] % 4 == 0


def test_dopri5_agrees_with_a_fine_fixed_grid():
    double = IsotropicGaussians(FIELD.means.double(), FIELD.stds.tolist())
    model = translator(double)
    coarse = model.translate(IMAGES.double(), SOURCE, TARGET, tau=0.1, solver="dopri5")
    truth = double.transport(IMAGES.double(), SOURCE, TARGET, 0.1)
    torch.testing.assert_close(coarse, truth, atol=1e-3, rtol=0)
    # Inside the leg the state is read off an interpolant, and must be as good.
    z = model.encode(IMAGES.double(), SOURCE, [0.37, 0.71], solver="dopri5")
    for tau, state in zip((0.37, 0.71), z, strict=True):
        torch.testing.assert_close(state, double.flow(IMAGES.double(), SOURCE, 1.0, tau), atol=1e-3, rtol=0)


BAD = [
    ({"tau": -0.01}, "tau"),
    ({"tau": 1.01}, "tau"),
    ({"tau": math.nan}, "tau"),
    ({"tau": "0.3"}, "tau"),
    ({"guidance": -1.0}, "guidance"),
    ({"guidance": (1.0, -1.0)}, "guidance"),
    ({"guidance": (1.0, 1.0, 1.0)}, "guidance"),
    ({"steps": 0}, "steps"),
    ({"steps": 2.5}, "steps"),
    ({"solver": "ddim"}, "dopri5"),
    ({"grid": "cosine"}, "refined"),
    ({"source": 3}, "domain"),
    ({"source": -1}, "domain"),
    ({"source": True}, "domain"),
    ({"source": None}, "domain"),
    ({"target": "real-low"}, "synthetic, real, exposed"),
    ({"target": torch.tensor([0, 1])}, "shape"),
    ({"target": torch.tensor(1)}, "shape"),
    ({"target": torch.ones(6)}, "integers"),
    ({"target": torch.full((6,), 3)}, "domain"),
]


@pytest.mark.parametrize(("wrong", "told"), BAD)
def test_wrong_arguments_are_refused_before_anything_is_evaluated(wrong, told):
    counted = CountingVelocity(FIELD)
    arguments = {"source": 0, "target": 1, "tau": 0.3, **wrong}
    with pytest.raises(ParameterError, match=told):
        translator(counted).translate(IMAGES, arguments.pop("source"), arguments.pop("target"), **arguments)
    assert counted.calls == 0


def test_names_must_fit_the_number_of_domains():
    for names in (("a", "b"), ("a", "b", "b"), ("a", "b", "c", "d")):
        with pytest.raises(ParameterError, match="names"):
            MedShift(FIELD, IdentityCodec(), 3, names)
    with pytest.raises(ParameterError, match=r"0\.\.2"):
        MedShift(FIELD, IdentityCodec(), 3).translate(IMAGES, "real", 1, tau=0.3)
