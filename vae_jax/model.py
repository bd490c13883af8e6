"""The steps of a variational autoencoder as functions of `Params`.

`encode`, `reparameterize` and `decode` are what the objectives compose, and so can
anyone. Kingma & Welling 2014.
"""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import networks
from vae_jax.distributions.support import known_values
from vae_jax.spec import ModelSpec, Params
from vae_jax.types import (
    Array,
    Distribution,
    Family,
    Key,
    Labels,
    Latents,
    Posterior,
    PyTree,
)

# Of a posterior that starts narrow: a deviation of 0.22.
INITIAL_LOG_VAR = -3.0


def _encoder_module(spec: ModelSpec):
    num_outputs = spec.posterior.num_outputs(spec.latent_dim)
    data_shape = spec.data_shape
    if spec.num_classes and networks.reads_images(spec.encoder):
        data_shape = networks.with_channels(data_shape, spec.num_classes)
    return networks.with_output_layer(spec.encoder, num_outputs, data_shape)


def _decoder_module(spec: ModelSpec):
    num_outputs = spec.likelihood.num_outputs(spec.data_dim)
    return networks.with_output_layer(spec.decoder, num_outputs, spec.data_shape)


# Weights of the classes sum to 1 within this: bfloat16 rounds them by less.
_WEIGHT_TOLERANCE = 0.01


def _class_weights(spec: ModelSpec, labels: Labels, batch: int | None = None) -> Labels:
    """Labels as weights `[B, C]`, NaN where traced ones name no class.

    Refuses labels where the model has none, their lack, what is no label, and another
    number of them than `batch`.
    """
    if spec.num_classes == 0:
        if labels is not None:
            raise ValueError(
                "labels were given to a model without: set num_classes in its spec"
            )
        return None
    count = spec.num_classes
    expected = (
        f"integers [B] from 0 to {count - 1}, or weights of the classes [B, {count}], "
        "none negative, that sum to 1"
    )
    if labels is None:
        raise ValueError(f"a model of num_classes={count} needs labels: {expected}")
    known = known_values(labels)
    given = labels if known is None else known
    are_classes = jnp.issubdtype(given.dtype, jnp.integer)
    rows = (given.shape or (0,))[0] if batch is None else batch
    if given.shape != ((rows,) if are_classes else (rows, count)):
        came = f"{given.dtype}{list(given.shape)}"
        examples = "" if batch is None else f" for {batch} examples"
        raise ValueError(f"labels must be {expected}, got {came}{examples}")
    if are_classes:
        exists = (given >= 0) & (given < count)
        weights = given[:, None] == np.arange(count)
    else:
        total = given.astype(jnp.float32).sum(axis=-1)
        exists = (given >= 0).all(axis=-1) & (abs(total - 1) <= _WEIGHT_TOLERANCE)
        weights = given
    weights = weights.astype(jnp.promote_types(weights.dtype, jnp.float32))
    if known is None:
        return jnp.where(exists[:, None], weights, jnp.nan)
    if not exists.all():
        raise ValueError(f"labels must be {expected}, got {known[~exists][0]}")
    # Still known to the prior, which JAX's own functions would hide under tracing.
    return weights


def _encoder_inputs(spec: ModelSpec, x: Array, labels: Labels) -> Array:
    """Observations `[B, D]` as the encoder takes them, labels beside them."""
    x = spec.likelihood.encoder_inputs(x)
    labels = _class_weights(spec, labels, x.shape[0])
    if labels is None:
        return x
    is_image = networks.reads_images(spec.encoder)
    return networks.beside(x, labels, spec.data_shape if is_image else None)


def _decoder_inputs(spec: ModelSpec, z: Latents, labels: Labels) -> Array:
    """Latents `[S, B, L]` of the layer next to the data, labels beside them."""
    z = z[0] if isinstance(z, tuple) else z
    labels = _class_weights(spec, labels, z.shape[-2] if z.ndim > 1 else None)
    return z if labels is None else networks.beside(z, labels, None)


