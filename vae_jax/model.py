"""Components of a variational autoencoder as pure functions of `Params`.

Objectives are composed of `encode`, `reparameterize` and `decode` (Kingma & Welling
2014).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vae_jax import conditions, networks
from vae_jax.data.tables import require_digits
from vae_jax.distributions.support import known_values
from vae_jax.external import External, require_likelihood, require_posterior
from vae_jax.options import require_at_least
from vae_jax.spec import ModelSpec, Params
from vae_jax.types import (
    AnyArray,
    Array,
    Distribution,
    Family,
    Key,
    Labels,
    Latents,
    Posterior,
    PyTree,
)

# Initial log-variance of a posterior that starts narrow: standard deviation 0.22.
INITIAL_LOG_VAR = -3.0


def _encoder_module(spec: ModelSpec):
    num_outputs = spec.posterior.num_outputs(spec.latent_dim)
    data_shape = spec.data_shape
    beside = spec.num_classes + spec.num_covariates
    if beside and networks.reads_images(spec.encoder):
        data_shape = networks.with_channels(data_shape, beside)
    return networks.with_output_layer(spec.encoder, num_outputs, data_shape)


def _decoder_module(spec: ModelSpec):
    num_outputs = spec.likelihood.num_outputs(spec.data_dim)
    return networks.with_output_layer(spec.decoder, num_outputs, spec.data_shape)


def _encoder_inputs(
    spec: ModelSpec, likelihood: PyTree, x: Array, labels: Labels
) -> Array:
    """Encoder inputs for observations `[B, D]`, with labels concatenated."""
    x = spec.likelihood.encoder_inputs(
        with_constant_settings(spec.likelihood, likelihood), x
    )
    is_image = networks.reads_images(spec.encoder)
    if is_image and x.shape[-1] != spec.data_dim:
        raise ValueError(
            f"encoder must take the {x.shape[-1]} inputs for each example that "
            f"likelihood {spec.likelihood!r} makes of {spec.data_dim} values, got "
            f"{type(spec.encoder).__name__}, which reads images of data_shape "
            f"{spec.data_shape}: choose an encoder of rows, such as MLP()"
        )
    beside = conditions.network_inputs(spec, labels, x.shape[0])
    if beside is None:
        return x
    return networks.concatenate_labels(x, beside, spec.data_shape if is_image else None)


def _nearest(z: Latents) -> Array:
    """Latents of the layer nearest the data, `[..., L]`."""
    return z[0] if isinstance(z, tuple) else z


def _decoder_inputs(spec: ModelSpec, z: Latents, labels: Labels) -> Array:
    """Latents `[S, B, L]` of the layer nearest the data, with labels concatenated."""
    z = _nearest(z)
    batch = z.shape[-2] if z.ndim > 1 else None
    beside = conditions.network_inputs(spec, labels, batch)
    return z if beside is None else networks.concatenate_labels(z, beside, None)


def init(
    spec: ModelSpec,
    key: Key,
    *,
    x: Array | None = None,
    labels: Labels = None,
    dtype: Any = jnp.float32,
) -> Params:
    """Initialise the parameters of a model.

    With data, the decoder's output bias is initialised from the data mean: the
    log-odds of the mean clipped to [0.001, 0.999] for a Bernoulli likelihood, the mean
    itself for a Gaussian. On MNIST this improves the final result by about a nat. A
    learned variance is initialised to that of the data.

    The decoder then starts at the best prediction that ignores z. If z is mostly noise
    at that point (posterior variance 1, and means that hardly vary between examples),
    networks with several ReLU layers or many latents may learn to ignore it
    permanently: posterior collapse, with a KL of 0 and no `active_units`. With data, a
    Gaussian posterior therefore starts narrow, at log-variance -3. The KL term still
    favours collapse; if that is a problem, raise its weight from 0 over a few hundred
    steps: `ELBO(beta=LinearWarmup(1.0, num_steps=400))`.

    Args:
      spec: model specification.
      key: PRNG key, consumed once.
      x: data for the initialisation, `[n, D]`, in [0, 1] if the likelihood requires
        it. With a single example, whose variance is 0, a learned variance starts at 1.
        None sets all biases to zero.
      labels: exposures of the data (`Conditions`), if the likelihood takes them; all
        else that the model is given is not needed here.
      dtype: dtype of all parameters, float32 or float64, which requires JAX's x64
        mode. For networks that compute in 16 bits, set `compute_dtype` in the spec.

    Returns:
      `Params` with this spec.

    Raises:
      ValueError: `x` is empty, not finite, or outside the support of the likelihood,
        or has a column of which float32 rounds off what varies;
        `dtype` is neither float32 nor float64, or is float64 without x64 mode.

    Example:
      >>> import jax
      >>> from vae_jax import ModelSpec, init
      >>> params = init(ModelSpec(), jax.random.key(0))
      >>> params.decoder["output"]["kernel"].shape
      (400, 784)
    """
    _check_dtype("dtype", dtype)
    if dtype is not None and jnp.dtype(dtype) not in (jnp.float32, jnp.float64):
        raise ValueError(
            f"dtype must be float32 or float64, got {jnp.dtype(dtype).name}; for "
            "networks that compute in 16 bits, set compute_dtype in the spec"
        )
    encoder_key, decoder_key, posterior_key, prior_key, likelihood_key = (
        jax.random.split(key, 5)
    )
    x_shape, z_shape = (1, spec.data_dim), (1, spec.latent_dim)
    one = conditions.placeholders(spec)
    decoder = networks.init(
        _decoder_module(spec),
        decoder_key,
        _decoder_inputs(spec, jnp.zeros(z_shape, dtype), one),
    )
    likelihood = spec.likelihood.init(likelihood_key, dim=spec.data_dim)
    encoder = networks.init(
        _encoder_module(spec),
        encoder_key,
        _encoder_inputs(spec, likelihood, jnp.zeros(x_shape, dtype), one),
    )
    if x is not None:
        # Before the cast, which turns NumPy arrays into tracers under tracing.
        # Quantized data are checked against their interval only, so that a data mean
        # is accepted as `x`.
        spec.likelihood.support.interval.require(x)
        values, x = known_values(x), as_float(x, dtype)
        is_table = not spec.likelihood.covers_unit_interval
        if is_table and values is not None and x.dtype == jnp.float32:
            require_digits(values.reshape(-1, values.shape[-1]))
        own = _with_exposure(spec, likelihood, labels, x)
        decoder, likelihood = _start_at_data(spec, decoder, own, x)
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
    """Set the output bias, and the variance of a likelihood that learns one.

    A convolutional output layer shares its bias across the positions of an image.
    """
    require_rows(x, spec.data_dim)
    if x.shape[0] == 0:
        raise ValueError("x must hold at least one example, got none")
    x = spec.likelihood.support.interval.nan_outside(x)
    num_outputs = spec.likelihood.num_outputs(spec.data_dim)
    positions = num_outputs // networks.output_bias(decoder).size
    rows = x.reshape(x.shape[0] * positions, -1)
    likelihood, bias = spec.likelihood.start_at_data(likelihood, rows)
    return networks.with_output_bias(decoder, bias), likelihood


def _start_narrow(spec: ModelSpec, encoder: PyTree) -> PyTree:
    """Set the bias of the encoder's log-variances, if the posterior has any.

    An encoder with one output vector per position shares its bias between latents,
    means and log-variances; it is left unchanged.
    """
    bias, latent_dim = networks.output_bias(encoder), spec.latent_dim
    whole = bias.size == spec.posterior.num_outputs(latent_dim)
    if not (whole and spec.posterior.begins_with_gaussian):
        return encoder
    bias = bias.at[latent_dim : 2 * latent_dim].set(INITIAL_LOG_VAR)
    return networks.with_output_bias(encoder, bias)


def require_rows(x: AnyArray, data_dim: int, name: str = "x") -> None:
    """Raise ValueError unless an array is `[B, data_dim]`.

    Args:
      x: an array, possibly traced.
      data_dim: number of values of an example.
      name: name of the argument, for the message.

    Raises:
      ValueError: the array has another shape.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.model import require_rows
      >>> require_rows(jnp.zeros((3, 28, 28)), 784)
      Traceback (most recent call last):
      ValueError: x must be [B, 784], one example per row, got [3, 28, 28]: flatten \
