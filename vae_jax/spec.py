"""`ModelSpec`, the specification of a model, and `Params`, its parameters.

`Params` is a pytree with the spec as static metadata, so `elbo(params, x, key)` works
for every architecture without passing a model object around.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax

from vae_jax.families import Bernoulli, DiagonalGaussian
from vae_jax.networks import MLP, is_linen
from vae_jax.priors import StandardNormal
from vae_jax.spec_json import spec_from_json, spec_to_json
from vae_jax.types import Family, Key, Network, Prior, PyTree

COMPUTE_DTYPES = (None, "bfloat16", "float16", "float32", "float64")


@dataclass(frozen=True)
class ModelSpec:
    """Specification of a model; the defaults are the MNIST reference model.

    A spec holds only integers, strings, tuples, classes and Linen modules. It is
    therefore hashable, and equal specs share their compiled programs. Real-valued
    settings are leaves of `Params`.

    Attributes:
      encoder: Linen module from `[B, D]` to features (`types.Network`).
      decoder: Linen module from `[B, L]` to features.
      posterior: family of q(z|x).
      prior: family of p(z).
      likelihood: family of p(x|z).
      latent_dim: latent dimension L.
      data_shape: shape of one example; D is its product.
      num_classes: number C of classes of a conditional model, whose functions take
        `labels`. Labels are concatenated to the inputs of encoder and decoder, and
        passed to a prior that depends on them. 0 for an unconditional model.
      num_covariates: number of real covariates of each example, concatenated to the
        inputs of encoder and decoder as labels are; the functions of the model take
        them as `labels=Conditions(covariates=...)`.
      compute_dtype: dtype in which encoder and decoder compute, such as `"bfloat16"`
        on accelerators with faster bfloat16 matrix products. Parameters, gradients,
        samples and densities keep their dtype. None uses the dtype of the parameters.

    Raises:
      ValueError: a field is not hashable or has the wrong type; a size is not
        positive; the dtype is unknown; or posterior and prior are incompatible: they
        differ in the values of their latents (`types.Family`) or in their stochastic
        layers, or the prior requires a density or labels that the model lacks.

    Example:
      >>> from vae_jax import MLP, ModelSpec
      >>> spec = ModelSpec(encoder=MLP((200, 200)), latent_dim=50)
      >>> spec.data_dim
      784
    """

    encoder: Network = field(default=MLP((400,)))
    decoder: Network = field(default=MLP((400,)))
    posterior: Family = field(default=DiagonalGaussian())
    prior: Prior = field(default=StandardNormal())
    likelihood: Family = field(default=Bernoulli())
    latent_dim: int = 20
    data_shape: tuple[int, ...] = (28, 28)
    num_classes: int = 0
    compute_dtype: str | None = None
    num_covariates: int = 0

    def __post_init__(self):
        _check_network("encoder", self.encoder)
        _check_network("decoder", self.decoder)
        _check_choice("posterior", self.posterior, Family)
        _check_choice("prior", self.prior, Prior)
        _check_choice("likelihood", self.likelihood, Family)
        _check_sides(self)
        _check_size("latent_dim", self.latent_dim)
        if not isinstance(self.data_shape, tuple) or not self.data_shape:
            raise ValueError(
                f"data_shape must be a tuple of sizes, got {self.data_shape!r}"
            )
        for size in self.data_shape:
            _check_size("data_shape", size)
        for name in ("num_classes", "num_covariates"):
            if getattr(self, name) != 0:
                _check_size(name, getattr(self, name))
        if self.compute_dtype not in COMPUTE_DTYPES:
            raise ValueError(
                f"compute_dtype must be one of {COMPUTE_DTYPES}, got "
                f"{self.compute_dtype!r}"
            )
        _check_latents(self)
        _check_pseudo_inputs(self)
        _check_labels(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "ModelSpec":
        """Itself, as nothing in it can change."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by import paths, as some of jax's functions have no pickle."""
        return _from_description, (spec_to_json(self),)

    @property
    def is_conditional(self) -> bool:
        """Whether functions of the model are given something beside x (`labels`)."""
        beside = self.num_classes + self.num_covariates
        return beside > 0 or self.likelihood.takes_exposure

    @property
    def data_dim(self) -> int:
        """D, the product of `data_shape`."""
        return math.prod(self.data_shape)


def _from_description(description: Any) -> ModelSpec:
    # A pickle runs code anyway; who opens it trusts it.
    return spec_from_json(description, trust=True)


def _check_network(name: str, network: Any) -> None:
    """Raise ValueError if `network` is not a Linen module, as every adapter is."""
    _check_instance(name, network)
    if not is_linen(network):
        raise ValueError(
            f"{name} must be a Linen module, got {type(network).__name__}; wrap others "
            "by vae_jax.nnx_network(Class, ...), equinox_network(Class, ...) or "
            "FunctionNetwork(initial_weights, features)"
        )
    _check_hash(name, network)


def _check_choice(name: str, choice: Any, base: type) -> None:
    """Raise ValueError if `choice` does not subclass `base`, which has the defaults."""
    _check_instance(name, choice)
    if not isinstance(choice, base):
        raise ValueError(
            f"{name} must be a {base.__name__}, got {choice!r}: its class must "
            f"subclass vae_jax.types.{base.__name__}"
        )
    _check_hash(name, choice)


