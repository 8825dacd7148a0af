"""Domains whose velocity, legs and translations are known in closed form.

For x_t = (1 - t) noise + t x_1 (sigma_min = 0) and x_1 ~ N(mu, s² I) the marginal is N(t mu, c(t)² I) with
c² = (1-t)² + t² s², the velocity is mu + (c'/c)(x - t mu), and the flow between two times is affine:
x_u = u mu + (c(u)/c(t)) (x_t - t mu). With a covariance S the same holds for C(t) = (1-t)² I + t² S, which
commutes with S. A mixture's velocity is the mean of its components' under the posterior p(component | x_t);
in one dimension its flow keeps the order of points, so it is the quantile map between the marginals.

Labels are 0..K-1, and K, the null label, is the equal mixture of all domains. Points are (B, ...) of any
shape, flattened to (B, D).
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class IdentityCodec:
    """Images are their own latents."""

    def encode(self, image: Tensor) -> Tensor:
        """The image."""
        return image

    def decode(self, latent: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """The latent, cropped to `size`."""
        return latent if size is None else latent[..., : size[0], : size[1]]


def _column(t: Tensor | float, x: Tensor) -> Tensor:
    return torch.as_tensor(t, dtype=x.dtype).reshape(-1, 1)


def std(t: Tensor | float, s: Tensor) -> Tensor:
    """c(t), broadcast."""
    t = torch.as_tensor(t, dtype=s.dtype)
    return ((1 - t) ** 2 + t**2 * s**2).sqrt()


class GaussianMixtures:
    """K domains, each a mixture of M isotropic Gaussians in D dimensions.

    Args:
        means: (K, M, D).
        stds: (K, M).
        weights: (K, M), or None for equal ones.
    """

    def __init__(self, means: Tensor, stds: Tensor, weights: Tensor | None = None) -> None:
        self.n_domains = len(means)
        weights = torch.ones_like(stds) if weights is None else weights
        weights = weights / weights.sum(1, keepdim=True)
        k, m, d = means.shape
        # Row `label` weighs the components that this label may come from; the last row is the null label.
        self.weights = torch.zeros(k + 1, k * m, dtype=means.dtype)
        for domain in range(k):
            self.weights[domain, domain * m : (domain + 1) * m] = weights[domain]
        self.weights[k] = self.weights[:k].mean(0)
        self.means, self.stds = means.reshape(k * m, d), stds.reshape(k * m)

    def responsibilities(self, x: Tensor, t: Tensor | float, label: Tensor) -> Tensor:
        """p(component | x_t, label), (B, K M), for x (B, D)."""
        t = _column(t, x)
        c = std(t, self.stds)
        distance = (x[:, None] - t[..., None] * self.means).square().sum(-1)
        log = self.weights[label].log() - self.means.shape[1] * c.log() - distance / (2 * c**2)
        return log.softmax(1)

    def __call__(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """The velocity, shaped like x."""
        flat, t = x.flatten(1), _column(t, x)
        c2 = std(t, self.stds) ** 2
        rate = (t * self.stds**2 - (1 - t)) / c2
        each = self.means + rate[..., None] * (flat[:, None] - t[..., None] * self.means)
        return (self.responsibilities(flat, t, label)[..., None] * each).sum(1).reshape(x.shape)

    def sample(self, domain: int, n: int, generator: torch.Generator) -> Tensor:
        """Points (n, D) of a domain."""
        component = torch.multinomial(self.weights[domain], n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[component] + self.stds[component, None] * noise

    def flow_1d(self, x: Tensor, domain: int, t: float, u: float) -> Tensor:
        """The exact flow of a domain from time t to time u in one dimension, by quantiles; x (n,)."""

        def cdf(points: Tensor, time: float) -> Tensor:
            z = (points[:, None] - time * self.means[:, 0]) / std(time, self.stds)
            return (self.weights[domain] * torch.special.ndtr(z)).sum(1)

        rank = cdf(x, t)
        low, high = torch.full_like(x, -50.0), torch.full_like(x, 50.0)
        for _ in range(80):
            middle = (low + high) / 2
            below = cdf(middle, u) < rank
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


class IsotropicGaussians(GaussianMixtures):
    """K domains N(mean_k, std_k² I).

    Args:
        means: (K, D).
        stds: sequence of K.
    """

    def __init__(self, means: Tensor, stds: Sequence[float]) -> None:
        s = torch.tensor(stds, dtype=means.dtype)
        super().__init__(means[:, None], s[:, None])

    def flow(self, x: Tensor, label: Tensor, t: float, u: float) -> Tensor:
        """The exact flow of each sample's domain from time t to time u, shaped like x (B, ...)."""
        mean, s = self.means[label], self.stds[label, None]
        return (u * mean + std(u, s) / std(t, s) * (x.flatten(1) - t * mean)).reshape(x.shape)

    def transport(self, x: Tensor, source: Tensor, target: Tensor, tau: float) -> Tensor:
        """mu_B + (s_B / c_B) [tau (mu_A - mu_B) + (c_A / s_A)(x - mu_A)], shaped like x (B, ...)."""
        mean_a, mean_b = self.means[source], self.means[target]
        s_a, s_b = self.stds[source, None], self.stds[target, None]
        inner = tau * (mean_a - mean_b) + std(tau, s_a) / s_a * (x.flatten(1) - mean_a)
        return (mean_b + s_b / std(tau, s_b) * inner).reshape(x.shape)


class Gaussians:
    """K domains N(mean_k, covariance_k).

    Args:
        means: (K, D).
        covariances: (K, D, D), positive definite.
    """

    def __init__(self, means: Tensor, covariances: Tensor) -> None:
        self.n_domains = len(means)
        self.means, self.covariances = means, covariances

    def noised(self, domain: int, t: float) -> Tensor:
        """C(t), (D, D)."""
        identity = torch.eye(self.means.shape[1], dtype=self.means.dtype)
        return (1 - t) ** 2 * identity + t**2 * self.covariances[domain]

    def __call__(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """The velocity mu + (t S - (1-t) I) C(t)^-1 (x - t mu), shaped like x."""
        flat, t = x.flatten(1), _column(t, x)
        identity = torch.eye(flat.shape[1], dtype=x.dtype)
        mean, covariance, t3 = self.means[label], self.covariances[label], t[..., None]
        noised = (1 - t3) ** 2 * identity + t3**2 * covariance
        whitened = torch.linalg.solve(noised, (flat - t * mean)[..., None])
        return (mean + ((t3 * covariance - (1 - t3) * identity) @ whitened)[..., 0]).reshape(x.shape)

    def transport(self, x: Tensor, a: int, b: int, tau: float) -> Tensor:
        """mu_B + S_B^½ C_B^-½ [tau (mu_A - mu_B) + C_A^½ S_A^-½ (x - mu_A)] for x (B, D)."""
        encode = _root(self.noised(a, tau)) @ torch.linalg.inv(_root(self.covariances[a]))
        decode = _root(self.covariances[b]) @ torch.linalg.inv(_root(self.noised(b, tau)))
        inner = tau * (self.means[a] - self.means[b]) + (x - self.means[a]) @ encode.T
        return self.means[b] + inner @ decode.T


def kl(mean_p: float, std_p: float, mean_q: float, std_q: float) -> float:
    """KL(N(mean_p, std_p²) ‖ N(mean_q, std_q²)) in nats."""
    ratio = torch.tensor(std_p / std_q, dtype=torch.float64)
    return float((ratio**2 + ((mean_p - mean_q) / std_q) ** 2 - 1) / 2 - ratio.log())


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.sqrt()) @ vectors.T