images with x.reshape(len(x), -1)
    """
    if x.ndim != 2 or x.shape[1] != data_dim:
        raise ValueError(
            f"{name} must be [B, {data_dim}], one example per row, got "
            f"{list(x.shape)}: flatten images with x.reshape(len(x), -1)"
        )


def check_observations(
    params: Params, x: AnyArray, *, labels: Labels = None, name: str = "x"
) -> None:
    """Raise ValueError if concrete observations or labels are invalid for a model.

    Invalid traced values give NaN instead. Functions that trace their arguments
    internally call this first, while the values are still concrete.

    Args:
      params: model parameters.
      x: observations, `[B, D]`, in the `support` of the likelihood.
      labels: labels of a conditional model; see `encode`.
      name: name of the argument `x`, for the message.

    Raises:
      ValueError: `x` is not `[B, D]`, or holds NaN, an infinity, or a value outside
        the support; labels are invalid (see `encode`) or rejected by the prior.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, init
      >>> from vae_jax.model import check_observations
      >>> params = init(ModelSpec(data_shape=(2,)), jax.random.key(0))
      >>> check_observations(params, jnp.array([[0.0, 1.0]]))
    """
    require_rows(x, params.spec.data_dim, name)
    params.spec.likelihood.support.require(x, name)
    conditions.require_arrays(labels)
    conditions.class_weights(params.spec, labels, x.shape[0])
    conditions.checked_covariates(params.spec, labels, x.shape[0])
    if conditions.as_conditions(labels).exposure is not None:
        conditions.checked_exposure(params.spec, labels, x.shape[0])
    at_labels(params, labels)


def check_inputs(params: Params, x: AnyArray, *, name: str = "x") -> None:
    """Raise ValueError if concrete inputs of an encoder are not of the data's range.

    Values between those of the support, such as means of pixels, are inputs without a
    density.

    Args:
      params: model parameters.
      x: inputs, `[B, D]`.
      name: name of the argument `x`, for the message.

    Raises:
      ValueError: `x` is not `[B, D]`, or holds a value outside the interval of the
        `support` of the likelihood.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, init
      >>> from vae_jax.model import check_inputs
      >>> params = init(ModelSpec(data_shape=(2,)), jax.random.key(0))
      >>> check_inputs(params, jnp.array([[0.3, 1.0]]))
    """
    require_rows(x, params.spec.data_dim, name)
    params.spec.likelihood.support.interval.require(x, name)


def _check_dtype(name: str, dtype: Any) -> None:
    """Raise ValueError if JAX would replace the dtype by a narrower one."""
    if dtype is not None and jax.dtypes.canonicalize_dtype(dtype) != jnp.dtype(dtype):
        raise ValueError(
            f"{name}={jnp.dtype(dtype).name} needs JAX's x64 mode: call "
            "jax.config.update('jax_enable_x64', True) first"
        )


def trainable(params: Params) -> Params:
    """Boolean mask of the leaves that training updates.

    Real-valued settings of a family (its `hyperparameters`, such as a fixed variance)
    are leaves so that they can be saved and swept; their mask is False. Their gradient
    is zero, so only updates independent of the gradient, such as weight decay, would
    change them. `train_step` masks them for any optimizer; in a custom loop, use
    `optax.masked(optax.adamw(1e-3), trainable)`.

    Args:
      params: model parameters.

    Returns:
      The same tree with True or False for each leaf, as `optax.masked` expects.

    Example:
      >>> import jax
      >>> from vae_jax import Gaussian, ModelSpec, init, trainable
      >>> params = init(ModelSpec(likelihood=Gaussian()), jax.random.key(0))
      >>> trainable(params).likelihood
      {'log_var': False}
    """
    mask = jax.tree.map(lambda leaf: True, params)
    for name in ("posterior", "prior", "likelihood"):
        own = dict(getattr(mask, name))
        for entry in own.keys() & {*getattr(params.spec, name).hyperparameters}:
            own[entry] = jax.tree.map(lambda leaf: False, own[entry])
        mask = mask.replace(**{name: own})
    return mask


def with_constant_settings(family: Any, own: PyTree) -> PyTree:
    """Stop the gradient of a family's real-valued settings.

    The gradient with respect to a setting (see `trainable`) is then 0 wherever the
    model is differentiated.

    Args:
      family: posterior, prior or likelihood of a spec.
      own: its subtree of the parameters.

    Returns:
      The same tree, with `jax.lax.stop_gradient` applied to the entries named in
      `hyperparameters`.

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


