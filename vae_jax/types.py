"""Aliases and the protocols that a user's own family, likelihood or network obeys.

Nothing here computes. Each protocol says what an implementer must supply; the
classes of `posteriors.py`, `priors.py` and `likelihoods.py` are the examples. A
family goes into a `ModelSpec`, so it is a frozen, hashable dataclass without
arrays; what it builds (`Posterior`, `Likelihood`) is a pytree of arrays.

Shapes are written with one letter an axis: `S` Monte Carlo samples, `B` batch,
`D` data, `L` latent, `N` devices, `M` models of a sweep. Samples come first:
`z` is `[S, B, L]`. A model with several stochastic layers has a tuple of such
arrays for `z`; nothing outside its posterior, prior and decoder looks inside.
All log-densities are in nats and summed over data or latent dimensions.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import jax

Array = jax.Array
Key = jax.Array
"""A typed PRNG key, as `jax.random.key(seed)` makes it; consumed once."""
PyTree = Any
Latents = Any
"""`z`: an array `[S, B, L]`, or a tuple of such for several stochastic layers."""
Encode = Callable[[Array], "Posterior"]


class Network(Protocol):
    """A Linen module between arrays; `networks.py` adds the output layer.

    A user's own `flax.linen.Module` needs nothing but `__call__`. As an encoder it
    is given `x` as `[B, D]`, as a decoder latents as `[B, L]`, and it returns
    features `[B, H]` or, per position of an image, `[B, height, width, H]`. The
    output layer is then one dense map of the last axis (a 1x1 convolution for an
    image) to as many numbers as the posterior or likelihood asks for. A module
    that declares a field `data_shape` and leaves it at None is given the spec's.
    """

    def __call__(self, inputs: Array) -> Array:
        """Maps `[B, D]` or `[B, L]` to features `[B, ..., H]`."""
        ...


class Posterior(Protocol):
    """q(z|x) for a batch: a pytree that knows its family.

    `has_density` is False for a point mass, for which importance weights and a
    Monte Carlo KL do not exist. A family whose density is cheap at any point adds
    `log_prob(z) -> [S, B]`; a flow that knows the density only of what it sampled
    leaves it out, and an estimator that needs it says so in a `ValueError`.

    A discrete family sets `is_reparameterizable = False`: no gradient flows through
    its samples, and the pathwise estimators refuse it. Where the attribute is absent
    the samples are taken to be differentiable.

    `mean_is_exact = True` declares that `mean` is E[z|x] and not only a point to show.
    Where the attribute is absent it is taken for a point, and what needs the
    expectation estimates it from samples (`active_units`).

    The leading axis of every array is the batch, so that an estimator may form a
    gradient of its own for each of them, and every example may have a q of its own.
    What all examples share (the weights of a flow) leads with an axis of 1.
    """

    has_density: ClassVar[bool]

    def sample_and_log_prob(self, key: Key, num_samples: int) -> tuple[Latents, Array]:
        """Draws samples `[S, B, L]` and their log q, `[S, B]`.

        The gradient with respect to the posterior's arrays must flow through the
        density and, unless the family is discrete, through the samples.
        """
        ...

    @property
    def mean(self) -> Latents:
        """The mean of q(z|x), or a point to show (`mean_is_exact`), `[B, L]`."""
        ...


class PosteriorFamily(Protocol):
    """The choice of q(z|x) that a `ModelSpec` names; builds `Posterior`s.

    `hyperparameters` names the entries of the family's own parameters that are
    real-valued settings and not weights: training leaves them alone.

    A `ModelSpec` compares what the two families of latents declare as class
    attributes, and refuses a pair that differs:

    - `latent_space`: the values of z, `"real"` or `"binary"`, or a name of the user's
      own. A probability and a density are of different measures, so that log p(z) -
      log q(z|x) means nothing for a pair of one each.
    - `has_log_prob`: whether what it builds has `log_prob` at any point. A prior whose
      density is made of posteriors needs it.
    - `layers`: the stochastic layers above the first, where z is a tuple.

    A family that leaves out the first or the second is not checked for it: the caller
    vouches for the pair. One that leaves out the third has a single array for z.

    `begins_with_gaussian = True` declares that the encoder's outputs begin with the
    mean and the log-variance, before `bound_log_var`, of each latent: `init(x=...)`
    then starts the posterior narrow.
    """

    hyperparameters: tuple[str, ...]

    def num_outputs(self, latent_dim: int) -> int:
        """How many numbers an encoder must give for each example."""
        ...

    def init(self, key: Key, *, latent_dim: int) -> dict[str, PyTree]:
        """Parameters of the family's own (a flow's weights); `{}` for none."""
        ...

    def build(self, posterior_params: PyTree, outputs: Array) -> Posterior:
        """Makes the posterior of the encoder's outputs `[B, num_outputs]`."""
        ...


