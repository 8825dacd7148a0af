"""Which module holds which method. No torch: the plans of the comparison read it too."""

from __future__ import annotations

from collections.abc import Mapping

# kind of a checkpoint -> module, training class, configuration
TRAINED: Mapping[str, tuple[str, str, str]] = {
    "medshift-same-budget": ("medshift.baselines.same_budget", "SameBudgetTraining", "SameBudgetConfig"),
    "two-networks": ("medshift.baselines.two_networks", "TwoNetworksTraining", "TwoNetworksConfig"),
    "cyclegan": ("medshift.baselines.cyclegan", "CycleGANTraining", "CycleGANConfig"),
    "cut": ("medshift.baselines.cut", "CUTTraining", "CUTConfig"),
    "cyclegan-turbo-style": ("medshift.baselines.cyclegan_turbo", "CycleGANTurboTraining", "CycleGANTurboConfig"),
    "unsb": ("medshift.baselines.unsb", "UNSBTraining", "UNSBConfig"),
    "hierarchy-flow": ("medshift.baselines.hierarchy_flow", "HierarchyFlowTraining", "HierarchyFlowConfig"),
    "direct-bridge": ("medshift.baselines.direct_bridge", "DirectBridgeTraining", "DirectBridgeConfig"),
    "direct-bridge-reflow": ("medshift.baselines.direct_bridge", "ReflowTraining", "ReflowConfig"),
    "paired-regressor": ("medshift.baselines.paired_regressor", "PairedRegressorTraining", "PairedRegressorConfig"),
    "cdtsde": ("medshift.paired.cdtsde", "CDTSDETraining", "CDTSDEConfig"),
    "brownian-bridge": ("medshift.paired.brownian", "BrownianTraining", "BrownianConfig"),
    "ddbm": ("medshift.paired.dbim", "DDBMTraining", "DDBMConfig"),
    "pix2pix": ("medshift.paired.pix2pix", "Pix2PixTraining", "Pix2PixConfig"),
}

# On top of a trained MedShift, without training.
FREE_MODULES: Mapping[str, tuple[str, str]] = {
    "medshift": ("medshift.methods", "itself"),
    "sdedit": ("medshift.baselines.fresh_noise", "FreshNoise"),
    "ddib": ("medshift.baselines.dual_bridge", "DualBridge"),
    "forward-noised": ("medshift.baselines.forward_noised", "ForwardNoised"),
    "cycle-diffusion": ("medshift.baselines.cycle_diffusion", "CycleDiffusion"),
    "edit-friendly": ("medshift.baselines.cycle_diffusion", "EditFriendly"),
    "flow-edit": ("medshift.baselines.flow_edit", "FlowEdit"),
    "rf-solver": ("medshift.baselines.rf_solver", "RFSolver"),
    "exact-inverse": ("medshift.baselines.exact_inverse", "ExactInverse"),
}

# From unpaired training images (N,1,H,W) of every domain, without a network.
FLOORS: Mapping[str, tuple[str, str]] = {
    "histogram": ("medshift.baselines.histogram", "HistogramMatch"),
    "blur-tone": ("medshift.baselines.blur_tone", "BlurTone"),
    "fourier": ("medshift.baselines.fourier", "FourierAmplitude"),
    "nearest": ("medshift.baselines.nearest", "NearestTarget"),
    "physics-fit": ("medshift.baselines.physics_fit", "PhysicsFit"),
}

# Trained methods that are built on the network of another training -> the keyword under which they take it.
BUILT_ON: Mapping[str, str] = {"cyclegan-turbo-style": "base", "direct-bridge-reflow": "teacher"}

# Made of more than a model or images: attention of a network with style images, line integrals.
OTHERS: Mapping[str, tuple[str, str]] = {
    "z-star": ("medshift.baselines.z_star", "ZStar"),
    "resimulation": ("medshift.baselines.resimulation", "Resimulation"),
}