def init(
    spec: ModelSpec, key: Key, *, x: Array | None = None, dtype: Any = jnp.float32
) -> Params:
    """Initial parameters of a model.

    With data, the decoder's output bias starts at what the likelihood makes of the
    data's mean: log-odds of the means clipped to [0.001, 0.999] for Bernoulli, the
    mean itself for a Gaussian. On MNIST this is worth about a nat at the end. A
    variance that is learned starts at the data's.

    Such a model gives the best answer there is without z. Where z is mostly noise, as
    at posterior variance 1 beside means that hardly vary yet, networks of several ReLU
    layers or of many latents learn to ignore it for good: posterior collapse, KL 0, no
    `active_units`. So a Gaussian posterior starts narrow, at log-variance -3. The
    weight of the KL still pulls the other way; where it matters, raise it from 0 over
    some hundred steps: `ELBO(beta=LinearWarmup(1.0, num_steps=400))`.

    Args:
      spec: the model's choices.
      key: PRNG key, consumed once.
      x: data to start at, `[n, D]`, in [0, 1] for the likelihoods of such values; of a
        single example there is no variance, and a learned one starts at 1. None for
        biases of zero.
      dtype: of all parameters; float64 needs JAX's x64 mode.

    Returns:
      `Params` that carry the spec.

    Raises:
      ValueError: `x` is empty, not finite, or beyond what the likelihood takes;
        float64 without x64 mode.

    Example:
      >>> import jax
      >>> from vae_jax import ModelSpec, init
      >>> params = init(ModelSpec(), jax.random.key(0))
      >>> params.decoder["output"]["kernel"].shape
      (400, 784)
    """
    _check_dtype("dtype", dtype)
    encoder_key, decoder_key, posterior_key, prior_key, likelihood_key = (
        jax.random.split(key, 5)
    )
    x_shape, z_shape = (1, spec.data_dim), (1, spec.latent_dim)
    labels = jnp.zeros(1, jnp.int32) if spec.num_classes else None
    decoder = networks.init(
        _decoder_module(spec),
        decoder_key,
        _decoder_inputs(spec, jnp.zeros(z_shape, dtype), labels),
    )
    encoder = networks.init(
        _encoder_module(spec),
        encoder_key,
        _encoder_inputs(spec, jnp.zeros(x_shape, dtype), labels),
    )
    likelihood = spec.likelihood.init(likelihood_key, dim=spec.data_dim)
    if x is not None:
        # Before the cast, which hides NumPy's arrays under tracing. Of levels the
        # interval: a mean of data serves as data.
        spec.likelihood.support.interval.require(x)
        x = as_float(x, dtype)
        decoder, likelihood = _start_at_data(spec, decoder, likelihood, x)
        encoder = _start_narrow(spec, encoder)
    params = Params(
        encoder=encoder,
        decoder=decoder,
        posterior=spec.posterior.init(posterior_key, dim=spec.latent_dim),
        prior=spec.prior.init(
            prior_key, latent_dim=spec.latent_dim, data_shape=spec.data_shape
        ),
        likelihood=likelihood,
        spec=spec,
    )
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def _start_at_data(
    spec: ModelSpec, decoder: PyTree, likelihood: PyTree, x: Array
) -> tuple[PyTree, PyTree]:
    """Sets the output bias, and the variance of a likelihood that learns one.

    A convolutional output shares its bias between the positions of an image.
    """
    chex.assert_shape(x, (None, spec.data_dim))
    if x.shape[0] == 0:
        raise ValueError("x must hold at least one example, got none")
    x = spec.likelihood.support.interval.nan_outside(x)
    num_outputs = spec.likelihood.num_outputs(spec.data_dim)
    positions = num_outputs // networks.output_bias(decoder).size
    rows = x.reshape(x.shape[0] * positions, -1)
    bias = spec.likelihood.output_bias(jnp.mean(rows, axis=0))
    likelihood, bias = spec.likelihood.start_at_variance(
        likelihood, bias, jnp.var(rows, axis=0)
    )
    return networks.with_output_bias(decoder, bias), likelihood


def _start_narrow(spec: ModelSpec, encoder: PyTree) -> PyTree:
    """Sets the encoder's bias of the log-variances, where the posterior has such.

    An encoder that gives outputs position by position shares its bias between latents,
    means and log-variances, and stays as it is.
    """
    bias, latent_dim = networks.output_bias(encoder), spec.latent_dim
    whole = bias.size == spec.posterior.num_outputs(latent_dim)
    if not (whole and spec.posterior.begins_with_gaussian):
        return encoder
    bias = bias.at[latent_dim : 2 * latent_dim].set(INITIAL_LOG_VAR)
    return networks.with_output_bias(encoder, bias)


