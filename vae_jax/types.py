"""Type aliases, base classes of distributions and families, and function protocols.

A `ModelSpec` names families: frozen, hashable dataclasses without arrays. A family
builds a `Distribution`, a pytree of arrays. A custom class subclasses `Family`, `Prior`
or `Distribution`, implements the missing methods, and declares optional capabilities as
class attributes, whose defaults are defined here.

Shapes use one letter per axis: `S` Monte Carlo samples, `B` batch, `D` data, `L`
latent, `N` devices, `M` models of a sweep. The sample axis comes first: `z` is
`[S, B, L]`. In a model with several stochastic layers, `z` is a tuple of such arrays,
which only its posterior, prior and decoder unpack. All log-densities are in nats and
summed over data or latent dimensions.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
AnyArray = jax.Array | np.ndarray
"""A JAX or NumPy array, where both are accepted."""


class Conditions(NamedTuple):
    """Inputs of a model for each example beside `x`, in the place of labels.

    Every function that takes `labels` takes it. What the spec asks for must be there,
    and what it has no use for must not.

    Attributes:
      labels: of a spec with `num_classes`: integers `[B]`, or class weights `[B, C]`.
      covariates: of a spec with `num_covariates`: finite numbers, `[B, C]`, such as
        batch, dose or age; best of about unit scale.
      exposure: of a likelihood that is `Exposed`: positive factors of its means, `[B]`.
    """

    labels: AnyArray | None = None
    covariates: AnyArray | None = None
    exposure: AnyArray | None = None


Labels = AnyArray | Conditions | None
"""Integers `[B]` or class weights `[B, C]`; None for a model without labels."""
Key = jax.Array
"""A typed PRNG key, as returned by `jax.random.key(seed)`; consumed once."""
PyTree = Any
Latents = Any
"""`z`: an array `[S, B, L]`, or a tuple of arrays for several stochastic layers."""
Encode = Callable[[Array], "Distribution"]
Declared = Any
"""An attribute that a subclass sets, redeclares as a field, or computes.