def dtype_of(params: Params) -> Any:
    """Dtype of the weights; of a model without any, that of JAX's floats.

    Args:
      params: model parameters.

    Returns:
      A floating dtype.

    Example:
      >>> import jax
      >>> from vae_jax import ModelSpec, init
      >>> from vae_jax.model import dtype_of
      >>> print(dtype_of(init(ModelSpec(), jax.random.key(0))))
      float32
    """
    leaves = jax.tree.leaves((params.decoder, params.encoder))
    dtypes = (leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating))
    return next(dtypes, jnp.zeros(()).dtype)


def as_float(x: Array, dtype: Any) -> Array:
    """Cast boolean observations to the dtype of the parameters; reject integers.

    Args:
      x: floats or booleans, any shape.
      dtype: a floating dtype.

    Returns:
      `x` in `dtype` if it is boolean, otherwise unchanged.

    Raises:
      ValueError: `x` holds integers, which may be counts or grey levels.

    Example:
      >>> import jax.numpy as jnp
      >>> from vae_jax.model import as_float
      >>> print(as_float(jnp.array([True, False]), jnp.float32))
      [1. 0.]
    """
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(
            f"x must be floating or boolean, got {x.dtype}: convert counts and codes "
            'by x.astype("float32"), and grey levels by vae_jax.data.to_unit_interval'
        )
    return x.astype(dtype) if x.dtype == jnp.bool_ else x