def check_observations(params: Params, x: Array, *, labels: Labels = None) -> None:
    """Raise if known data are none of the model's: observations or their labels.

    Traced ones lead to NaN; this is for functions that trace what their caller knows.

    Args:
      params: model parameters.
      x: observations, `[B, D]`, in the `support` that the likelihood declares.
      labels: of a conditional model, as for `encode`.

    Raises:
      ValueError: NaN, an infinity, or a value outside the support; labels as for
        `encode`, and where the prior does not take them.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, init
      >>> from vae_jax.model import check_observations
      >>> params = init(ModelSpec(data_shape=(2,)), jax.random.key(0))
      >>> check_observations(params, jnp.array([[0.0, 1.0]]))
    """
    params.spec.likelihood.support.require(x)
    _class_weights(params.spec, labels, x.shape[0])
    at_labels(params, labels)


def _check_dtype(name: str, dtype: Any) -> None:
    """Refuses a dtype that JAX would replace by a narrower one."""
    if dtype is not None and jax.dtypes.canonicalize_dtype(dtype) != jnp.dtype(dtype):
        raise ValueError(
            f"{name}={jnp.dtype(dtype).name} needs JAX's x64 mode: call "
            "jax.config.update('jax_enable_x64', True) first"
        )


def trainable(params: Params) -> Params:
    """Which leaves training updates, as a tree of booleans.

    Real-valued settings of a family (its `hyperparameters`: a fixed variance, say)
    are leaves so that they can be saved and swept, and are False here. No gradient
    reaches them, so an optimizer moves them only by what needs none: weight decay. In a
    loop of your own `optax.masked(optax.adamw(1e-3), trainable)` leaves them alone;
    `train_step` does so with any optimizer.

    Args:
      params: the parameters.

    Returns:
      The same tree with True or False for each leaf; what `optax.masked` takes.

    Example:
      >>> import jax
      >>> from vae_jax import Gaussian, ModelSpec, init, trainable
      >>> params = init(ModelSpec(likelihood=Gaussian()), jax.random.key(0))
      >>> trainable(params).likelihood
      {'log_var': False}
    """
    mask = jax.tree.map(lambda leaf: True, params)
    settings = {
        name: {
            entry: jax.tree.map(lambda leaf, keep=keep: keep, subtree)
            for entry, subtree in getattr(params, name).items()
            for keep in [entry not in getattr(params.spec, name).hyperparameters]
        }
        for name in ("posterior", "prior", "likelihood")
    }
    return mask.replace(**settings)


def with_constant_settings(family: Any, own: PyTree) -> PyTree:
    """A family's own parameters, its settings without a gradient.

    Whatever differentiates a model, and by whatever optimizer it is trained, a setting
    (`trainable`) has the gradient 0.

    Args:
      family: a posterior, prior or likelihood of a spec.
      own: its part of the parameters.

    Returns:
      The same tree; `jax.lax.stop_gradient` of the entries in `hyperparameters`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import Gaussian
      >>> from vae_jax.model import with_constant_settings
      >>> def log_var(own):
      ...     return with_constant_settings(Gaussian(), own)["log_var"]
      >>> print(jax.grad(log_var)({"log_var": jnp.zeros(())})["log_var"])
      0.0
    """
    if not family.hyperparameters:
        return own
    return {
        name: jax.lax.stop_gradient(entry) if name in family.hyperparameters else entry
        for name, entry in own.items()
    }


def as_float(x: Array, dtype: Any) -> Array:
    """Casts observations to the dtype of the parameters; integers are refused.

    Args:
      x: floats or booleans, any shape.
      dtype: a floating dtype.

    Returns:
      `x` in `dtype` if it is boolean, else unchanged.

    Raises:
      ValueError: `x` holds integers, of which nobody knows how many levels they
        have.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.model import as_float
      >>> print(as_float(jnp.array([True, False]), jnp.float32))
      [1. 0.]
    """
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(
            f"x must be floating or boolean, got {x.dtype}; divide by the number of "
            "levels less one (vae_jax.data.to_unit_interval)"
        )
    return x.astype(dtype) if x.dtype == jnp.bool_ else x


