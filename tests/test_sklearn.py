"""The scikit-learn estimator: its conventions, and its scores against exact ones."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
import scipy.stats
from sklearn.base import clone
from sklearn.decomposition import FactorAnalysis
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import vae_jax
from vae_jax.sklearn import VAE, likelihood_of

ROWS = np.random.default_rng(0).normal(size=(60, 4)) @ np.diag([1.0, 5, 0.1, 1]) + 7


@pytest.fixture(scope="module")
def fitted():
    return VAE(latent_dim=2, max_epochs=3, num_samples=50, random_state=0).fit(ROWS)


# The array-API check is skipped by scikit-learn itself, which needs an environment
# variable for it.
@pytest.mark.long
@parametrize_with_checks([VAE(latent_dim=1, max_epochs=2, num_samples=20)])
def test_it_keeps_the_conventions_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks([VAE(latent_dim=1)])
def test_it_keeps_them_with_its_defaults(estimator, check):
    check(estimator)


@pytest.mark.long
def test_a_linear_model_has_the_likelihood_of_factor_analysis():
    """A linear VAE with a variance for each column is factor analysis (1000 rows)."""
    rng = np.random.default_rng(1)
    loadings = np.array([[2.0, 1.0, 0.5, -1.0, 3.0, 0.3]])
    X = rng.normal(size=(1000, 1)) @ loadings + rng.normal(size=(1000, 6)) * 0.7 + 10
    spec = vae_jax.ModelSpec(
        encoder=vae_jax.Linear(),
        decoder=vae_jax.Linear(),
        likelihood=likelihood_of(X),
        latent_dim=1,
        data_shape=(6,),
    )
    model = VAE(
        spec=spec,
        validation_fraction=0.0,
        max_epochs=300,
        learning_rate=0.01,
        random_state=0,
    ).fit(X)
    exact = FactorAnalysis(n_components=1).fit(X).score(X)
    assert model.score(X) == pytest.approx(exact, abs=0.02)


@pytest.mark.long
def test_scores_are_log_evidence_in_the_units_of_the_data(fitted):
    """A change of units moves log p(x) by the log-Jacobian and by nothing else."""
    factor = 1000.0
    other = clone(fitted).fit(ROWS * factor)
    shift = other.score_samples(ROWS * factor) - fitted.score_samples(ROWS)
    np.testing.assert_allclose(shift, -4 * np.log(factor), atol=0.02)
    np.testing.assert_allclose(
        other.transform(ROWS * factor), fitted.transform(ROWS), atol=1e-3
    )
    found = jax.vmap(
        lambda row: vae_jax.log_evidence(
            fitted.params_, row[None], jax.random.key(0), num_samples=50
        ).estimate[0]
    )(jnp.asarray(ROWS[:3], jnp.float32))
    np.testing.assert_allclose(fitted.score_samples(ROWS[:3]), found, rtol=1e-4)


@pytest.mark.long
def test_a_constant_column_adds_as_little_whatever_the_constant():
    """0.1 is no float32, and its mean in float32 is another number."""
    scores = []
    for constant in (3.0, 0.1):
        X = np.column_stack([ROWS, np.full(len(ROWS), constant)])
        model = VAE(max_epochs=3, num_samples=50, random_state=0)
        with pytest.warns(UserWarning, match=r"one value in all rows of column \d+, "):
            model.fit(X)
        scores.append(model.score(X))
    assert scores[1] == pytest.approx(scores[0], abs=0.01)


@pytest.mark.long
def test_columns_that_float32_rounds_off_are_refused():
    rng = np.random.default_rng(3)
    X = np.column_stack([rng.normal(size=60), 1.7e9 + rng.uniform(0, 60, size=60)])
    model = VAE(max_epochs=2, num_samples=20, random_state=0)
    with pytest.raises(
        ValueError, match=r"varies by 1\d\.\d about 17000000\d\d in column 1.*Standard"
    ):
        model.fit(X)
    assert np.isfinite(make_pipeline(StandardScaler(), model).fit(X).score(X))
    with pytest.raises(ValueError, match=r"varies by .*e-4[01] about .* in column 0"):
        model.fit(1e-40 * rng.normal(size=(60, 2)))
    # Float32 has these whole numbers, and a constant has no digits to lose.
    X = np.column_stack([rng.poisson(3, size=60) + 10**6, np.full(60, 1.7e9 + 0.1)])
    with pytest.warns(UserWarning, match="one value in all rows of column 1, which"):
        model = clone(model).fit(X)
    assert np.isfinite(model.score(X))


def test_order_number_and_blocks_of_rows_do_not_matter(fitted):
    many = np.tile(ROWS, (5, 1))  # More than one block.
    for name in ("score_samples", "transform"):
        whole = getattr(fitted, name)(many)
        some = getattr(fitted, name)(many[::-7])
        np.testing.assert_allclose(some, whole[::-7], rtol=1e-6)


@pytest.mark.long
def test_samples_have_the_moments_of_the_data():
    model = VAE(latent_dim=2, max_epochs=200, random_state=0).fit(ROWS)
    drawn = model.sample(20_000)
    assert drawn.shape == (20_000, 4)
    np.testing.assert_array_equal(drawn, model.sample(20_000))
    deviation = ROWS.std(axis=0)
    assert np.all(np.abs(drawn.mean(axis=0) - ROWS.mean(axis=0)) < 0.5 * deviation)
    assert np.all(np.abs(np.log(drawn.std(axis=0) / deviation)) < np.log(1.5))
    codes = model.transform(ROWS)
    assert model.inverse_transform(codes).shape == ROWS.shape


def test_frames_go_in_and_out(fitted):
    frame = pandas.DataFrame(ROWS, columns=list("abcd"))
    model = clone(fitted).set_output(transform="pandas").fit(frame)
    codes = model.transform(frame)
    assert (
        list(codes.columns) == ["vae0", "vae1"] == list(model.get_feature_names_out())
    )
    np.testing.assert_allclose(codes, fitted.transform(ROWS), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="feature names"):
        model.transform(frame.rename(columns={"a": "z"}))


def test_it_is_pickled_and_cloned(fitted):
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.transform(ROWS), fitted.transform(ROWS))
    assert again.params_.spec == fitted.params_.spec
    assert not hasattr(clone(fitted), "params_")


@pytest.mark.long
def test_a_pipeline_and_a_grid_search_run():
    pipeline = make_pipeline(StandardScaler(), VAE(max_epochs=2, random_state=0))
    search = GridSearchCV(pipeline, {"vae__latent_dim": [1, 2]}, cv=2).fit(ROWS)
    assert search.best_params_["vae__latent_dim"] in (1, 2)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


@pytest.mark.parametrize(
    ("X", "name"),
    [
        (np.array([[True, False], [False, False]]), "Bernoulli"),
        (np.array([[0.0, 1.0], [1.0, 1.0]]), "Bernoulli"),
        (np.array([[0, 3], [1, 200]]), "NegativeBinomial"),
        (np.array([[0, -3], [1, 200]]), "Standardized"),
        (np.array([[0.0, 3.0], [1.0, 2.0]]), "Standardized"),
        (np.array([[0.0, np.nan], [1.0, 1.0]]), "Masked"),
    ],
)
@pytest.mark.filterwarnings("ignore:X holds whole numbers")
def test_the_likelihood_suits_the_values(X, name):
    assert type(likelihood_of(X)).__name__ == name


@pytest.mark.long
def test_missing_values_are_imputed_and_left_out_of_the_score():
    """Against the exact marginals and conditional means of a factor model."""
    rng = np.random.default_rng(4)
    loadings = np.array([[2.0, 1.0, 0.5, -1.0, 3.0, 0.3]])
    covariance = loadings.T @ loadings + 0.5 * np.eye(6)
    X = rng.multivariate_normal(np.full(6, 10.0), covariance, size=1500)
    missing = rng.random(X.shape) < 0.2
    rows = np.where(missing, np.nan, X)
    likelihood = likelihood_of(rows)
    assert type(likelihood).__name__ == "Masked"
    # With a linear decoder the factor model is among its models, and an encoder that
    # sees what is missing comes near to its posterior.
    likelihood = dataclasses.replace(likelihood, shows_mask=True)
    spec = vae_jax.ModelSpec(
        encoder=vae_jax.MLP((50,)),
        decoder=vae_jax.Linear(),
        likelihood=likelihood,
        latent_dim=1,
        data_shape=(6,),
    )
    model = VAE(spec=spec, random_state=0).fit(rows[:1000])
    held_out, expected, scores = rows[1000:], [], []
    for row in held_out:
        seen = ~np.isnan(row)
        among = covariance[np.ix_(seen, seen)]
        gain = np.linalg.solve(among, covariance[np.ix_(seen, ~seen)])
        expected.append(10 + (row[seen] - 10) @ gain)
        density = scipy.stats.multivariate_normal(np.full(seen.sum(), 10.0), among)
        scores.append(density.logpdf(row[seen]))
    imputed = model.impute(held_out)
    gaps, truth = missing[1000:], X[1000:]
    np.testing.assert_allclose(imputed[~gaps], held_out[~gaps], rtol=1e-6)
    error = np.mean((imputed - truth)[gaps] ** 2)
    assert error < 1.1 * np.mean((np.concatenate(expected) - truth[gaps]) ** 2)
    assert error < 0.5 * np.mean((10 - truth[gaps]) ** 2)
    assert model.score(held_out) == pytest.approx(np.mean(scores), abs=0.1)
    np.testing.assert_allclose(
        model.score_samples(held_out[::-9]), model.score_samples(held_out)[::-9], 1e-6
    )
    assert np.isfinite(model.transform(held_out)).all()
    assert np.isfinite(model.sample(5)).all()


def test_missing_values_without_a_model_for_them_are_refused(fitted):
    rows = ROWS.copy()
    rows[3, 1] = np.nan
    for method in (fitted.transform, fitted.score_samples, fitted.impute):
        with pytest.raises(
            ValueError,
            match=r"X contains NaN in column 1, and Standardized\(.*in fit$",
        ):
            method(rows)
    with pytest.raises(ValueError, match="X contains NaN in column 1, and Gaussian"):
        VAE(likelihood=vae_jax.Gaussian(), max_epochs=1).fit(rows)
    rows[:, 1] = np.nan
    with pytest.raises(ValueError, match="X has no value in column 1: leave it out"):
        VAE(max_epochs=1).fit(rows)
    rows[:, 1] = np.inf
    with pytest.raises(ValueError, match="infinity"):
        VAE(max_epochs=1).fit(rows)


@pytest.mark.long
def test_a_column_may_be_the_only_one_with_missing_values():
    rng = np.random.default_rng(5)
    X = np.column_stack([rng.normal(size=40), rng.integers(0, 2, 40)])
    X[3, 0] = np.nan
    real = vae_jax.Standardized(vae_jax.Gaussian(learned_variance=True))
    parts = ((vae_jax.Masked(real), (0,)), (vae_jax.Bernoulli(), (1,)))
    model = VAE(
        likelihood=vae_jax.Columns(parts), max_epochs=1, num_samples=20, random_state=0
    )
    assert np.isfinite(model.fit(X).score(X))
    X[4, 1] = np.nan
    with pytest.raises(ValueError, match="X contains NaN in column 1, and Columns"):
        model.fit(X)


@pytest.mark.long
def test_categories_which_have_no_mean_are_not_imputed_by_one():
    X = np.random.default_rng(6).integers(0, 3, (40, 2)).astype(float)
    X[3, 1] = np.nan
    masked = vae_jax.Masked(vae_jax.Nominal(3))
    model = VAE(likelihood=masked, max_epochs=1, num_samples=20, random_state=0).fit(X)
    np.testing.assert_array_equal(model.impute(X[:3]), X[:3])
    with pytest.raises(ValueError, match=r"missing values in columns \[1\], .* mean"):
        model.impute(X)


@pytest.mark.long
def test_a_column_whose_values_are_all_set_aside_does_not_end_the_training():
    """Seed 0 sets two of 20 rows aside, here those with a value of column 1."""
    X = np.random.default_rng(7).normal(size=(20, 2))
    split_key = jax.random.split(VAE(random_state=0)._key(), 3)[1]
    held_out = np.asarray(jax.random.permutation(split_key, 20))[:2]
    X[np.setdiff1d(np.arange(20), held_out), 1] = np.nan
    X[held_out, 1] += 1000
    model = VAE(max_epochs=2, num_samples=20, random_state=0).fit(X)
    assert np.isfinite(model.score(X))
    shift = model.params_.likelihood["shift"]
    np.testing.assert_allclose(shift, np.nanmean(X, axis=0), rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize(("max_epochs", "num_steps"), [(4, 6), (300, 400)])
def test_beta_is_1_for_half_of_the_steps_at_least(max_epochs, num_steps):
    """54 rows to train on are three steps an epoch."""
    options = {"max_epochs": max_epochs, "batch_size": 20, "hidden_dims": (4,)}
    rises = vae_jax.LinearWarmup(1.0, num_steps=num_steps)
    models = [
        VAE(**options, patience=300, random_state=0, objective=objective).fit(ROWS)
        for objective in (None, vae_jax.ELBO(beta=rises))
    ]
    jax.tree.map(np.testing.assert_array_equal, *(model.params_ for model in models))


@pytest.mark.long
def test_counts_of_a_floating_type_are_not_taken_for_real_numbers_unsaid(recwarn):
    X = np.array([[0.0, 3.0], [1.0, 2.0]])
    with pytest.warns(UserWarning, match=r"float64.*X.astype\(int\)"):
        VAE(latent_dim=1, max_epochs=1).fit(X)
    recwarn.clear()
    for other in (X.astype(int), X + 0.5, X - 1, X > 1):
        likelihood_of(other)
    VAE(latent_dim=1, max_epochs=1, likelihood=vae_jax.NegativeBinomial()).fit(X)
    assert not recwarn.list


@pytest.mark.long
def test_counts_are_scored_by_probabilities():
    rng = np.random.default_rng(2)
    X = rng.poisson(np.exp(rng.normal(size=(200, 1)) + 1), size=(200, 3))
    model = VAE(latent_dim=1, max_epochs=200, random_state=0, num_samples=200).fit(X)
    assert np.all(model.score_samples(X) < 0)
    assert model.sample(5).min() >= 0
    alone = sum(
        scipy.stats.nbinom.logpmf(column, *_nbinom(column)).mean() for column in X.T
    )
    assert model.score(X) > alone
    with pytest.raises(ValueError, match="x must"):
        model.transform(X + 0.5)


def _nbinom(column):
    """Size and probability by the method of moments."""
    mean, variance = column.mean(), column.var()
    size = mean**2 / (variance - mean)
    return size, size / (size + mean)


def test_a_progress_bar_is_shown_on_demand(capsys):
    VAE(max_epochs=2, verbose=True, random_state=0).fit(ROWS)
    assert "2/2" in capsys.readouterr().err
    VAE(max_epochs=2, random_state=0).fit(ROWS)
    assert capsys.readouterr().err == ""


def test_integers_of_numpy_are_taken_as_python_s(fitted):
    names = ("latent_dim", "max_epochs", "num_samples", "batch_size", "random_state")
    integers = {name: np.int64(fitted.get_params()[name]) for name in names}
    hidden = tuple(np.array(fitted.hidden_dims))
    model = VAE(**integers, hidden_dims=hidden, patience=np.int32(5)).fit(ROWS)
    assert model.params_.spec == fitted.params_.spec
    np.testing.assert_array_equal(model.score_samples(ROWS), fitted.score_samples(ROWS))
    np.testing.assert_array_equal(model.sample(np.int64(3)), fitted.sample(3))


def test_a_row_is_left_to_train_on():
    model = VAE(max_epochs=1, validation_fraction=0.9, random_state=0).fit(ROWS[:3])
    assert np.isfinite(model.transform(ROWS)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_epochs": 0}, "max_epochs must be a positive integer, got 0"),
        ({"max_epochs": True}, "max_epochs must be a positive integer, got True"),
        ({"batch_size": 1.5}, "batch_size must be a positive integer, got 1.5"),
        ({"validation_fraction": 1.0}, "validation_fraction must be in .0, 1."),
        ({"learning_rate": -1.0}, "learning_rate must be positive"),
        (
            {"likelihood": "gaussian"},
            "likelihood must be 'auto' or a Family, got 'gaussian'",
        ),
        ({"spec": vae_jax.ModelSpec()}, "spec must have the columns of X"),
        ({"latent_dim": 0}, "latent_dim must hold positive integers, got 0"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        VAE(**arguments).fit(ROWS)


@pytest.mark.long
def test_codes_of_several_layers_are_those_that_are_decoded():
    spec = vae_jax.ModelSpec(
        posterior=vae_jax.HierarchicalGaussian((vae_jax.StochasticLayer(2),)),
        prior=vae_jax.HierarchicalGaussianPrior((vae_jax.StochasticLayer(2),)),
        likelihood=vae_jax.Gaussian(),
        latent_dim=3,
        data_shape=(4,),
    )
    model = VAE(spec=spec, max_epochs=1, num_samples=5, random_state=0).fit(ROWS)
    codes = model.transform(ROWS)
    x = jnp.asarray(ROWS, jnp.float32)
    expected = vae_jax.encode(model.params_, x).mean[0]
    np.testing.assert_allclose(codes, expected, rtol=1e-5)
    assert model.inverse_transform(codes).shape == ROWS.shape


def test_bad_codes_and_counts_are_refused(fitted):
    with pytest.raises(ValueError, match=r"X must be codes \[n, 2\], got \[60, 4\]"):
        fitted.inverse_transform(ROWS)
    with pytest.raises(ValueError, match="n_samples must be a positive integer, got 0"):
        fitted.sample(0)
