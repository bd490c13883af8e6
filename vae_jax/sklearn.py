"""A variational autoencoder as a scikit-learn estimator, on top of `fit`.

    from vae_jax.sklearn import VAE
    codes = VAE(latent_dim=2).fit_transform(X)

It follows scikit-learn's conventions: a constructor that only stores its arguments,
learned attributes that end in an underscore, `clone`, pipelines, grid search, pickles.
"""

import contextlib
import functools
import math
import numbers
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vae_jax.data.tables import column_moments, require_digits
from vae_jax.evaluation import log_evidence
from vae_jax.extras import import_extra
from vae_jax.families import (
    Bernoulli,
    Gaussian,
    Masked,
    NegativeBinomial,
    Standardized,
)
from vae_jax.fitting import Callback, fit
from vae_jax.imputation import impute
from vae_jax.model import decode, encode, generate, init
from vae_jax.networks import MLP
from vae_jax.options import require_value
from vae_jax.schedules import LinearWarmup
from vae_jax.spec import ModelSpec, Params
from vae_jax.training_objectives import ELBO
from vae_jax.types import Array, Family, Key, Objective

_base = import_extra("sklearn.base", "sklearn")
_validation = import_extra("sklearn.utils.validation", "sklearn")
_utils = import_extra("sklearn.utils", "sklearn")

# Rows go through the compiled programs in blocks of this size, so that the result of a
# row depends neither on the other rows nor on their number.
_ROWS_AT_ONCE = 128
_WARMUP_STEPS = 400