def encode(params: Params, x: Array, *, labels: Labels = None) -> Posterior:
    """Posterior q(z|x) of a batch (Kingma & Welling 2014, section 2.1).

    Args:
      params: model parameters.
      x: observations, `[B, D]`.
      labels: labels of a conditional model (`num_classes`): integers `[B]`, or class
        weights `[B, C]` that sum to 1; or `Conditions`, which holds covariates and
        exposures as well.
        Invalid traced labels propagate as NaN.

    Returns:
      A `types.Distribution` with arrays `[B, ...]`.

    Raises:
      ValueError: `x` holds integers; labels are given to an unconditional model,
        missing, or invalid; `compute_dtype` is float64 without JAX's x64 mode.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, encode, init
      >>> params = init(ModelSpec(), jax.random.key(0))
      >>> encode(params, jnp.zeros((8, 784))).mean.shape
      (8, 20)
    """
    spec = params.spec
    if isinstance(params.encoder, External):
        x = as_float(x, dtype_of(params))
        require_rows(x, spec.data_dim)
        given = conditions.checked_conditions(spec, labels, len(x), with_exposure=False)
        built = require_distribution(params.encoder, params.encoder(x, given))
        require_posterior(spec, built, len(x))
        return built
    outputs = encoder_outputs(params, x, labels=labels)
    return _build(spec.posterior, params.posterior, outputs)


