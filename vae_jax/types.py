"""Aliases, base classes of distributions and families, and protocols of functions.

A `ModelSpec` names families: frozen, hashable dataclasses without arrays. What a family
builds is a `Distribution`, a pytree of arrays. A user's own class subclasses `Family`,
`Prior` or `Distribution`, supplies the methods that are missing, and declares as class
attributes what it can do beyond them; the defaults of these attributes stand here.

Shapes are written with one letter an axis: `S` Monte Carlo samples, `B` batch,
`D` data, `L` latent, `N` devices, `M` models of a sweep. Samples come first:
`z` is `[S, B, L]`. A model with several stochastic layers has a tuple of such
arrays for `z`; nothing outside its posterior, prior and decoder looks inside.
All log-densities are in nats and summed over data or latent dimensions.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
AnyArray = jax.Array | np.ndarray
"""An array of JAX or of NumPy, where either is taken."""
Labels = AnyArray | None
"""Integers `[B]` or weights of classes `[B, C]`; None for a model without labels."""
Key = jax.Array
"""A typed PRNG key, as `jax.random.key(seed)` makes it; consumed once."""
PyTree = Any
Latents = Any
"""`z`: an array `[S, B, L]`, or a tuple of such for several stochastic layers."""
Encode = Callable[[Array], "Distribution"]
Declared = Any
"""An attribute that a subclass sets, makes a field of its own, or computes.