Type checkers accept all three, including `support = REAL` without an annotation.
"""


class Network(Protocol):
    """A Linen module from arrays to arrays; `networks` adds the output layer.

    A custom `flax.linen.Module` needs only `__call__`. An encoder receives `x` as
    `[B, D]`, a decoder receives latents as `[B, L]`. It returns features `[B, H]` or,
    per position of an image, `[B, height, width, H]`. The output layer is a dense map
    of the last axis (a 1x1 convolution for an image) to the number of outputs that the
    family requires. If a module has a field `data_shape` with value None, it is set to
    that of the spec.
    """

    def __call__(self, inputs: Array, /) -> Array:
        """Map `[B, D]` or `[B, L]` to features `[B, ..., H]`."""
        ...


class Distribution:
    """A distribution over the last axis of its arrays: q(z|x), p(z) or p(x|z).

    A subclass is a pytree of arrays. It defines `mean` and at least one of `sample` and
    `sample_and_log_prob`; each has a default in terms of the other. A subclass that
    overrides `log_prob` or the sampling methods of a parent must declare `has_entropy`,
    `mean_is_exact` and `maps_noise` again, because the values of the parent need not
    hold.

    The last axis holds the dimensions; leading axes are batch axes: `[B, L]` for
    q(z|x), `[1, L]` or `[B, L]` for p(z), `[S, B, D]` for p(x|z). The first axis of
    every array of q(z|x) is the batch, so that estimators can form per-example
    gradients; arrays shared by all examples (the weights of a flow) have a leading axis
    of size 1.

    Attributes:
      mean: E[v], or a representative point (see `mean_is_exact`), `[..., L]`.
      has_density: samples have a density or a probability. A point mass has none, so
        importance weights and a Monte Carlo KL do not exist.
      has_log_prob: `log_prob` is defined at any point. A flow may have a tractable
        density only at its own samples.
      has_entropy: `entropy` has a closed form.
      mean_is_exact: `mean` is the expectation. If False, functions that need the
        expectation estimate it from samples (`active_units`).
      is_reparameterizable: gradients flow through the samples. False for discrete
        samples, which the pathwise estimators reject.
      is_enumerable: `enumerate_support` returns all values.
      maps_noise: `from_noise` maps standard normal noise to samples and `to_noise` maps
        samples to noise.
      factorizes: dimensions are independent, and `log_prob_per_dimension` gives the
        terms of `log_prob`; what is missing is then left out.
    """

    mean: Latents
    has_density: ClassVar[bool] = True
    has_log_prob: ClassVar[bool] = True
    has_entropy: ClassVar[bool] = False
    mean_is_exact: Declared = False
    is_reparameterizable: ClassVar[bool] = True
    is_enumerable: ClassVar[bool] = False
    maps_noise: ClassVar[bool] = False
    factorizes: Declared = False

    def __init_subclass__(cls, **options: Any):
        """Reset the inherited capabilities that an overridden method may invalidate.

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
            for name in ("has_entropy", "mean_is_exact", "maps_noise", "factorizes"):
                if name not in vars(cls):
                    setattr(cls, name, False)
        if cls.has_log_prob and not cls.has_density:
            raise TypeError(
                f"{cls.__name__} declares has_density = False: declare "
                "has_log_prob = False, too"
            )

    def sample(self, key: Key, num_samples: int) -> Latents:
        """Draw `num_samples` from each distribution of the batch, `[S, ..., L]`."""
        if type(self).sample_and_log_prob is Distribution.sample_and_log_prob:
            raise NotImplementedError(
                f"{type(self).__name__} has neither sample nor sample_and_log_prob"
            )
        return self.sample_and_log_prob(key, num_samples)[0]

    def sample_and_log_prob(self, key: Key, num_samples: int) -> tuple[Latents, Array]:
        """Draw samples `[S, ..., L]` with their log-density, `[S, ...]`.

        The gradient with respect to the arrays must flow through the density and,
        unless `is_reparameterizable` is False, through the samples.
        """
        value = self.sample(key, num_samples)
        return value, self.log_prob(value)

    def log_prob(self, value: Latents) -> Array:
        """Log-density of values `[..., L]` that broadcast with the batch, `[...]`.

        Normalised, in nats, summed over the last axis. Concrete values outside the
        support raise ValueError; traced ones give NaN.
        """
        raise NotImplementedError(f"{type(self).__name__} has no log_prob")

    def log_prob_per_dimension(self, value: Array) -> Array:
        """The terms of `log_prob`, `[..., D]`; NaN outside of the support."""
        raise NotImplementedError(
            f"{type(self).__name__} has no log_prob_per_dimension"
        )

    def given_totals(self, x: Array) -> "Distribution":
        """Distribution of replications of `x`, of the same totals where they are given.

        Override it if log p(x) is conditional on the total of each example.
        """
        return self

    def times(self, factor: Array) -> Any:
        """The distribution of counts whose means are `factor` times as large."""
        raise NotImplementedError(f"{type(self).__name__} has no times")

    def entropy(self) -> Array:
        """Entropy in nats, summed over the last axis, `[...]`."""
        raise NotImplementedError(f"{type(self).__name__} has no entropy")

    def enumerate_support(self) -> Array:
        """All values, `[num_values, 1, L]`."""
        raise NotImplementedError(f"{type(self).__name__} has no enumerate_support")

    def from_noise(self, noise: Array) -> Array:
        """Map standard normal noise to a sample, `[..., L]`."""
        raise NotImplementedError(f"{type(self).__name__} has no from_noise")

    def to_noise(self, value: Array) -> Array:
        """Map a sample to its noise, the inverse of `from_noise`."""
        raise NotImplementedError(f"{type(self).__name__} has no to_noise")