def _build(family: Family, own: PyTree, outputs: Array) -> Distribution:
    """Build the family's distribution from a network's outputs."""
    built = family.build(with_constant_settings(family, own), outputs)
    return require_distribution(family, built)


def require_distribution(family: Any, built: Any) -> Distribution:
    """Return `built`; raise ValueError if it is not a `Distribution`."""
    if not isinstance(built, Distribution):
        raise ValueError(
            f"{family!r} must build a distribution, got {type(built).__name__}: its "
            "class must subclass vae_jax.types.Distribution"
        )
    return built


def encoder_outputs(params: Params, x: Array, *, labels: Labels = None) -> Array:
    """Outputs of the encoder network, `[B, num_outputs]`; see `encode`."""
    _check_dtype("compute_dtype", params.spec.compute_dtype)
    x = as_float(x, dtype_of(params))
    require_rows(x, params.spec.data_dim)
    return networks.apply(
        _encoder_module(params.spec),
        params.encoder,
        _encoder_inputs(params.spec, params.likelihood, x, labels),
        dtype=params.spec.compute_dtype,
        key=_network_keys(params).encoder,
    )


def with_network_key(params: Params, key: Key) -> Params:
    """The model in training: its networks draw from a key, if they draw at all.

    Args:
      params: model parameters.
      key: PRNG key, consumed once, of dropout in encoder and decoder.

    Returns:
      `Params` with this `network_key`; unchanged if both networks are deterministic.

    Example:
      >>> import jax
      >>> from vae_jax import ModelSpec, init
      >>> from vae_jax.model import with_network_key
      >>> params = init(ModelSpec(), jax.random.key(0))
      >>> with_network_key(params, jax.random.key(1)).network_key is None
      True
    """
    spec = params.spec
    dtype = dtype_of(params)
    labels = conditions.placeholders(spec)

    def inputs() -> tuple[Array, Array]:
        x, z = (
            jnp.zeros((1, size), dtype) for size in (spec.data_dim, spec.latent_dim)
        )
        encoded = _encoder_inputs(spec, params.likelihood, x, labels)
        return encoded, _decoder_inputs(spec, z, labels)

    modules = (_encoder_module(spec), _decoder_module(spec))
    draws = [
        networks.draws_random_numbers(
            module, weights, jnp.zeros(shape.shape, shape.dtype)
        )
        for module, weights, shape in zip(
            modules,
            (params.encoder, params.decoder),
            jax.eval_shape(inputs),
            strict=True,
        )
        if not isinstance(weights, External)
    ]
    return params.replace(network_key=key) if any(draws) else params


class _NetworkKeys(NamedTuple):
    """Keys of the networks' own random numbers, one for each use of a network."""

    encoder: Key | None = None
    decoder: Key | None = None
    pseudo_inputs: Key | None = None


def _network_keys(params: Params) -> _NetworkKeys:
    if params.network_key is None:
        return _NetworkKeys()
    return _NetworkKeys(*jax.random.split(params.network_key, 3))