A type checker takes `support = REAL`, without an annotation, for all three.
"""


class Network(Protocol):
    """A Linen module between arrays; `networks.py` adds the output layer.

    A user's own `flax.linen.Module` needs nothing but `__call__`. As an encoder it
    is given `x` as `[B, D]`, as a decoder latents as `[B, L]`, and it returns
    features `[B, H]` or, per position of an image, `[B, height, width, H]`. The
    output layer is then one dense map of the last axis (a 1x1 convolution for an
    image) to as many numbers as the family asks for. A module that declares a field
    `data_shape` and leaves it at None is given the spec's.
    """

    def __call__(self, inputs: Array, /) -> Array:
        """Maps `[B, D]` or `[B, L]` to features `[B, ..., H]`."""
        ...


class Distribution:
    """A distribution over the last axis of its arrays: q(z|x), p(z) or p(x|z).

    A subclass is a pytree of arrays. It defines `mean`, and of `sample` and
    `sample_and_log_prob` one at least: each is made of the other. Where it replaces
    `log_prob` or the draws of a parent it declares `has_entropy`, `mean_is_exact` and
    `maps_noise` anew, as those of the parent need not hold.

    The last axis holds the dimensions, the axes before it a batch: `[B, L]` for q(z|x),
    `[1, L]` or `[B, L]` for p(z), `[S, B, D]` for p(x|z). Of q(z|x) every array leads
    with the batch, so that an estimator may form a gradient for each example by itself;
    what all examples share (the weights of a flow) leads with an axis of 1.

    Attributes:
      mean: E[v], or a point to show (`mean_is_exact`), `[..., L]`.
      has_density: samples have a density or a probability. A point mass has none, so
        importance weights and a Monte Carlo KL do not exist.
      has_log_prob: `log_prob` takes any point. A flow may know the density of its own
        samples only.
      has_entropy: `entropy` has a closed form.
      mean_is_exact: `mean` is the expectation. Where it is not, what needs the
        expectation estimates it from samples (`active_units`).
      is_reparameterizable: the gradient flows through the samples. It does not through
        discrete ones, which the pathwise estimators refuse.
      is_enumerable: `enumerate_support` gives all values.
      maps_noise: `from_noise` takes standard normal noise to samples and `to_noise`
        samples to noise.
    """

    mean: Latents
    has_density: ClassVar[bool] = True
    has_log_prob: ClassVar[bool] = True
    has_entropy: ClassVar[bool] = False
    mean_is_exact: Declared = False
    is_reparameterizable: ClassVar[bool] = True
    is_enumerable: ClassVar[bool] = False
    maps_noise: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any):
        """Drops what a class inherits from a parent whose density or draws it replaces.

        Raises:
          TypeError: `has_log_prob` without `has_density`.
        """
        super().__init_subclass__(**options)
        parent = super(cls, cls)
        if any(
            name in vars(cls)
            and getattr(parent, name) is not getattr(Distribution, name)
            for name in ("log_prob", "sample", "sample_and_log_prob")
        ):
            for name in ("has_entropy", "mean_is_exact", "maps_noise"):
                if name not in vars(cls):
                    setattr(cls, name, False)
        if cls.has_log_prob and not cls.has_density:
            raise TypeError(
                f"{cls.__name__} declares has_density = False: declare "
                "has_log_prob = False, too"
            )

    def sample(self, key: Key, num_samples: int) -> Latents:
        """Draws `num_samples` of each distribution of the batch, `[S, ..., L]`."""
        if type(self).sample_and_log_prob is Distribution.sample_and_log_prob:
            raise NotImplementedError(
                f"{type(self).__name__} has neither sample nor sample_and_log_prob"
            )
        return self.sample_and_log_prob(key, num_samples)[0]

    def sample_and_log_prob(self, key: Key, num_samples: int) -> tuple[Latents, Array]:
        """Draws `[S, ..., L]` and their log-density, `[S, ...]`.

        The gradient with respect to the arrays must flow through the density and,
        unless the distribution declares otherwise, through the samples.
        """
        value = self.sample(key, num_samples)
        return value, self.log_prob(value)

    def log_prob(self, value: Latents) -> Array:
        """Log-density of values `[..., L]` that broadcast with the batch, `[...]`.

        Normalised, in nats, summed over the last axis. Values outside of the support
        are refused where they are known, and NaN where they are traced.
        """
        raise NotImplementedError(f"{type(self).__name__} has no log_prob")

    def entropy(self) -> Array:
        """Entropy in nats, summed over the last axis, `[...]`."""
        raise NotImplementedError(f"{type(self).__name__} has no entropy")

    def enumerate_support(self) -> Array:
        """All values, `[num_values, 1, L]`."""
        raise NotImplementedError(f"{type(self).__name__} has no enumerate_support")

    def from_noise(self, noise: Array) -> Array:
        """The sample that standard normal noise becomes, `[..., L]`."""
        raise NotImplementedError(f"{type(self).__name__} has no from_noise")

    def to_noise(self, value: Array) -> Array:
        """The noise that becomes the sample, the inverse of `from_noise`."""
        raise NotImplementedError(f"{type(self).__name__} has no to_noise")


class Family(ABC):
    """The distributions that outputs of a network become; a choice of a `ModelSpec`.

    One class serves as q(z|x), of the encoder's outputs, and as p(x|z), of the
    decoder's, where it declares both `latent_space` and `support`.

    Attributes:
      hyperparameters: entries of the family's own parameters that are real-valued
        settings and not weights: training leaves them alone.
      latent_space: the values of z, `"real"`, `"binary"` or a name of the user's own;
        None for a family of p(x|z) only. A `ModelSpec` refuses a posterior and a prior
        that differ: a probability and a density have no ratio.
      support: the values of x (`distributions.support.Support`); None for a family of
        q(z|x) only. Data outside are refused where they are known.
      has_log_prob: what it builds has `log_prob` at any point. A prior whose density is
        made of posteriors needs it.
      layers: the stochastic layers above the first, where z is a tuple; None where z
        is one array.
      begins_with_gaussian: the encoder's outputs begin with the mean and the
        log-variance, before `bound_log_var`, of each latent: `init(x=...)` then starts
        the posterior narrow.
    """

    hyperparameters: Declared = ()
    latent_space: ClassVar[str | None] = None
    support: Declared = None
    has_log_prob: ClassVar[bool] = True
    layers: Declared = None
    begins_with_gaussian: ClassVar[bool] = False

    @abstractmethod
    def num_outputs(self, dim: int) -> int:
        """How many numbers a network must give for `dim` dimensions.

        P * D, if a convolutional decoder is to give them.
        """

    def init(self, key: Key, *, dim: int) -> dict[str, PyTree]:
        """Parameters of the family's own (a flow's weights); `{}` for none."""
        return {}

    @abstractmethod
    def build(self, params: PyTree, outputs: Array) -> Distribution:
        """The distribution of a network's outputs, `[..., num_outputs]`.

        The P parameters of all dimensions follow one another: `[P, D]` flattened.
        """

    def output_bias(self, data_mean: Array) -> Array:
        """The decoder's output bias that starts it at the data's mean, `[P * D]`."""
        return jnp.zeros(self.num_outputs(data_mean.size), data_mean.dtype)

    def encoder_inputs(self, x: Array) -> Array:
        """Observations as an encoder takes them where this is p(x|z), `[B, D]`."""
        return x

    def start_at_variance(
        self, params: PyTree, bias: Array, data_variance: Array
    ) -> tuple[PyTree, Array]:
        """Own parameters and output bias at which a variance starts at the data's.

        `init(x=...)` calls it with the bias of `output_bias` and the variance of each
        dimension, `[D]`. A family that learns no variance gives both back.
        """
        return params, bias


Posterior = Distribution
"""q(z|x) of a batch."""


class Prior(ABC):
    """The choice of p(z); fixed, or with parameters of its own.

    Attributes:
      hyperparameters: as for `Family`.
      latent_space: as for `Family`; None for a mixture of posteriors, which is about
        the values of whatever posterior it is paired with.
      layers: as for `Family`.
      depends_on_labels: its parameters differ by class (`given`).
      num_classes: those of its labels; None for any number.
      is_mixture_of_posteriors: its density is made of those of `encode`. It needs a
        posterior with `log_prob`, and a model without labels, as it has none to give.
      is_reparameterizable: the gradient of E_p[f(z)] by the prior's parameters flows
        through its draws: none of them decides what is chosen (a component, a bit).
        Where it does not, the gradient is taken from `log_prob`, which is right for
        every prior and noisier.
    """

    hyperparameters: Declared = ()
    latent_space: ClassVar[str | None] = None
    layers: Declared = None
    depends_on_labels: ClassVar[bool] = False
    num_classes: Declared = None
    is_mixture_of_posteriors: ClassVar[bool] = False
    is_reparameterizable: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any):
        """Refuses a class whose methods or declarations would be ignored.

        Raises:
          TypeError: methods of a distribution; one of `given` and `depends_on_labels`
            without the other.
        """
        super().__init_subclass__(**options)
        for name in ("log_prob", "sample", "sample_and_log_prob"):
            if hasattr(cls, name):
                raise TypeError(
                    f"prior {cls.__name__} defines {name}, which nothing calls: "
                    "build must return a types.Distribution that defines it"
                )
        has_given = cls.given is not Prior.given
        if has_given != bool(cls.depends_on_labels):
            remedy = "declare depends_on_labels = True" if has_given else "define given"
            raise TypeError(
                f"prior {cls.__name__} must define given and declare "
                f"depends_on_labels = True, both or neither: {remedy}"
            )

    def init(
        self, key: Key, *, latent_dim: int, data_shape: tuple[int, ...]
    ) -> dict[str, PyTree]:
        """Parameters of the prior; `{}` for none."""
        return {}

    @abstractmethod
    def build(
        self, prior_params: PyTree, *, latent_dim: int, encode: Encode
    ) -> Distribution:
        """P(z), a batch of one; of parameters that are `given` labels, of B.

        `encode` is handed to it because the density of a VampPrior is a mixture of
        the encoder's posteriors at learned pseudo-inputs.
        """

    def given(self, prior_params: PyTree, labels: AnyArray) -> PyTree:
        """The parameters at labels `[B, C]`, for `build`, with a batch axis."""
        return prior_params


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
        /,
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
        /,
        *,
        axis_name: str | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """Returns the value to maximise and the figures to log."""
        ...
