"""A family of p(x|z) for counts of examples that were observed to different extents."""

from dataclasses import dataclass

import jax.numpy as jnp

from vae_jax.families.around import Around
from vae_jax.families.bounds import bound_log_var, unbound_log_var
from vae_jax.types import Array, Distribution, PyTree


@dataclass(frozen=True)
class Exposed(Around):
    """The family of counts whose means are the exposure times the decoder's rates.

    The exposure of an example (its library size, time or area) is given beside x, as
    `labels=Conditions(exposure=...)`; draws and means take one likewise. With the total
    of each row this is the scaling of scvi-tools (Lopez et al. 2018). `init(x=...)`
    needs it too, and starts at the mean rates.

    Attributes:
      base: `Poisson`, `NegativeBinomial` or `ZeroInflatedNegativeBinomial`.

    Raises:
      ValueError: another base.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import Conditions, Exposed, ModelSpec, Poisson, decode, init
      >>> spec = ModelSpec(likelihood=Exposed(Poisson()), data_shape=(3,))
      >>> given = Conditions(exposure=jnp.array([1.0, 10.0]))
      >>> params = init(spec, jax.random.key(0))
      >>> mean = decode(params, jnp.zeros((1, 2, 20)), labels=given).mean
      >>> print(mean[0, 1] / mean[0, 0])
      [10. 10. 10.]
    """

    covers_unit_interval = False
    takes_exposure = True

    def __post_init__(self):
        if not self.base.has_rates:
            raise ValueError(
                "base must be a family of counts with means, such as Poisson(), got "
                f"{self.base!r}"
            )

    @property
    def support(self):
        """That of the base."""
        return self.base.support

    def build(self, params: PyTree, outputs: Array) -> Distribution:
        """The base's distribution, its means times the entry `exposure`."""
        own, exposure = _apart(params)
        return self.base.build(own, outputs).times(exposure[:, None])

    def start_at_data(self, params: PyTree, x: Array) -> tuple[PyTree, Array]:
        """Start the base at counts scaled to the mean exposure e_0, as rates.

        A count of mean m, scaled from exposure e to e_0, has variance
        m (e_0 / e) + m^2 / r. The part due to scaling, m mean(e_0 / e - 1), is
        subtracted so that it does not enter the dispersion.
        """
        own, exposure = _apart(params)
        mean = jnp.mean(exposure)
        scale = mean / exposure_of_rows(params, len(x))
        x = x * scale
        own, bias = self.base.start_at_data(own, x)
        surplus = jnp.mean(x, axis=0) * jnp.mean(scale - 1)
        variance = jnp.var(x, axis=0) - surplus
        own, bias = self.base.start_at_variance(own, bias, variance)
        log_rate = bound_log_var(bias[: x.shape[-1]]) - jnp.log(mean)
        return own, bias.at[: x.shape[-1]].set(unbound_log_var(log_rate))


def exposure_of_rows(params: PyTree, num_rows: int) -> Array:
    """Exposure of each row of x, `[n, 1]`.

    A convolution's rows are positions, several of an example.
    """
    exposure = params["exposure"]
    return jnp.repeat(exposure, num_rows // len(exposure))[:, None]


def _apart(params: PyTree) -> tuple[PyTree, Array]:
    """Parameters of the base, and the exposure."""
    own = dict(params)
    exposure = own.pop("exposure")
    return own, exposure