class Family(ABC):
    """A map from network outputs to distributions; a field of a `ModelSpec`.

    A class that declares both `latent_space` and `support` serves as q(z|x), built from
    the encoder's outputs, and as p(x|z), built from the decoder's.

    Attributes:
      hyperparameters: entries of the family's own parameters that are real-valued
        settings rather than weights; training does not change them.
      latent_space: values of z: `"real"`, `"binary"` or a custom name; None for a
        family of p(x|z) only. A `ModelSpec` rejects a posterior and a prior that
        differ, since the ratio of a probability and a density is undefined.
      support: values of x (`distributions.support.Support`); None for a family of
        q(z|x) only. Concrete data outside the support raise ValueError.
      has_log_prob: the distributions it builds have `log_prob` at any point, which a
        prior that is a mixture of posteriors requires.
      layers: stochastic layers above the first, if z is a tuple; None if z is one
        array.
      begins_with_gaussian: the encoder's outputs begin with the mean and the
        log-variance (before `bound_log_var`) of each latent; `init(x=...)` then starts
        the posterior narrow.
      covers_unit_interval: as p(x|z), its encoder inputs at x between 0 and 1 cover
        those of data, at least of data so scaled; False for codes, counts and columns
        in their own units. A VampPrior, whose pseudo-inputs lie there, requires it.
      has_rates: the first D outputs are logs of means (before `bound_log_var`), and
        what it builds has `times(factor)`, with means that much larger.
      takes_exposure: the entry `exposure`, `[B]`, of the parameters of `build` and
        `start_at_data` is what `Conditions` has of it.
    """

    hyperparameters: Declared = ()
    latent_space: ClassVar[str | None] = None
    support: Declared = None
    has_log_prob: ClassVar[bool] = True
    layers: Declared = None
    begins_with_gaussian: ClassVar[bool] = False
    covers_unit_interval: Declared = True
    has_rates: ClassVar[bool] = False
    takes_exposure: Declared = False

    @abstractmethod
    def num_outputs(self, dim: int) -> int:
        """Number of network outputs for `dim` dimensions.

        Must be a multiple P * D for use with a convolutional decoder.
        """

    def init(self, key: Key, *, dim: int) -> dict[str, PyTree]:
        """Initialise the family's own parameters (a flow's weights); `{}` if none."""
        return {}

    @abstractmethod
    def build(self, params: PyTree, outputs: Array) -> Distribution:
        """Build the distribution from a network's outputs, `[..., num_outputs]`.

        The outputs are `[P, D]` flattened: P parameters, each for all D dimensions.
        """

    def output_bias(self, data_mean: Array) -> Array:
        """Output bias that initialises the decoder at the data mean, `[P * D]`."""
        return jnp.zeros(self.num_outputs(data_mean.size), data_mean.dtype)

    def encoder_inputs(self, params: PyTree, x: Array) -> Array:
        """Transform observations to encoder inputs if this is p(x|z), `[B, D]`.

        `params` are the family's own, as for `build`. Another number than D of them
        suits an encoder that reads no images.
        """
        return x

    def start_at_data(self, params: PyTree, x: Array) -> tuple[PyTree, Array]:
        """Own parameters and output bias that start a decoder at data `[n, P]`.

        P is D, or the channels of a convolution, whose positions are rows. It is
        `output_bias` at the mean and `start_at_variance`, where one is defined, unless
        a family has more to learn from data.
        """
        bias = self.output_bias(jnp.mean(x, axis=0))
        return self.start_at_variance(params, bias, jnp.var(x, axis=0))

    def start_at_variance(
        self, params: PyTree, bias: Array, data_variance: Array
    ) -> tuple[PyTree, Array]:
        """Initialise a learned variance at that of the data.

        `init(x=...)` calls it with the bias from `output_bias` and the variance of each
        dimension, `[D]`. Returns the own parameters and the output bias, unchanged for
        a family without a learned variance.
        """
        return params, bias


Posterior = Distribution
"""q(z|x) of a batch."""


