"""Other ways to evaluate the same network, with the same weights: what `make bench` measures ours against.

A peer has a ``name``, a ``module`` with the mapped weights, ``leg(x, label, knots, scale)``, which carries latents
(B, C, H, W) over the knots by Euler steps at a guidance scale, and ``loss(latents, label, generator)`` for training.
"""