def reparameterize(posterior: Posterior, key: Key, *, num_samples: int = 1) -> Latents:
    """Draw samples z = g(eps, x), differentiable in the posterior's parameters.

    For the diagonal Gaussian,

        z = mean + exp(log_var / 2) * eps with eps ~ N(0, I)

    (Kingma & Welling 2014, section 2.4).

    Args:
      posterior: distribution returned by `encode`, batch B.
      key: PRNG key, consumed once.
      num_samples: number S of samples per example.

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
    """Likelihood p(x|z) at given latents.

    Args:
      params: model parameters.
      z: latents, `[..., L]`, usually `[S, B, L]`. With several stochastic layers, a
        tuple of all layers or only the layer nearest the data.
      labels: see `encode`.

    Returns:
      A `types.Distribution` with arrays `[..., D]`. For `z` `[S, B, L]` and `x`
      `[B, D]`, `log_prob(x)` is `[S, B]`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, decode, init
      >>> params = init(ModelSpec(), jax.random.key(0))
      >>> decode(params, jnp.zeros((3, 8, 20))).mean.shape
      (3, 8, 784)
    """
    if isinstance(params.decoder, External):
        z = _nearest(z)
        batch = z.shape[-2] if z.ndim > 1 else None
        given = conditions.checked_conditions(
            params.spec, labels, batch, with_exposure=True
        )
        built = require_distribution(params.decoder, params.decoder(z, given))
        require_likelihood(params.spec, built, z)
        return built
    outputs = decoder_outputs(params, z, labels=labels)
    own = _with_exposure(params.spec, params.likelihood, labels, outputs)
    return _build(params.spec.likelihood, own, outputs)


def _with_exposure(spec: ModelSpec, own: PyTree, labels: Labels, rows: Array) -> PyTree:
    """Parameters of the likelihood, with the exposures of rows where it takes them."""
    exposure = conditions.checked_exposure(
        spec, labels, rows.shape[-2] if rows.ndim > 1 else 1
    )
    if exposure is None:
        return own
    return own | {"exposure": jnp.asarray(exposure, rows.dtype)}


def decoder_outputs(params: Params, z: Latents, *, labels: Labels = None) -> Array:
    """Outputs of the decoder network, `[..., num_outputs]`; see `decode`."""
    _check_dtype("compute_dtype", params.spec.compute_dtype)
    return networks.apply(
        _decoder_module(params.spec),
        params.decoder,
        _decoder_inputs(params.spec, z, labels),
        dtype=params.spec.compute_dtype,
        key=_network_keys(params).decoder,
    )


def at_labels(params: Params, labels: Labels) -> Params:
    """Condition the prior on labels, if it depends on them.

    Args:
      params: model parameters.
      labels: see `encode`.

    Returns:
      `Params` for `build_prior` and `draw_prior`.

    Example:
      >>> import jax
      >>> from vae_jax import ModelSpec, init
      >>> from vae_jax.model import at_labels
      >>> at_labels(init(ModelSpec(), jax.random.key(0)), None).prior
      {}
    """
    spec, prior = params.spec, params.spec.prior
    if prior.num_covariates:
        given = conditions.network_inputs(spec, labels, None)
    else:
        given = conditions.class_weights(spec, labels)
    own = with_constant_settings(prior, params.prior)
    if given is not None and prior.depends_on_labels:
        own = prior.given(own, given)
    return params.replace(prior=own)


def build_prior(params: Params) -> Distribution:
    """Prior p(z) of a model.

    Args:
      params: model parameters, conditioned with `at_labels` if the prior depends on
        labels.

    Returns:
      A `types.Distribution` with a batch of one, or of one per label.

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
        encode=partial(
            encode, params.replace(network_key=_network_keys(params).pseudo_inputs)
        ),
    )
    return require_distribution(prior, built)