def _check_instance(name: str, choice: Any) -> None:
    if isinstance(choice, type):
        raise ValueError(f"{name} must be an instance: write {choice.__name__}(...)")


def _check_sides(spec: "ModelSpec") -> None:
    """Raise ValueError if a family does not declare the role that it is used in."""
    if spec.posterior.latent_space is None:
        raise ValueError(
            f"posterior {spec.posterior!r} is not a family of q(z|x): it declares no "
            "latent_space (types.Family)"
        )
    if spec.likelihood.support is None:
        raise ValueError(
            f"likelihood {spec.likelihood!r} is not a family of p(x|z): it declares no "
            "support (types.Family)"
        )


def _check_hash(name: str, choice: Any) -> None:
    try:
        hash(choice)
    except TypeError as error:
        raise ValueError(
            f"{name} {choice!r} cannot be hashed ({error}); use tuples for lists, "
            "and leaves of Params for arrays and real numbers"
        ) from error


def _check_latents(spec: "ModelSpec") -> None:
    """Raise ValueError if posterior and prior have incompatible latents."""
    pair = f"posterior {spec.posterior} and prior {spec.prior}"
    spaces = (spec.posterior.latent_space, spec.prior.latent_space)
    if spaces[1] is None and not spec.prior.is_mixture_of_posteriors:
        raise ValueError(
            f"prior {spec.prior!r} must declare the values of its latents, "
            f"latent_space = {spaces[0]!r} for those of this posterior (types.Prior)"
        )
    if spec.posterior.layers != spec.prior.layers:
        raise ValueError(f"{pair} must have the same stochastic layers")
    if spaces[1] not in (None, spaces[0]):
        raise ValueError(
            f"{pair} must have latents of the same kind, got {spaces[0]} and "
            f"{spaces[1]}: bits require a prior of bits, FactorizedBernoulliPrior()"
        )
    if spec.prior.is_mixture_of_posteriors and not spec.posterior.has_log_prob:
        raise ValueError(
            f"{pair}: the prior is a mixture of densities q(z|u), but the posterior "
            "has none at a given z; choose one with has_log_prob (DiagonalGaussian(), "
            "FullGaussian()), or another prior"
        )


def _check_pseudo_inputs(spec: "ModelSpec") -> None:
    """Raise ValueError if the prior encodes what is unlike all data."""
    if spec.prior.encodes_unit_interval and not spec.likelihood.covers_unit_interval:
        raise ValueError(
            f"prior {spec.prior!r} encodes pseudo-inputs between 0 and 1, and the data "
            f"of likelihood {spec.likelihood!r} are codes, counts or columns in their "
            "own units; choose another prior, such as MixtureOfGaussians()"
        )


def _check_labels(spec: "ModelSpec") -> None:
    """Raise ValueError if the labels of prior and model are incompatible."""
    prior = spec.prior
    if prior.num_classes not in (None, spec.num_classes):
        raise ValueError(
            f"prior {prior} has {prior.num_classes} classes, and num_classes is "
            f"{spec.num_classes}"
        )
    if prior.num_covariates and not prior.depends_on_labels:
        raise ValueError(
            f"prior {prior} declares num_covariates, which nothing would give it: "
            "declare depends_on_labels = True and define given"
        )
    if prior.num_covariates not in (0, spec.num_covariates):
        raise ValueError(
            f"prior {prior} has {prior.num_covariates} covariates, and num_covariates "
            f"is {spec.num_covariates}"
        )
    if prior.depends_on_labels and not (spec.num_classes or prior.num_covariates):
        raise ValueError(
            f"prior {prior} depends on labels, but num_classes is 0: set num_classes"
        )
    beside = spec.num_classes + spec.num_covariates
    if beside and prior.is_mixture_of_posteriors:
        raise ValueError(
            f"prior {prior} encodes without labels, and num_classes is "
            f"{spec.num_classes}, num_covariates {spec.num_covariates}; choose another "
            "prior, or 0 of both"
        )


def _check_size(name: str, size: Any) -> None:
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"{name} must hold positive integers, got {size!r}")


@partial(
    jax.tree_util.register_dataclass,
    data_fields=(
        "encoder",
        "decoder",
        "posterior",
        "prior",
        "likelihood",
        "network_key",
    ),
    meta_fields=("spec",),
)
@dataclass(frozen=True)
class Params:
    """Parameters of a model: subtrees of arrays and the spec that they belong to.

    A pytree whose `spec` is static: `jit`, `grad`, `vmap` and optax act on the arrays
    only, and combining the trees of two different specs raises an error.

    Attributes:
      encoder: weights of the encoder network.
      decoder: weights of the decoder network.
      posterior: parameters of the posterior family; empty for most families.
      prior: parameters of the prior; empty for N(0, I).
      likelihood: parameters of the likelihood, such as a Gaussian's log-variance.
      spec: model specification; static.
      network_key: PRNG key for random numbers drawn by the networks (dropout), set by
        `train_step` for the duration of a step; with None they are deterministic.
    """

    encoder: PyTree
    decoder: PyTree
    posterior: PyTree
    prior: PyTree
    likelihood: PyTree
    spec: ModelSpec
    network_key: Key | None = None

    def replace(self, **changes: PyTree) -> "Params":
        """Return a copy with some fields replaced."""
        return dataclasses.replace(self, **changes)