class Prior(ABC):
    """The prior p(z), fixed or with learned parameters; a field of a `ModelSpec`.

    Attributes:
      hyperparameters: see `Family`.
      latent_space: see `Family`; None for a mixture of posteriors, which takes the
        latent space of the posterior it is paired with.
      layers: see `Family`.
      depends_on_labels: the parameters differ by class (see `given`).
      num_classes: number of classes of its labels; None for any number.
      num_covariates: number of covariates that the parameters depend on, that of the
        spec; 0 for none. Requires `depends_on_labels`.
      is_mixture_of_posteriors: the density is a mixture of posteriors from `encode`.
        This requires a posterior with `log_prob` and a model without labels, as
        `encode` is called without labels.
      encodes_unit_interval: the mixture is at pseudo-inputs between 0 and 1.
      is_reparameterizable: the gradient of E_p[f(z)] with respect to the prior's
        parameters flows through its draws: no parameter determines a discrete choice (a
        component, a bit). If False, the score-function gradient is used, which is
        unbiased for every prior but noisier.
    """

    hyperparameters: Declared = ()
    latent_space: ClassVar[str | None] = None
    layers: Declared = None
    depends_on_labels: ClassVar[bool] = False
    num_classes: Declared = None
    num_covariates: Declared = 0
    is_mixture_of_posteriors: ClassVar[bool] = False
    encodes_unit_interval: ClassVar[bool] = False
    is_reparameterizable: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any):
        """Raise TypeError for a class whose methods or declarations would be ignored.

        Raises:
          TypeError: the class defines methods of a distribution, or only one of `given`
            and `depends_on_labels`.
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
        """Initialise the parameters of the prior; `{}` if none."""
        return {}

    @abstractmethod
    def build(
        self, prior_params: PyTree, *, latent_dim: int, encode: Encode
    ) -> Distribution:
        """Build p(z), a batch of one, or of B for parameters `given` labels.

        `encode` is passed because the density of a VampPrior is a mixture of the
        encoder's posteriors at learned pseudo-inputs.
        """

    def given(self, prior_params: PyTree, labels: AnyArray) -> PyTree:
        """Select the parameters for labels `[B, C]`, with a batch axis, for `build`.

        Where `num_covariates` is set, the covariates follow in the columns after those
        of the classes.
        """
        return prior_params


class Estimator(Protocol):
    """An estimator of E_q[f(z)] and of its gradient.

    The value is the Monte Carlo estimate from the samples, except that `sigma_points`
    and `exact_enumeration` sum over fixed points; the gradient depends on the
    estimator. `stop_gradient(value) + (surrogate - stop_gradient(surrogate))` keeps the
    value exact however large the surrogate is.

    The integrand is called with latents `[S, B, L]` and their log q `[S, B]`. It
    returns an array `[S, B]` or a pytree of such arrays, and each is estimated.
    `reduction` maps `[S, B]` to `[B]`: the mean for an expectation, log-mean-exp for an
    importance-weighted bound. Single-sample and multi-sample estimators thus share one
    protocol.

    With `has_aux`, the integrand returns a pair `(values, aux)`, as for
    `jax.value_and_grad`, and so does the estimator. The auxiliary outputs, also
    `[S, B]`, are averaged over the same samples and carry no gradient, so a training
    step can log them without a second pass. Estimator-specific options are keyword
    arguments, set with `functools.partial`.
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
        """Return the per-example estimate, `[B]` for each `[S, B]`."""
        ...


class Objective(Protocol):
    """A training objective, to be maximised.

    `step` is the training step, for schedules. The returned scalar is the batch mean in
    nats; `metrics` are scalars to log, also batch means.

    `axis_name` is the mapped device axis, set when training on several devices. An
    objective that is a mean over examples can ignore it, since the gradients of the
    devices are averaged. A nonlinear function of a batch mean must average that mean
    over the axis first (`jax.lax.pmean`), so that N devices give the same result as
    one. An objective that compares examples with each other must raise an error.
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
        """Return the value to maximise and the metrics to log."""
        ...