def draw_prior(params: Params, key: Key, *, num_samples: int) -> Latents:
    """Draw from the prior; one draw per label if the prior depends on labels.

    Args:
      params: model parameters, conditioned with `at_labels` if the prior depends on
        labels.
      key: PRNG key, consumed once.
      num_samples: number of samples.

    Returns:
      `[num_samples, L]`.

    Raises:
      ValueError: the number of labels is not `num_samples`; the draws lack the batch
        axis of the prior or have a wrong shape.

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
    """Raise ValueError if the draws of a prior do not have the expected shape."""
    # None allows any size: a batch of labels, the sizes of several layers.
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
            f"but {num_samples} draws from it have shape {list(shape)} instead of "
            f"[{num_samples}, {arrays}]"
        )


def log_prior(params: Params, z: Latents, *, labels: Labels = None) -> Array:
    """Prior log-density log p(z) in nats, summed over the latent dimensions.

    Args:
      params: model parameters.
      z: latents, `[S, B, L]`; with several stochastic layers, a tuple of all layers.
      labels: see `encode`.

    Returns:
      `[S, B]`.

    Raises:
      ValueError: the size or the layers of `z` are not the model's.

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
    """Raise ValueError if `z` is not `[..., L]`; hierarchical priors check theirs."""
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
    """Encode, sample z and decode: x' ~ p(x'|x) = E_q(z|x)[p(x'|z)].

    Args:
      params: model parameters.
      x: observations, `[B, D]`.
      key: PRNG key, consumed once.
      sample: draw x' from the likelihood instead of taking its mean at z.
      labels: see `encode`.

    Returns:
      `[B, D]`.

    Raises:
      ValueError: `x` outside the interval of the support, or invalid labels.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, init, reconstruct
      >>> params = init(ModelSpec(), jax.random.key(0))
      >>> reconstruct(params, jnp.zeros((8, 784)), jax.random.key(1)).shape
      (8, 784)
    """
    check_inputs(params, x)
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
    """Draw z from the prior and decode it.

    Args:
      params: model parameters.
      key: PRNG key, consumed once.
      num_samples: number of samples.
      sample: draw x from the likelihood instead of taking its mean at z.
      labels: one label per sample; see `encode`.

    Returns:
      `[num_samples, D]`.

    Raises:
      ValueError: `num_samples` is below 1, or invalid labels (see `encode`).

    Example:
      >>> import jax
      >>> from vae_jax import ModelSpec, generate, init
      >>> params = init(ModelSpec(), jax.random.key(0))
      >>> generate(params, jax.random.key(1), num_samples=16).shape
      (16, 784)
    """
    require_at_least("num_samples", num_samples)
    prior_key, likelihood_key = jax.random.split(key)
    z = draw_prior(at_labels(params, labels), prior_key, num_samples=num_samples)
    dtype = dtype_of(params)
    z = jax.tree.map(lambda leaf: leaf.astype(dtype), z)
    likelihood = decode(params, z, labels=labels)
    return likelihood.sample(likelihood_key, 1)[0] if sample else likelihood.mean


def interpolate(
    params: Params, x0: Array, x1: Array, *, num_steps: int, labels: Labels = None
) -> Array:
    """Decode along the straight line between the posterior means of two batches.

    Args:
      params: model parameters.
      x0: observations at the start, `[B, D]`.
      x1: observations at the end, `[B, D]`.
      num_steps: number of points on the line, including both ends.
      labels: labels of both batches; see `encode`.

    Returns:
      Means of the likelihood, `[num_steps, B, D]`.

    Raises:
      ValueError: batches of different shapes or outside the interval of the support,
        invalid labels, or `num_steps` below 2.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import ModelSpec, init, interpolate
      >>> params = init(ModelSpec(), jax.random.key(0))
      >>> x = jnp.zeros((2, 784))
      >>> interpolate(params, x, x, num_steps=5).shape
      (5, 2, 784)
    """
    if x0.shape != x1.shape:
        raise ValueError(
            "x0 and x1 must have the same shape, [B, D], got "
            f"{list(x0.shape)} and {list(x1.shape)}"
        )
    require_at_least("num_steps", num_steps, 2, ": both ends are included")
    check_inputs(params, x0, name="x0")
    check_inputs(params, x1, name="x1")
    start, end = (encode(params, x, labels=labels).mean for x in (x0, x1))
    dtype = jax.tree.leaves(start)[0].dtype
    weights = jnp.linspace(0, 1, num_steps, dtype=dtype)[:, None, None]
    line = jax.tree.map(lambda a, b: (1 - weights) * a + weights * b, start, end)
    return decode(params, line, labels=labels).mean