def encode(params: Params, x: Array, *, labels: Labels = None) -> Posterior:
    """The posterior q(z|x) of a batch (Kingma & Welling 2014, section 2.1).

    Args:
      params: model parameters.
      x: observations, `[B, D]`.
      labels: of a conditional model (`num_classes`): integers `[B]`, or weights of
        the classes `[B, C]` that sum to 1. Of traced ones that name no class all that
        follows is NaN.

    Returns:
      A `types.Distribution` with arrays `[B, ...]`.

    Raises:
      ValueError: `x` holds integers; labels where the model has none, their lack, or
        what is no label; a `compute_dtype` of float64 without JAX's x64 mode.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, encode, init
      >>> params = init(ModelSpec(), jax.random.key(0))
      >>> encode(params, jnp.zeros((8, 784))).mean.shape
      (8, 20)
    """
    outputs = encoder_outputs(params, x, labels=labels)
    return _build(params.spec.posterior, params.posterior, outputs)


def _build(family: Family, own: PyTree, outputs: Array) -> Distribution:
    """The family's distribution of a network's outputs."""
    built = family.build(with_constant_settings(family, own), outputs)
    return require_distribution(family, built)


def require_distribution(family: Any, built: Any) -> Distribution:
    """What a family or a prior built; refuses another class than a distribution."""
    if not isinstance(built, Distribution):
        raise ValueError(
            f"{family!r} must build a distribution, got {type(built).__name__}: its "
            "class must subclass vae_jax.types.Distribution"
        )
    return built


def encoder_outputs(params: Params, x: Array, *, labels: Labels = None) -> Array:
    """Outputs of the encoder network, `[B, num_outputs]`; arguments as `encode`."""
    _check_dtype("compute_dtype", params.spec.compute_dtype)
    x = as_float(x, jax.tree.leaves(params.encoder)[0].dtype)
    chex.assert_shape(x, (None, params.spec.data_dim))
    return networks.apply(
        _encoder_module(params.spec),
        params.encoder,
        _encoder_inputs(params.spec, x, labels),
        dtype=params.spec.compute_dtype,
    )


def reparameterize(posterior: Posterior, key: Key, *, num_samples: int = 1) -> Latents:
    """Samples z = g(eps, x) of a posterior, differentiable in its parameters.

    For the diagonal Gaussian z = mean + exp(log_var / 2) * eps, eps ~ N(0, I)
    (Kingma & Welling 2014, section 2.4).

    Args:
      posterior: what `encode` returned, batch B.
      key: PRNG key, consumed once.
      num_samples: samples S of each.

    Returns:
      Latents `[S, B, L]`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, encode, init, reparameterize
      >>> params = init(ModelSpec(), jax.random.key(0))
      >>> posterior = encode(params, jnp.zeros((8, 784)))
      >>> reparameterize(posterior, jax.random.key(1), num_samples=3).shape
      (3, 8, 20)
    """
    return posterior.sample(key, num_samples)


def decode(params: Params, z: Latents, *, labels: Labels = None) -> Distribution:
    """The likelihood p(x|z) at given latents.

    Args:
      params: model parameters.
      z: latents, `[..., L]`, usually `[S, B, L]`; of several stochastic layers, a
        tuple or the layer next to the data alone.
      labels: as for `encode`.

    Returns:
      A `types.Distribution` with arrays `[..., D]`: `log_prob(x)` of `x` `[B, D]` is
      `[S, B]`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, decode, init
      >>> params = init(ModelSpec(), jax.random.key(0))
      >>> decode(params, jnp.zeros((3, 8, 20))).mean.shape
      (3, 8, 784)
    """
    outputs = decoder_outputs(params, z, labels=labels)
    return _build(params.spec.likelihood, params.likelihood, outputs)


def decoder_outputs(params: Params, z: Latents, *, labels: Labels = None) -> Array:
    """Outputs of the decoder network, `[..., num_outputs]`; arguments as `decode`."""
    _check_dtype("compute_dtype", params.spec.compute_dtype)
    return networks.apply(
        _decoder_module(params.spec),
        params.decoder,
        _decoder_inputs(params.spec, z, labels),
        dtype=params.spec.compute_dtype,
    )


