"""Images whose sides a codec's stride does not divide: translated as their padded copies are, and cropped."""

import pytest
import torch
from torch.nn import functional as F

from medshift.baselines.direct_bridge import DirectBridgeConfig, DirectBridgeTraining
from medshift.baselines.hierarchy_flow import HierarchyFlowConfig, HierarchyFlowTraining
from medshift.codec import PatchCodec
from medshift.pairwise import Pair
from medshift.translate import Translator

PAIR = Pair("a", "b", ("a", "b"))


def codec() -> PatchCodec:
    return PatchCodec(2, mean=[0.1] * 4, std=[0.5] * 4)


def direct_bridge() -> Translator:
    config = DirectBridgeConfig(channels=(16, 16), norm_groups=1, head_channels=16)
    made = DirectBridgeTraining(codec(), PAIR, config)
    torch.nn.init.normal_(made.network.unet.get_submodule("conv_out").weight, std=0.1)  # else it changes nothing
    return made.translator()


def hierarchy_flow() -> Translator:
    made = HierarchyFlowTraining(codec(), PAIR, HierarchyFlowConfig(chunks=(3, 2), style_width=8))
    made.encoder.code.normal_()
    return made.translator()


@pytest.mark.parametrize("make", [direct_bridge, hierarchy_flow])
@pytest.mark.parametrize(("height", "width"), [(15, 18), (16, 13), (11, 17)])
def test_an_odd_image_is_translated_as_its_padded_copy_is(make, height, width, generator) -> None:
    torch.manual_seed(0)
    translator = make()
    images = torch.rand(2, 1, height, width, generator=generator) * 2 - 1
    padded = F.pad(images, (0, width % 2, 0, height % 2), mode="replicate")
    found = translator.translate(images, "a", "b")
    assert found.shape == images.shape and found.isfinite().all() and not found.requires_grad
    torch.testing.assert_close(found, translator.translate(padded, "a", "b")[..., :height, :width])
    assert (found - images).abs().mean() > 0.01