class Prior(Protocol):
    """The choice of p(z); fixed, or with parameters of its own.

    `encode` is handed to it because the density of a VampPrior is a mixture of
    the encoder's posteriors at learned pseudo-inputs. A prior that depends on labels
    adds `given(prior_params, labels [B, C])`, which returns the parameters that the
    other methods take, with a batch axis, and declares `num_classes`.

    It declares `latent_space` and `layers` as a `PosteriorFamily` does. A prior on the
    values of whatever posterior it is paired with leaves `latent_space` out. One whose
    density calls `encode`, and `log_prob` of what that returns, declares
    `is_mixture_of_posteriors = True`: it needs a posterior with that method, and a
    model without labels, as it has none to give.

    `is_reparameterizable = True` declares that the gradient of E_p[f(z)] by the prior's
    parameters flows through its draws: none of them decides what is chosen (a
    component, a bit), and where `encode` is called, its posterior's samples are
    differentiable. Where the attribute is absent the gradient is taken from `log_prob`,
    which is right for every prior and noisier.
    """

    hyperparameters: tuple[str, ...]

    def init(
        self, key: Key, *, latent_dim: int, data_shape: tuple[int, ...]
    ) -> dict[str, PyTree]:
        """Parameters of the prior; `{}` for none."""
        ...

    def log_prob(self, prior_params: PyTree, z: Latents, *, encode: Encode) -> Array:
        """Log p(z) of `[S, B, L]`, as `[S, B]`."""
        ...

    def sample(
        self,
        prior_params: PyTree,
        key: Key,
        *,
        num_samples: int,
        latent_dim: int,
        encode: Encode,
    ) -> Latents:
        """Draws from p(z), `[num_samples, L]`."""
        ...


class Likelihood(Protocol):
    """p(x|z) at given latents: a pytree that knows its family.

    The arrays have the leading axes of the latents: `[S, B, D]` for `[S, B, L]`.
    """

    def log_prob(self, x: Array) -> Array:
        """Log p(x|z) of `x` `[B, D]` in nats, summed over D, as `[S, B]`.

        Normalised: a density whose constant is kept, or a probability.
        """
        ...

    @property
    def mean(self) -> Array:
        """E[x|z], `[S, B, D]`."""
        ...

    def sample(self, key: Key) -> Array:
        """Draws x given z, `[S, B, D]`."""
        ...


class LikelihoodFamily(Protocol):
    """The choice of p(x|z) that a `ModelSpec` names; builds `Likelihood`s.

    A family of other values than all real numbers declares them as an attribute
    `support` (`distributions.support.Support`): data outside is refused where it is
    known, and its `log_prob` should be NaN there (`Support.nan_outside`).

    A family that learns a variance may add `start_at_variance(likelihood_params, bias,
    data_variance [D]) -> (likelihood_params, bias)`, by which `init(x=...)` starts it
    at the data's variance around the mean that `output_bias` was given.
    """

    hyperparameters: tuple[str, ...]

    def num_outputs(self, data_dim: int) -> int:
        """How many numbers a decoder must give for D data dimensions.

        P * D, if a convolutional decoder is to give them.
        """
        ...

    def init(self, key: Key, *, data_dim: int) -> dict[str, PyTree]:
        """Parameters of the family's own (a learned variance); `{}` for none."""
        ...

    def build(self, likelihood_params: PyTree, outputs: Array) -> Likelihood:
        """Makes the likelihood of the decoder's outputs `[..., P * D]`.

        The P parameters of all dimensions follow one another: `[P, D]` flattened.
        """
        ...

    def output_bias(self, data_mean: Array) -> Array:
        """The decoder's output bias that starts it at the data's mean, `[P * D]`."""
        ...


class Estimator(Protocol):
    """A Monte Carlo estimate of E_q[f(z)] with a gradient of its own.

    The value is always the plain estimate; the gradient is the estimator's:
    `stop_gradient(value) + (surrogate - stop_gradient(surrogate))` keeps the first
    exact however large the second is.

    The integrand is called with latents `[S, B, L]` and their log q `[S, B]` and
    returns an array `[S, B]` or a pytree of such; each is estimated. `reduction`
    takes `[S, B]` to `[B]`: the mean for an expectation, log-mean-exp for an
    importance-weighted bound, so that multi-sample estimators obey the same
    protocol as single-sample ones.

    With `has_aux` the integrand returns a pair `(values, aux)`, as for
    `jax.value_and_grad`, and so does the estimator: auxiliary outputs, arrays `[S, B]`
    too, are estimated from the same draws as expectations, constants. What a training
    step logs costs no second pass that way. Other options are keywords of an
    estimator's own, given with `functools.partial`.
    """

    def __call__(
        self,
        integrand: Callable[[Latents, Array], PyTree],
        posterior: Posterior,
        key: Key,
        *,
        num_samples: int,
        reduction: Callable[[Array], Array] = ...,
        has_aux: bool = ...,
    ) -> PyTree:
        """Returns the estimate for each example, `[B]` for each `[S, B]`."""
        ...


class Objective(Protocol):
    """What a training step maximises.

    `step` is the number of the training step, for schedules. The scalar is the
    batch mean in nats; `metrics` are scalars to log, batch means as well.

    `axis_name` is the mapped axis of devices, given where there are several. Of a mean
    over examples the devices' gradients are averaged, and it may be ignored. What is
    not linear in such a mean averages it over that axis first (`jax.lax.pmean`), so
    that N devices are one; what compares examples with one another refuses.
    """

    def __call__(
        self,
        params: PyTree,
        x: Array,
        key: Key,
        step: Array,
        *,
        axis_name: str | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """Returns the value to maximise and the figures to log."""
        ...