def at_labels(params: Params, labels: Labels) -> Params:
    """The model with its prior at given labels, where it depends on them.

    Args:
      params: model parameters.
      labels: as for `encode`.

    Returns:
      `Params` for `build_prior` and `draw_prior`.

    Example:
      >>> import jax
      >>> from vae_jax import ModelSpec, init
      >>> from vae_jax.model import at_labels
      >>> at_labels(init(ModelSpec(), jax.random.key(0)), None).prior
      {}
    """
    weights = _class_weights(params.spec, labels)
    prior = params.spec.prior
    own = with_constant_settings(prior, params.prior)
    if weights is not None and prior.depends_on_labels:
        own = prior.given(own, weights)
    return params.replace(prior=own)


def build_prior(params: Params) -> Distribution:
    """The prior p(z) of a model that is `at_labels`.

    Args:
      params: model parameters; of a prior that depends on labels, at those labels.

    Returns:
      A `types.Distribution`, a batch of one, or one for each label.

    Example:
      >>> import jax
      >>> from vae_jax import ModelSpec, init
      >>> from vae_jax.model import build_prior
      >>> build_prior(init(ModelSpec(latent_dim=2), jax.random.key(0))).mean
      Array([[0., 0.]], dtype=float32, weak_type=True)
    """
    prior = params.spec.prior
    built = prior.build(
        with_constant_settings(prior, params.prior),
        latent_dim=params.spec.latent_dim,
        encode=partial(encode, params),
    )
    return require_distribution(prior, built)


def draw_prior(params: Params, key: Key, *, num_samples: int) -> Latents:
    """Draws of the prior of a model that is `at_labels`, one for each label if any.

    Args:
      params: model parameters; of a prior that depends on labels, at those labels.
      key: PRNG key, consumed once.
      num_samples: how many.

    Returns:
      `[num_samples, L]`.

    Raises:
      ValueError: another number of labels; a prior without the axis of its batch, or
        of another batch or size.

    Example:
      >>> import jax
      >>> from vae_jax import ModelSpec, init
      >>> from vae_jax.model import draw_prior
      >>> params = init(ModelSpec(), jax.random.key(0))
      >>> draw_prior(params, jax.random.key(1), num_samples=3).shape
      (3, 20)
    """
    of_labels = params.spec.prior.depends_on_labels
    z = build_prior(params).sample(key, 1 if of_labels else num_samples)
    _check_draws(params.spec, z, 1 if of_labels else num_samples)
    z = jax.tree.map(lambda leaf: leaf[0] if of_labels else leaf[:, 0], z)
    count = jax.tree.leaves(z)[0].shape[0]
    if count != num_samples:
        raise ValueError(
            f"labels must be one for each of {num_samples} samples, got {count}"
        )
    return z


def _check_draws(spec: ModelSpec, z: Latents, num_samples: int) -> None:
    """Refuses draws `[S, ..., L]` without the batch of the prior, or of another."""
    # None where it may be any: a batch of labels, and the sizes of several layers.
    batch = None if spec.prior.depends_on_labels else 1
    size = None if spec.prior.layers is not None else spec.latent_dim
    wanted = (num_samples, batch, size)
    for shape in map(jnp.shape, jax.tree.leaves(z)):
        pairs = zip(wanted, shape, strict=False)
        if len(shape) == 3 and all(want in (None, came) for want, came in pairs):
            continue
        arrays = f"{'B' if batch is None else 1}, {'L' if size is None else size}"
        raise ValueError(
            f"prior {spec.prior!r} must build a distribution with arrays [{arrays}], "
            f"and {num_samples} draws of it have the shape {list(shape)} in place of "
            f"[{num_samples}, {arrays}]"
        )


