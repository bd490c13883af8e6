"""Normalizing-flow families of q(z|x): invertible steps on a diagonal Gaussian.

Planar, Householder and Sylvester steps take all their parameters from the encoder. Each
step of an inverse autoregressive flow has a network of its own, conditioned on a
context vector from the encoder. Flows without a tractable inverse have the density of
their own samples only, and no `log_prob`.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from vae_jax import bijectors
from vae_jax.distributions import (
    DiagonalGaussianDistribution,
    gaussian,
    register_kl,
)
from vae_jax.distributions.rounding import without_negative
from vae_jax.families.bounds import (
    CORRELATED_LOG_VAR_BOUND,
    bound_log_var,
    bound_ratio,
)
from vae_jax.types import Array, Distribution, Family, Key, PyTree


class FlowDistribution(Distribution):
    """Base of the flows; a subclass defines `start`, `log_var` and `move`."""

    start: Array
    log_var: Array
    has_log_prob: ClassVar[bool] = False

    @abstractmethod
    def move(self, z: Array) -> tuple[Array, Array]:
        """Transformed latents `[S, B, L]` and the log-determinant `[S, B]`."""

    def sample_and_log_prob(self, key: Key, num_samples: int) -> tuple[Array, Array]:
        """Samples `[S, B, L]` and their log q in nats, `[S, B]`.

            log q(z) = log N(z_0; start, diag(exp(log_var))) - sum_k log_det_k

        over the steps k (Rezende & Mohamed 2015, eq. 7).
        """
        z = gaussian.diagonal_sample(
            self.start, self.log_var, key, num_samples=num_samples
        )
        log_start = gaussian.diagonal_log_prob(z, self.start, self.log_var)
        z, log_det = self.move(z)
        return z, log_start - log_det

    @property
    def mean(self) -> Array:
        """Image of the base mean under the flow, exact if it is linear, `[B, L]`."""
        z, _ = self.move(self.start[None])
        return z[0]


class FlowFamily(Family):
    """Base of the flow families."""

    latent_space = "real"
    has_log_prob: ClassVar[bool] = False
    begins_with_gaussian: ClassVar[bool] = True


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PlanarDistribution(FlowDistribution):
    """A diagonal Gaussian transformed by K planar steps (`bijectors.planar`).

    Attributes:
      start: mean of the Gaussian, `[B, L]`.
      log_var: its log-variance, `[B, L]`.
      direction: `[B, K, L]`.
      normal: `[B, K, L]`.
      offset: `[B, K]`.
    """

    start: Array
    log_var: Array
    direction: Array
    normal: Array
    offset: Array

    def move(self, z: Array) -> tuple[Array, Array]:
        """See `FlowDistribution.move`."""
        log_det = jnp.zeros(z.shape[:-1], z.dtype)
        for k in range(self.offset.shape[-1]):
            z, step_log_det = bijectors.planar(
                z, self.direction[:, k], self.normal[:, k], self.offset[:, k]
            )
            log_det = log_det + step_log_det
        return z, log_det


@dataclass(frozen=True)
class Planar(FlowFamily):
    """Family of planar flows, Rezende & Mohamed 2015.

    Attributes:
      num_steps: K.

    Example:
      >>> from vae_jax import Planar
      >>> Planar(num_steps=4).num_outputs(dim=20)
      204
    """

    num_steps: int = 4

    def num_outputs(self, dim: int) -> int:
        """Outputs of the Gaussian, and a direction, normal and offset per step."""
        return 2 * dim + self.num_steps * (2 * dim + 1)

    def build(self, params: PyTree, outputs: Array) -> PlanarDistribution:
        """Split the encoder's outputs."""
        steps = self.num_steps
        latent_dim = (outputs.shape[-1] - steps) // (2 + 2 * steps)
        start, raw, rest = _split(outputs, latent_dim, latent_dim)
        direction, normal, offset = _split(rest, *[steps * latent_dim] * 2)
        shape = (-1, steps, latent_dim)
        return PlanarDistribution(
            start,
            bound_log_var(raw),
            direction.reshape(shape),
            normal.reshape(shape),
            offset,
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HouseholderDistribution(FlowDistribution):
    """A diagonal Gaussian rotated by K reflections: a correlated Gaussian.

    Attributes:
      start: mean before the reflections, `[B, L]`.
      log_var: log-variance before the reflections, `[B, L]`.
      reflections: `[B, K, L]`.
    """

    start: Array
    log_var: Array
    reflections: Array
    has_log_prob: ClassVar[bool] = True
    mean_is_exact = True  # The map is linear.

    def sample_and_log_prob(self, key: Key, num_samples: int) -> tuple[Array, Array]:
        """Samples `[S, B, L]` and their log q in nats, `[S, B]`.

        The noise is reflected by itself and the mean is added last. Reflected together,
        a mean much larger than the standard deviations would round the noise away.
        """
        zero = jnp.zeros_like(self.start)
        noise = gaussian.diagonal_sample(
            zero, self.log_var, key, num_samples=num_samples
        )
        log_q = gaussian.diagonal_log_prob(noise, zero, self.log_var)
        return self.mean + bijectors.reflect(noise, self.reflections), log_q

    def move(self, z: Array) -> tuple[Array, Array]:
        """Reflected latents `[S, B, L]` and the log-determinant, 0, `[S, B]`."""
        turned = bijectors.reflect(z, self.reflections)
        return turned, jnp.zeros(turned.shape[:-1], z.dtype)

    def log_prob(self, value: Array) -> Array:
        """Log q(z|x) in nats, summed over L: `[S, B]` for `[S, B, L]`."""
        noise = bijectors.reflect(value - self.mean, self.reflections[..., ::-1, :])
        return gaussian.diagonal_log_prob(noise, 0.0, self.log_var)


@register_kl(HouseholderDistribution, DiagonalGaussianDistribution)
def _householder_to_diagonal(
    q: HouseholderDistribution, p: DiagonalGaussianDistribution
) -> Array:
    """KL of the marginal variances S_ll, plus 1/2 log(prod_l S_ll / |S|)."""
    deviations = jnp.exp(0.5 * q.log_var)
    axes = jnp.eye(deviations.shape[-1], dtype=deviations.dtype)[:, None] * deviations
    turned = bijectors.reflect(axes, q.reflections)
    log_var = jnp.log(jnp.sum(jnp.square(turned), axis=0))
    correlated = without_negative(0.5 * jnp.sum(log_var - q.log_var, axis=-1))
    diagonal = gaussian.diagonal_kl_divergence(q.mean, log_var, p.mean, p.log_var)
    return diagonal + correlated


@dataclass(frozen=True)
class Householder(FlowFamily):
    """Family of Householder flows, Tomczak & Welling 2016.

    So that the density of the samples is accurate in float32, the standard deviations
    along the reflected axes stay between 2e-4 and 4.9e3 (`bound_log_var` at 17), and
    `bound_ratio` keeps every variance above 1e-4 of their mean.

    Attributes:
      num_steps: K reflections; L - 1 suffice for any covariance within these bounds.

    Example:
      >>> from vae_jax import Householder
      >>> Householder(num_steps=4).num_outputs(dim=20)
      120
    """

    num_steps: int = 4
    has_log_prob: ClassVar[bool] = True

    def num_outputs(self, dim: int) -> int:
        """Outputs of the Gaussian, and one vector per reflection."""
        return (2 + self.num_steps) * dim

    def build(self, params: PyTree, outputs: Array) -> HouseholderDistribution:
        """Split the encoder's outputs."""
        latent_dim = outputs.shape[-1] // (2 + self.num_steps)
        start, raw, rest = _split(outputs, latent_dim, latent_dim)
        reflections = rest.reshape(-1, self.num_steps, latent_dim)
        log_var = bound_ratio(bound_log_var(raw, bound=CORRELATED_LOG_VAR_BOUND))
        return HouseholderDistribution(start, log_var, reflections)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SylvesterDistribution(FlowDistribution):
    """A diagonal Gaussian transformed by K Sylvester steps (`bijectors.sylvester`).

    Attributes:
      start: mean of the Gaussian, `[B, L]`.
      log_var: its log-variance, `[B, L]`.
      reflections: `[B, K, H, L]`.
      diagonals: diagonals of both triangular matrices before bounding, `[B, K, 2, L]`.
      entries: their off-diagonal entries, `[B, K, 2, L (L - 1) / 2]`.
      offset: `[B, K, L]`.
    """

    start: Array
    log_var: Array
    reflections: Array
    diagonals: Array
    entries: Array
    offset: Array

    def move(self, z: Array) -> tuple[Array, Array]:
        """See `FlowDistribution.move`."""
        log_det = jnp.zeros(z.shape[:-1], z.dtype)
        for k in range(self.offset.shape[1]):
            outer, inner = (
                (self.diagonals[:, k, which], self.entries[:, k, which])
                for which in (0, 1)
            )
            z, step_log_det = bijectors.sylvester(
                z, self.reflections[:, k], outer, inner, self.offset[:, k]
            )
            log_det = log_det + step_log_det
        return z, log_det


@dataclass(frozen=True)
class Sylvester(FlowFamily):
    """Family of Householder-Sylvester flows, van den Berg et al. 2018.

    Attributes:
      num_steps: K.
      num_reflections: H, reflections per orthogonal matrix (one per step).

    Example:
      >>> from vae_jax import Sylvester
      >>> Sylvester(num_steps=1, num_reflections=4).num_outputs(dim=20)
      560
    """

    num_steps: int = 2
    num_reflections: int = 4

    def num_outputs(self, dim: int) -> int:
        """Outputs of the Gaussian and of each step."""
        return 2 * dim + self.num_steps * sum(self._sizes(dim))

    def _sizes(self, latent_dim: int) -> tuple[int, int, int, int]:
        """Outputs per step: reflections, diagonals, off-diagonal entries, offset."""
        others = latent_dim * (latent_dim - 1)
        return self.num_reflections * latent_dim, 2 * latent_dim, others, latent_dim

    def build(self, params: PyTree, outputs: Array) -> SylvesterDistribution:
        """Split the encoder's outputs."""
        latent_dim = next(
            size
            for size in range(1, outputs.shape[-1])
            if self.num_outputs(size) == outputs.shape[-1]
        )
        start, raw, rest = _split(outputs, latent_dim, latent_dim)
        steps = rest.reshape(-1, self.num_steps, sum(self._sizes(latent_dim)))
        reflections, diagonals, entries, offset = _split(
            steps, *self._sizes(latent_dim)[:-1]
        )
        batch = steps.shape[:2]
        return SylvesterDistribution(
            start,
            bound_log_var(raw),
            reflections.reshape(*batch, self.num_reflections, latent_dim),
            diagonals.reshape(*batch, 2, latent_dim),
            entries.reshape(*batch, 2, latent_dim * (latent_dim - 1) // 2),
            offset,
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class InverseAutoregressiveDistribution(FlowDistribution):
    """A diagonal Gaussian under gated autoregressive steps, Kingma et al. 2016.

        z' = sigma * z + (1 - sigma) * m
        log_det = sum_l log sigma_l

    For latent l, m and the logit of sigma are functions of the preceding latents and
    the context (their eq. 13 and 14). The order is reversed after every step.

    Attributes:
      start: mean of the Gaussian, `[B, L]`.
      log_var: its log-variance, `[B, L]`.
      context: conditioning input of the networks, `[B, C]`.
      steps: weights of each step's network, `[1, ...]`, or `[B, ...]` for separate
        weights per example.
    """

    start: Array
    log_var: Array
    context: Array
    steps: tuple[PyTree, ...]

    def move(self, z: Array) -> tuple[Array, Array]:
        """See `FlowDistribution.move`."""
        log_det = jnp.zeros(z.shape[:-1], z.dtype)
        for weights in self.steps:
            target, logit = bijectors.with_shared_weights(
                bijectors.autoregressive, weights, z, self.context
            )
            # Kingma et al. advise open gates at initialisation. The bound keeps every
            # gate above 0, where the density would be unbounded.
            logit = bound_log_var(logit + 1.5)
            gate = jax.nn.sigmoid(logit)
            z = (gate * z + (1 - gate) * target)[..., ::-1]
            log_det = log_det + jnp.sum(jax.nn.log_sigmoid(logit), axis=-1)
        return z, log_det


@dataclass(frozen=True)
class InverseAutoregressive(FlowFamily):
    """Family of inverse autoregressive flows, Kingma et al. 2016.

    Attributes:
      num_steps: K.
      hidden_dim: width of each step's network.
      context_dim: C, size of the context vector from the encoder.

    Example:
      >>> from vae_jax import InverseAutoregressive
      >>> InverseAutoregressive(context_dim=32).num_outputs(dim=20)
      72
    """

    num_steps: int = 2
    hidden_dim: int = 100
    context_dim: int = 32

    def num_outputs(self, dim: int) -> int:
        """Outputs of the Gaussian, and the context."""
        return 2 * dim + self.context_dim

    def init(self, key: Key, *, dim: int) -> dict[str, PyTree]:
        """`step_0`, `step_1`, ...: weights of each step's network."""
        return {
            f"step_{k}": bijectors.init_autoregressive(
                jax.random.fold_in(key, k),
                latent_dim=dim,
                hidden_dim=self.hidden_dim,
                context_dim=self.context_dim,
            )
            for k in range(self.num_steps)
        }

    def build(
        self, params: PyTree, outputs: Array
    ) -> InverseAutoregressiveDistribution:
        """Split the encoder's outputs; all examples share the networks."""
        latent_dim = (outputs.shape[-1] - self.context_dim) // 2
        start, raw, context = _split(outputs, latent_dim, latent_dim)
        shared = jax.tree.map(lambda leaf: leaf[None], params)
        steps = tuple(shared[f"step_{k}"] for k in range(self.num_steps))
        return InverseAutoregressiveDistribution(
            start, bound_log_var(raw), context, steps
        )


def _split(outputs: Array, *sizes: int) -> list[Array]:
    """Split the last axis into parts of the given sizes and the remainder."""
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    return jnp.split(outputs, ends, axis=-1)
