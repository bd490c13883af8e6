"""The list of lines, and the function that runs them."""

import traceback
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from vae_jax.contracts import densities, functions, shapes
from vae_jax.contracts.report import Line, Report
from vae_jax.contracts.subject import (
    FAMILIES,
    Outcome,
    Subject,
    along,
    direction,
    with_ordinary_outputs,
)
from vae_jax.external import external_of
from vae_jax.model import as_float, dtype_of, require_rows
from vae_jax.options import require_at_least
from vae_jax.spec import Params
from vae_jax.types import Array, Key, Labels

JITTER = 0.3
LIBRARIES = ("jax", "jaxlib", "flax", "chex", "numpy")
_QUESTIONS: dict[str, Callable[[Subject, Key], Outcome]] = {
    "shapes of the posterior": shapes.posterior_shapes,
    "shapes of the prior": shapes.prior_shapes,
    "shapes of the likelihood": shapes.likelihood_shapes,
    "finite at the given parameters": shapes.finite_at_given,
    "finite at x of all 0 and all 1": shapes.finite_at_extreme_data,
    "finite where the encoder runs away": shapes.finite_at_far_encoder,
    "finite where latents and decoder run away": shapes.finite_at_far_decoder,
    "log q of samples is log_prob": densities.log_q_agrees,
    "KL is not negative": densities.kl_is_not_negative,
    "registered KL is the sampled KL": densities.kl_agrees,
    "posterior keeps its mass": densities.posterior_keeps_its_mass,
    "posterior has mass one": densities.posterior_has_mass_one,
    "prior keeps its mass": densities.prior_keeps_its_mass,
    "likelihood keeps its mass": densities.likelihood_keeps_its_mass,
    "likelihood has its mean": densities.likelihood_has_its_mean,
    "bounds rise with samples": functions.bounds_rise,
    "gradient is the slope": functions.gradient_is_the_slope,
    "jit changes nothing": functions.jit_changes_nothing,
    "vmap changes nothing": functions.vmap_changes_nothing,
    "examples stand alone": functions.examples_stand_alone,
    "samples come with their log q": densities.samples_agree,
}
LINES = tuple(_QUESTIONS)


def check(
    params: Params,
    x: Array,
    key: Key,
    *,
    labels: Labels = None,
    num_samples: int = 1024,
    only: Sequence[str] | None = None,
) -> Report:
    """Check networks, families and prior of a model against their contracts.

    To check a custom class, put it in a `ModelSpec`, initialise the model, and print
    the result. An exception fails the first line that raises it; further lines stopped
    by the same exception are reported as not applicable. The report is deterministic
    given the key.

    One line tests values and gradients at the given parameters. All other lines first
    perturb the output biases and the families' trainable parameters, because zeros in
    newly initialised parameters hide mistakes (exp(0) equals exp(0 / 2)). They also
    scale down output layers with large outputs, so that neither the size of the weights
    nor the unit of the data matters. Operations are not compiled; use small networks
    and a few examples.

    The lines test:

    - shapes and dtypes of posterior, prior and likelihood;
    - finite values and gradients, also for extreme data, encoder outputs, latents and
      decoder outputs;
    - log q of samples against `log_prob`, and samples with and without log q;
    - the KL: non-negative, and equal in closed form and by sampling;
    - densities p whose parameters are moved to p':
      E_p[g p' / (p + p')] = E_p'[g p / (p + p')] for bounded g, which holds only if the
      samples follow the density and the normalizer is complete;
    - the mass of q and the mean of the likelihood;
    - importance-weighted bounds, which must increase with the number of samples;
    - gradients against finite differences, `jit`, `vmap`, and the independence of
      examples.

    A constant missing from the log-density of a likelihood or prior at all parameters
    is not detected.

    Args:
      params: model parameters, whose spec contains the classes to check.
      x: observations, `[B, D]`; two to eight examples.
      key: PRNG key; each line uses a separate child.
      labels: labels of a conditional model; see `encode`.
      num_samples: number of samples per expectation; more detect smaller mistakes.
      only: names of the lines to run, from `LINES`; all by default.

    Returns:
      A `Report`. `passed` is True if no line failed; its text is a table.

    Raises:
      ValueError: `only` contains an unknown name, `num_samples` is below 100, `x` holds
        integers, or a network is from `replace_networks`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vae_jax import Linear, ModelSpec, check, init
      >>> spec = ModelSpec(Linear(), Linear(), latent_dim=1, data_shape=(2,))
      >>> params, x = init(spec, jax.random.key(0)), jnp.zeros((3, 2))
      >>> lines = ["shapes of the prior"]  # leave it out for all of them
      >>> print(check(params, x, jax.random.key(1), only=lines))
      passed          shapes of the prior: 2 arrays
      1 passed, 0 failed, 0 do not apply
    """
    names = LINES if only is None else tuple(only)
    if unknown := [name for name in names if name not in LINES]:
        raise ValueError(f"only must name lines of {LINES}, got {unknown}")
    require_at_least("num_samples", num_samples, 100)
    if external := external_of(params):
        raise ValueError(
            f"check moves the weights of networks, and a {external.role} of "
            "replace_networks has none that it knows: make it a network of the spec "
            "(vae_jax.FunctionNetwork)"
        )
    x = as_float(x, dtype_of(params))
    require_rows(x, params.spec.data_dim)
    labels = jax.tree.map(jnp.asarray, labels)
    jitter_key, pilot_key, line_key = jax.random.split(key, 3)
    towards = direction(params, jitter_key, ("encoder", "decoder", *FAMILIES))
    moved = along(params, towards, JITTER)
    try:
        moved = with_ordinary_outputs(moved, x, pilot_key, labels)
    except Exception:
        pass  # The same error occurs again in a line, which reports it.
    subject = Subject(params, moved, x, labels, num_samples)
    causes: dict[tuple, str] = {}
    return Report(
        tuple(
            _ask(name, subject, jax.random.fold_in(line_key, LINES.index(name)), causes)
            for name in names
        )
    )


def _ask(name: str, subject: Subject, key: Key, causes: dict[tuple, str]) -> Line:
    """Run one line; an exception fails it, unless an earlier line raised the same."""
    try:
        return Line(name, *_QUESTIONS[name](subject, key))
    except Exception as error:
        first = causes.setdefault(_cause(error), name)
        if first != name:
            return Line(name, None, "", f"stopped by the exception of {first!r}")
        # JAX's messages are long, and the cause comes first.
        message = f"{type(error).__name__}: {error}".splitlines()[:3]
        return Line(name, False, "", "\n".join([*message, "expected no exception"]))


def _cause(error: Exception) -> tuple:
    """Type and location of an exception: the innermost frame outside `LIBRARIES`."""
    places = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").split(".")[0] not in LIBRARIES
    ]
    return (type(error), *places[-1])