def log_prior(params: Params, z: Latents, *, labels: Labels = None) -> Array:
    """Log p(z) in nats, summed over the latent dimensions.

    Args:
      params: model parameters.
      z: latents, `[S, B, L]`; of several stochastic layers, a tuple of all of them.
      labels: as for `encode`.

    Returns:
      `[S, B]`.

    Raises:
      ValueError: latents of another size or other layers than the model's.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, init, log_prior
      >>> params = init(ModelSpec(latent_dim=2), jax.random.key(0))
      >>> print(log_prior(params, jnp.zeros((1, 1, 2))))
      [[-1.837877]]
    """
    _check_latents(params.spec, z)
    return build_prior(at_labels(params, labels)).log_prob(z)


def _check_latents(spec: ModelSpec, z: Latents) -> None:
    """Refuses latents of another size; a prior of several layers asks by itself."""
    if spec.prior.layers is not None:
        return
    shape = None if isinstance(z, tuple) else jnp.shape(z)
    if shape is None or shape[-1:] != (spec.latent_dim,):
        came = f"a tuple of {len(z)} layers" if shape is None else list(shape)
        raise ValueError(
            f"z must be latents of the model's latent_dim, [..., {spec.latent_dim}], "
            f"got {came}"
        )


def reconstruct(
    params: Params, x: Array, key: Key, *, sample: bool = False, labels: Labels = None
) -> Array:
    """Encodes, samples z and decodes: x' ~ p(x'|x) = E_q(z|x)[p(x'|z)].

    Args:
      params: model parameters.
      x: observations, `[B, D]`.
      key: PRNG key, consumed once.
      sample: draw x' from the likelihood instead of taking its mean at z.
      labels: as for `encode`.

    Returns:
      `[B, D]`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, init, reconstruct
      >>> params = init(ModelSpec(), jax.random.key(0))
      >>> reconstruct(params, jnp.zeros((8, 784)), jax.random.key(1)).shape
      (8, 784)
    """
    posterior_key, likelihood_key = jax.random.split(key)
    z = reparameterize(encode(params, x, labels=labels), posterior_key)
    likelihood = decode(params, z, labels=labels)
    return (likelihood.sample(likelihood_key, 1)[0] if sample else likelihood.mean)[0]


def generate(
    params: Params,
    key: Key,
    *,
    num_samples: int,
    sample: bool = False,
    labels: Labels = None,
) -> Array:
    """Draws z from the prior and decodes it.

    Args:
      params: model parameters.
      key: PRNG key, consumed once.
      num_samples: how many.
      sample: draw x from the likelihood instead of taking its mean at z.
      labels: as for `encode`, one for each.

    Returns:
      `[num_samples, D]`.

    Example:
      >>> import jax
      >>> from vae_jax import ModelSpec, generate, init
      >>> params = init(ModelSpec(), jax.random.key(0))
      >>> generate(params, jax.random.key(1), num_samples=16).shape
      (16, 784)
    """
    prior_key, likelihood_key = jax.random.split(key)
    z = draw_prior(at_labels(params, labels), prior_key, num_samples=num_samples)
    dtype = jax.tree.leaves(params.decoder)[0].dtype
    z = jax.tree.map(lambda leaf: leaf.astype(dtype), z)
    likelihood = decode(params, z, labels=labels)
    return likelihood.sample(likelihood_key, 1)[0] if sample else likelihood.mean


def interpolate(
    params: Params, x0: Array, x1: Array, *, num_steps: int, labels: Labels = None
) -> Array:
    """Decodes the straight line between the posterior means of two batches.

    Args:
      params: model parameters.
      x0: observations to start from, `[B, D]`.
      x1: observations to end at, `[B, D]`.
      num_steps: points of the line, both ends included.
      labels: as for `encode`; of both.

    Returns:
      Means of the likelihood, `[num_steps, B, D]`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, init, interpolate
      >>> params = init(ModelSpec(), jax.random.key(0))
      >>> x = jnp.zeros((2, 784))
      >>> interpolate(params, x, x, num_steps=5).shape
      (5, 2, 784)
    """
    chex.assert_equal_shape([x0, x1])
    start, end = (encode(params, x, labels=labels).mean for x in (x0, x1))
    dtype = jax.tree.leaves(start)[0].dtype
    weights = jnp.linspace(0, 1, num_steps, dtype=dtype)[:, None, None]
    line = jax.tree.map(lambda a, b: (1 - weights) * a + weights * b, start, end)
    return decode(params, line, labels=labels).mean