class VAE(
    _base.ClassNamePrefixFeaturesOutMixin, _base.TransformerMixin, _base.BaseEstimator
):
    """A variational autoencoder of a table: codes, densities and samples of its rows.

    The default of two latents allows plotting the codes, but captures the correlations
    of few columns only. Held-out log p(x) per row of the defaults, and of a Gaussian
    with all covariances: -19.5 and -19.8 on wine, but -27.9 and -26.8 on diabetes and
    15.9 and 26.1 on breast cancer, where 10 latents reach -26.6 and 26.7. Of counts,
    and of independent negative binomials: -112.7 and -126.4 on digits, -1446 and -1639
    on 1000 genes of 200 cells (`python -m experiments.comparisons.tables`, `.counts`).

    Args:
      latent_dim: dimensions L of the codes.
      likelihood: a family of p(x|z), or `"auto"`: `Bernoulli()` if all values are 0 or
        1, `NegativeBinomial()` for other whole numbers of an integer type, else
        standardized columns with a learned variance for each (with a warning if a
        table of a floating type holds whole numbers only, and for a constant column,
        whose density training raises without end). If values are missing, it is
        `Masked(...)` of these.
      hidden_dims: widths of the encoder's hidden layers, of the decoder in reverse.
      spec: a `ModelSpec` in place of the four arguments above, apart from its
        `data_shape`.
      objective: training objective, to be maximised; the ELBO by default, whose beta
        rises from 0 over 400 steps, or over half of `max_epochs` if that is sooner.
      learning_rate: learning rate of Adam.
      batch_size: rows per step.
      max_epochs: passes over the data; by default as many as give 3000 steps, at least
        10.
      validation_fraction: share of the rows that are set aside to stop early: the
        parameters of the best epoch on them are kept. 0 trains on all rows for
        `max_epochs`.
      patience: epochs without improvement after which training ends; by default those
        of 500 steps, at least 5.
      num_samples: importance samples per row of `score_samples`.
      random_state: seed, or a `numpy.random.RandomState`.
      verbose: whether to show a progress bar (needs tqdm).

    Attributes:
      params_: the trained parameters, for every function of `vae_jax`.
      history_: figures of each epoch in nats, `[n_iter_]` each (`Fitted`).
      n_iter_: number of epochs.
      n_features_in_: number D of columns.
      feature_names_in_: their names, if X had any.

    Example:
      >>> import numpy as np
      >>> from vae_jax.sklearn import VAE
      >>> X = np.random.default_rng(0).normal(size=(64, 5))
      >>> model = VAE(latent_dim=2, max_epochs=2, random_state=0).fit(X)
      >>> model.transform(X).shape, model.score_samples(X).shape, model.sample(3).shape
      ((64, 2), (64,), (3, 5))
    """

    def __init__(
        self,
        latent_dim: int = 2,
        *,
        likelihood: str | Family = "auto",
        hidden_dims: tuple[int, ...] = (100,),
        spec: ModelSpec | None = None,
        objective: Objective | None = None,
        learning_rate: float = 3e-3,
        batch_size: int = 128,
        max_epochs: int | None = None,
        validation_fraction: float = 0.1,
        patience: int | None = None,
        num_samples: int = 1000,
        random_state: Any = None,
        verbose: bool = False,
    ):
        self.latent_dim = latent_dim
        self.likelihood = likelihood
        self.hidden_dims = hidden_dims
        self.spec = spec
        self.objective = objective
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.num_samples = num_samples
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> "VAE":
        """Train the model.

        Args:
          X: rows, `[n, D]`: an array or a DataFrame of numbers, NaN if missing.
          y: ignored.

        Returns:
          The estimator.

        Raises:
          ValueError: X is not a table of finite numbers, has fewer than 2 rows, values
            that the likelihood does not take, or a column without a value or one that
            varies too little about its mean for float32; an argument is out of its
            range.
        """
        self._check()
        X = self._validated(X, reset=True, ensure_min_samples=2)
        x = jnp.asarray(X, jnp.float32)
        init_key, split_key, fit_key = jax.random.split(self._key(), 3)
        num_held_out = min(round(self.validation_fraction * len(x)), len(x) - 1)
        batch_size = int(self.batch_size)
        order = jax.random.permutation(split_key, len(x))
        held_out, rows = x[order[:num_held_out]], x[order[num_held_out:]]
        steps_per_epoch = math.ceil(len(rows) / batch_size)
        num_epochs = int(self.max_epochs or max(10, math.ceil(3000 / steps_per_epoch)))
        spec = self._spec(X)
        _require_values(spec, x)
        _require_columns(X)
        # A column may have all of its values among the rows set aside.
        start = x if jnp.isnan(rows).all(axis=0).any() else rows
        params = jax.jit(init, static_argnums=0)(spec, init_key, x=start)
        # A short training must not end before beta is 1.
        warmup_steps = min(_WARMUP_STEPS, num_epochs * steps_per_epoch // 2)
        warmup = LinearWarmup(1.0, num_steps=warmup_steps)
        with _progress_bar(num_epochs, shown=self.verbose) as callback:
            fitted = fit(
                params,
                rows,
                fit_key,
                num_epochs=num_epochs,
                objective=ELBO(beta=warmup)
                if self.objective is None
                else self.objective,
                optimizer=optax.adam(self.learning_rate),
                batch_size=batch_size,
                validation=held_out if num_held_out else None,
                patience=self._patience(steps_per_epoch) if num_held_out else None,
                callback=callback,
            )
        self.params_ = fitted.params
        self.history_ = {
            name: np.asarray(values) for name, values in fitted.history.items()
        }
        self.n_iter_ = len(next(iter(self.history_.values())))
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Means of the posterior q(z|x), the codes.

        Of a flow, the images of the means of its base; of several stochastic layers,
        the means of the one nearest the data.

        Args:
          X: rows, `[n, D]`.

        Returns:
          `[n, L]`.
        """
        return self._of_rows("means", X)

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Means of p(x|z) at given codes, in the units of the data.

        Args:
          X: codes, `[n, L]`.

        Returns:
          `[n, D]`.

        Raises:
          ValueError: codes of another size.
        """
        _validation.check_is_fitted(self)
        z = _validation.check_array(X, dtype=np.float32)
        if z.shape[1] != self._n_features_out:
            raise ValueError(
                f"X must be codes [n, {self._n_features_out}], got {list(z.shape)}"
            )
        return _in_blocks(_compiled()["decoded"], self.params_, z)

    def score_samples(self, X: Any) -> np.ndarray:
        """Log p(x) of each row in nats, by importance samples (`log_evidence`).

        All rows share one set of noise, so that neither their order nor their number
        changes the score of a row.
        The samples come from the encoder's q, which can be far off for rows unlike the
        training rows; their scores are then far too low. `fit_posterior` followed by
        `log_evidence(params_, ..., posterior=)` is more accurate.

        Args:
          X: rows, `[n, D]`.

        Returns:
          `[n]`; a density in real columns, a probability in the others.
        """
        return self._of_rows("log_evidence", X, num_samples=int(self.num_samples))

    def score(self, X: Any, y: Any = None) -> float:
        """Mean of `score_samples`, in nats per row.

        Args:
          X: rows, `[n, D]`.
          y: ignored.

        Returns:
          A number; larger is better.
        """
        return float(np.mean(self.score_samples(X)))

    def impute(self, X: Any) -> np.ndarray:
        """Rows with missing values replaced by their means given the observed ones.

        The means E[x_missing | x_observed] are by importance samples (`vae_jax.impute`,
        which also gives draws and the effective sample size).

        Args:
          X: rows, `[n, D]`, NaN if missing.

        Returns:
          `[n, D]`; observed values are as they were, to float32.

        Raises:
          ValueError: a missing value of a column without a mean (`Nominal`).
        """
        imputed = self._of_rows("imputed", X, num_samples=int(self.num_samples))
        without_mean = np.flatnonzero(np.isnan(imputed).any(axis=0)).tolist()
        if without_mean:
            raise ValueError(
                f"X has missing values in columns {without_mean}, of which "
                f"{self.params_.spec.likelihood!r} has no mean: vae_jax.impute of "
                "params_ draws them"
            )
        return imputed

    def sample(self, n_samples: int = 1) -> np.ndarray:
        """Draw rows of the model: z ~ p(z), x ~ p(x|z).

        Args:
          n_samples: how many.

        Returns:
          `[n_samples, D]`; the same ones at every call if `random_state` is a seed.

        Raises:
          ValueError: `n_samples` is no positive integer.
        """
        _validation.check_is_fitted(self)
        if not (_is_integer(n_samples) and n_samples >= 1):
            raise ValueError(f"n_samples must be a positive integer, got {n_samples!r}")
        # `fit` splits the same key into three.
        key = jax.random.split(self._key(), 4)[3]
        return np.asarray(
            generate(self.params_, key, num_samples=int(n_samples), sample=True)
        )

    @property
    def _n_features_out(self) -> int:
        return self.params_.spec.latent_dim

    def __sklearn_tags__(self) -> Any:
        """Tags: missing values are allowed; codes are float32 whatever the rows are."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = []
        return tags

    def _check(self) -> None:
        """Raise ValueError for arguments out of their range."""
        for name in ("batch_size", "num_samples", "max_epochs", "patience"):
            value = getattr(self, name)
            if value is not None and not (_is_integer(value) and value >= 1):
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        fraction = self.validation_fraction
        require_value(
            "validation_fraction", fraction, lambda f: (f >= 0) & (f < 1), "in [0, 1)"
        )
        require_value("learning_rate", self.learning_rate, lambda r: r > 0, "positive")

    def _patience(self, steps_per_epoch: int) -> int:
        return int(self.patience or max(5, math.ceil(500 / steps_per_epoch)))

    def _key(self) -> Key:
        """A root key from `random_state`."""
        random = _utils.check_random_state(self.random_state)
        return jax.random.key(random.randint(2**31 - 1))

    def _spec(self, X: np.ndarray) -> ModelSpec:
        """The specification of the model for a table."""
        shape = (X.shape[1],)
        if self.spec is not None:
            if math.prod(self.spec.data_shape) != X.shape[1]:
                raise ValueError(
                    f"spec must have the columns of X, data_shape {shape}, got "
                    f"{self.spec.data_shape}"
                )
            return self.spec
        family = likelihood_of(X) if self.likelihood == "auto" else self.likelihood
        if isinstance(family, str):
            raise ValueError(f"likelihood must be 'auto' or a Family, got {family!r}")
        widths = tuple(_plain(width) for width in self.hidden_dims)
        return ModelSpec(
            encoder=MLP(widths),
            decoder=MLP(widths[::-1]),
            likelihood=family,
            latent_dim=_plain(self.latent_dim),
            data_shape=shape,
        )

    def _validated(self, X: Any, **options: Any) -> np.ndarray:
        """Rows as an array of numbers, checked as scikit-learn checks them."""
        X = _validation.validate_data(
            self, X, dtype="numeric", ensure_all_finite="allow-nan", **options
        )
        if X.dtype.kind not in "biuf":
            raise ValueError(f"X must hold real numbers, got {X.dtype}")
        return X

    def _of_rows(self, name: str, X: Any, **options: Any) -> np.ndarray:
        _validation.check_is_fitted(self)
        x = np.asarray(self._validated(X, reset=False), np.float32)
        _require_values(self.params_.spec, x)
        return _in_blocks(_compiled()[name], self.params_, x, **options)


def likelihood_of(X: np.ndarray) -> Family:
    """The likelihood that suits the values of a table.

    Args:
      X: `[n, D]`, of any numeric type, NaN if missing.

    Returns:
      `Bernoulli()` if all values are 0 or 1, `NegativeBinomial()` for other whole
      numbers of an integer type, none below 0; else `Standardized(Gaussian(...))` with
      a learned variance for each column, with a warning if all values could be counts,
      or if a column is constant. `Masked(...)` of these if values are missing.

    Example:
      >>> import numpy as np
      >>> from vae_jax.sklearn import likelihood_of
      >>> likelihood_of(np.array([[0, 1], [1, 1]]))
      Bernoulli()
    """
    present = X[~np.isnan(X)]
    family = _likelihood_of_values(present)
    if isinstance(family, Standardized):
        _warn_of_constants(X)
    return family if present.size == X.size else Masked(family)


def _likelihood_of_values(present: np.ndarray) -> Family:
    if np.isin(present, (0, 1)).all():
        return Bernoulli()
    if present.dtype.kind in "iu" and present.min() >= 0:
        return NegativeBinomial()
    if present.min() >= 0 and (present == np.rint(present)).all():
        warnings.warn(
            f"X holds whole numbers as {present.dtype}, which likelihood='auto' takes "
            "for real numbers: for counts, pass X.astype(int) or a family as "
            "likelihood=",
            stacklevel=3,
        )
    return Standardized(Gaussian(learned_variance=True, per_dimension=True))


def _is_integer(value: Any) -> bool:
    """Whether it is an integer of Python, NumPy or another library, and no boolean."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """Python's integer in the place of another library's."""
    return int(value) if _is_integer(value) else value


def _warn_of_constants(X: np.ndarray) -> None:
    """Warn of columns with a single value, whose learned variance goes to zero."""
    moments = column_moments(X)
    constant = np.flatnonzero(moments.low == moments.high)
    if constant.size:
        single = constant.size == 1
        columns, have = ("column", "has") if single else ("columns", "have")
        warnings.warn(
            f"X has one value in all rows of {columns} "
            f"{', '.join(map(str, constant))}, which {have} no density: the longer the "
            "training, the larger the score; leave out such columns, as by "
            "make_pipeline(VarianceThreshold(), VAE())",
            stacklevel=3,
        )


def _require_values(spec: ModelSpec, x: Any) -> None:
    """Raise ValueError for values that the likelihood does not take."""
    support = spec.likelihood.support
    missing = np.isnan(x)
    if missing.any() and (refused := missing & ~support.contains(np.asarray(x))).any():
        column = int(np.flatnonzero(refused.any(axis=0))[0])
        raise ValueError(
            f"X contains NaN in column {column}, and {spec.likelihood!r} does not "
            "accept missing values there: fit with the likelihood wrapped in "
            "Masked(...), which 'auto' does if values are missing in fit"
        )
    support.require(x)


def _require_columns(X: np.ndarray) -> None:
    """Refuses columns without values, or of which float32 rounds off what varies."""
    empty = np.flatnonzero(np.isnan(X).all(axis=0))
    if empty.size:
        raise ValueError(f"X has no value in column {empty[0]}: leave it out")
    require_digits(
        X,
        "X",
        remedy="subtract the mean, as by make_pipeline(StandardScaler(), VAE())",
    )


@functools.cache
def _compiled() -> dict[str, Callable[..., Array]]:
    """Programs of a block of rows; compiled once for each model and block."""
    root = jax.random.key(0)

    def means(params: Params, x: Array) -> Array:
        # Of several stochastic layers the one that `inverse_transform` decodes.
        return jax.tree.leaves(encode(params, x).mean)[0]

    def decoded(params: Params, z: Array) -> Array:
        return decode(params, z[None]).mean[0]

    def by_row(function: Callable[..., Any], figure: str) -> Callable[..., Array]:
        def of_rows(params: Params, x: Array, *, num_samples: int) -> Array:
            def of_row(row: Array) -> Array:
                # Number 0 of its data set, so that every row has the same noise.
                found = function(params, row[None], root, num_samples=num_samples)
                return getattr(found, figure)[0]

            return jax.lax.map(of_row, x)

        return jax.jit(of_rows, static_argnames="num_samples")

    return {
        "means": jax.jit(means),
        "decoded": jax.jit(decoded),
        "log_evidence": by_row(log_evidence, "estimate"),
        "imputed": by_row(impute, "mean"),
    }


def _in_blocks(
    function: Callable[..., Array], params: Params, rows: np.ndarray, **options: Any
) -> np.ndarray:
    """A function of blocks of rows, for any number of them; the last one is padded."""
    starts = range(0, len(rows), _ROWS_AT_ONCE)
    blocks = []
    for start in starts:
        block = rows[start : start + _ROWS_AT_ONCE]
        padding = np.repeat(block[:1], _ROWS_AT_ONCE - len(block), axis=0)
        found = function(params, np.concatenate([block, padding]), **options)
        blocks.append(np.asarray(found)[: len(block)])
    return np.concatenate(blocks)


@contextlib.contextmanager
def _progress_bar(num_epochs: int, *, shown: bool) -> Iterator[Callback | None]:
    """A progress bar as the callback of `fit`, or None where none is wanted."""
    if not shown:
        yield None
        return
    with import_extra("tqdm", "sklearn").tqdm(total=num_epochs, unit="epoch") as bar:

        def callback(epoch: int, figures: dict[str, float], params: Params) -> None:
            bar.set_postfix(objective=f"{figures['objective']:.2f}", refresh=False)
            bar.update()

        yield callback
