"""`fit` as scripts call it: one program, or a loop on the host with validation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vae_jax import (
    ELBO,
    IWAE,
    MLP,
    Gaussian,
    Labelled,
    Linear,
    ModelSpec,
    data,
    elbo_objective,
    empty_history,
    evaluate,
    fit,
    init,
    init_state,
    shuffled_epoch,
    train_epoch,
    train_step,
)

RNG = np.random.default_rng(5)
X = RNG.integers(0, 2, (20, 6)).astype(np.float32)
SPEC = ModelSpec(MLP((4,)), MLP((4,)), latent_dim=2, data_shape=(6,))
KEY = jax.random.key(3)
OPTIONS = {"num_epochs": 3, "batch_size": 8}


@pytest.fixture(scope="module")
def params():
    return init(SPEC, jax.random.key(0))


@pytest.fixture(scope="module")
def fitted(params):
    return fit(params, X, KEY, **OPTIONS)


def assert_same(one, other, **tolerance):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, **{"rtol": 1e-5} | tolerance),
        one,
        other,
    )


@pytest.mark.long
def test_it_is_the_loop_that_one_writes_by_hand(params, fitted):
    adam = optax.adam(1e-3)
    noise_key, order_key, _ = jax.random.split(KEY, 3)
    step = functools.partial(train_step, objective=elbo_objective(), optimizer=adam)
    state = init_state(params, noise_key, optimizer=adam)
    run = jax.jit(functools.partial(train_epoch, step=step))
    for number in range(3):
        epoch = shuffled_epoch(order_key, number, num_examples=20, batch_size=8)
        history = empty_history(step, state, epoch, X)
        state, history = run(state, epoch, X, history, 3)
        mean = np.average(history["elbo"], weights=[8, 8, 4])
        np.testing.assert_allclose(fitted.history["elbo"][number], mean, rtol=1e-5)
    assert_same(fitted.params, state.params)


@pytest.mark.long
def test_a_linear_model_reaches_the_evidence_of_probabilistic_pca():
    """Whose maximum is known from the eigenvalues of the covariance."""
    loadings = np.array([[1.5, -1.0, 0.5, 1.0]])
    x = RNG.normal(size=(512, 1)) @ loadings + 0.5 * RNG.normal(size=(512, 4))
    eigenvalues = np.linalg.eigvalsh(np.cov(x.T, bias=True))
    noise, signal = eigenvalues[:3].mean(), eigenvalues[3]
    log_det = np.log(signal) + 3 * np.log(noise)
    best = -0.5 * (4 * np.log(2 * np.pi) + log_det + 4)
    spec = ModelSpec(
        Linear(),
        Linear(),
        likelihood=Gaussian(learned_variance=True),
        latent_dim=1,
        data_shape=(4,),
    )
    x = x.astype(np.float32)
    params = init(spec, jax.random.key(0), x=x)
    rate = optax.cosine_decay_schedule(0.03, 600)
    trained, _ = fit(params, x, KEY, num_epochs=150, optimizer=optax.adam(rate))
    found = jax.jit(functools.partial(evaluate, num_samples=64))(trained, x, KEY)
    assert float(jnp.mean(found.elbo)) == pytest.approx(best, abs=0.02)
    untrained = jax.jit(functools.partial(evaluate, num_samples=64))(params, x, KEY)
    assert float(jnp.mean(untrained.elbo)) < best - 1


@pytest.mark.long
def test_it_maps_over_models_and_settings(params, fitted):
    def train(beta):
        return fit(params, X, KEY, objective=elbo_objective(beta=beta), **OPTIONS)

    betas = jnp.array([1.0, 4.0])
    many = jax.jit(jax.vmap(train))(betas)
    assert many.history["elbo"].shape == (2, 3)
    assert_same(jax.tree.map(lambda leaf: leaf[0], many.params), fitted.params)
    one, other = many.history["objective"]
    assert np.abs(one - other).max() > 0.01


def test_a_callback_sees_every_epoch_and_may_end_the_training(params, fitted):
    seen = []

    def callback(epoch, figures, params):
        seen.append((epoch, figures["elbo"], jax.tree.map(np.asarray, params)))
        return epoch == 1

    stopped = fit(params, X, KEY, callback=callback, **OPTIONS)
    assert [epoch for epoch, *_ in seen] == [0, 1]
    np.testing.assert_allclose(
        stopped.history["elbo"], fitted.history["elbo"][:2], rtol=1e-5
    )
    np.testing.assert_allclose([elbo for _, elbo, _ in seen], stopped.history["elbo"])
    assert_same(stopped.params, seen[-1][2])


@pytest.mark.long
def test_the_best_epoch_on_validation_data_is_returned(params):
    """Steps of ordinary size, then such that the ELBO falls."""
    seen = []
    found = fit(
        params,
        X,
        KEY,
        num_epochs=8,
        batch_size=4,
        optimizer=optax.adam(lambda step: jnp.where(step < 20, 0.02, 3.0)),
        validation=X[:5],
        callback=lambda epoch, figures, params: seen.append(
            (figures["validation_elbo"], jax.tree.map(np.asarray, params))
        ),
    )
    elbos = [elbo for elbo, _ in seen]
    np.testing.assert_allclose(found.history["validation_elbo"], elbos)
    best = int(np.argmax(elbos))
    assert best < 7, "the last epoch is the best: this shows nothing"
    assert_same(found.params, seen[best][1])
    *_, validation_key = jax.random.split(KEY, 3)
    by_hand = jax.jit(evaluate)(found.params, X[:5], validation_key).elbo
    np.testing.assert_allclose(elbos[best], np.mean(by_hand), rtol=1e-5)


def test_patience_ends_the_training(params):
    """With a rate of 0 the first epoch stays the best."""
    found = fit(
        params,
        X,
        KEY,
        num_epochs=9,
        optimizer=optax.sgd(0.0),
        validation=X[:5],
        patience=2,
    )
    assert found.history["validation_elbo"].shape == (3,)


@pytest.mark.long
def test_labels_and_the_average_are_taken_along():
    spec = ModelSpec(MLP((4,)), MLP((4,)), latent_dim=2, data_shape=(6,), num_classes=3)
    data = Labelled(X, RNG.integers(0, 3, 20))
    params = init(spec, jax.random.key(0))
    average = fit(params, data, KEY, average_decay=0.9, validation=data, **OPTIONS)
    last = fit(params, data, KEY, **OPTIONS)
    assert np.isfinite(average.history["validation_elbo"]).all()
    kernels = (fitted.params.decoder["output"]["kernel"] for fitted in (average, last))
    assert np.abs(np.subtract(*map(np.asarray, kernels))).max() > 1e-5


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_epochs": 0}, "num_epochs must be at least 1, got 0"),
        ({"num_epochs": 2.0}, "num_epochs must be an integer, got 2.0"),
        ({"num_epochs": 1, "batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_epochs": 1, "patience": 2}, "patience 2 needs validation data"),
        pytest.param(
            {"num_epochs": 1, "validation": X, "optimizer": optax.sgd(float("nan"))},
            "validation ELBO was never above -inf",
            marks=pytest.mark.expects_nan,
        ),
        (
            {"num_epochs": 1, "patience": 0, "validation": X},
            "patience must be at least 1, got 0",
        ),
    ],
)
def test_options_that_no_run_can_have_are_refused(params, options, message):
    with pytest.raises(ValueError, match=message):
        fit(params, X, KEY, **options)


@pytest.mark.parametrize(
    "values, message",
    [
        (np.where(X > 0, np.nan, X), "data must be finite, got NaN or infinity in"),
        (7 * X, r"data must lie in \[0, 1\], got values from 0 to 7"),
        (X[:, :5], r"data must be \[B, 6\], one example per row, got \[20, 5\]"),
    ],
    ids=["nan", "grey levels", "columns"],
)
def test_data_that_the_model_is_not_of_are_refused(params, values, message):
    """Compiled, they would make a model of NaN without a word."""
    rows = data.Rows(values, np.arange(20), np.dtype(np.float32))
    for given in (values, jnp.asarray(values), rows):
        with pytest.raises(ValueError, match=message):
            fit(params, given, KEY, **OPTIONS)


def test_lists_are_refused(params):
    for given in (X.tolist(), Labelled(X, [0] * len(X))):
        with pytest.raises(ValueError, match="arrays with one row per example, got a"):
            fit(params, given, KEY, **OPTIONS)


def test_labels_that_no_class_has_are_refused():
    spec = ModelSpec(MLP((4,)), MLP((4,)), latent_dim=2, data_shape=(6,), num_classes=3)
    params = init(spec, jax.random.key(0))
    labels = np.arange(20) % 4
    for x in (X, data.Rows(X, np.arange(20), np.dtype(np.float32))):
        with pytest.raises(ValueError, match="labels must be integers .*, got 3"):
            fit(params, Labelled(x, labels), KEY, **OPTIONS)


@pytest.mark.parametrize("count", [19, 25])
def test_every_example_has_its_label(count):
    """Labels beyond the examples would shift which one belongs to which."""
    spec = ModelSpec(MLP((4,)), MLP((4,)), latent_dim=2, data_shape=(6,), num_classes=3)
    params = init(spec, jax.random.key(0))
    labels = jnp.arange(count) % 3
    run = functools.partial(fit, **OPTIONS)
    for function in (run, jax.jit(run)):
        with pytest.raises(ValueError, match=rf"one label per .* \[20, {count}\]"):
            function(params, Labelled(X, labels), KEY)


@pytest.mark.long
def test_data_may_be_what_a_preprocessing_or_an_objective_makes_of_them(params):
    def halved(batch, key):
        return batch / 2

    def of_halves(params, batch, key, step):
        return ELBO()(params, batch / 2, key, step)

    expected = fit(params, X, KEY, **OPTIONS).params
    made = fit(params, 2 * X, KEY, preprocess=halved, **OPTIONS).params
    own = fit(params, 2 * X, KEY, objective=of_halves, **OPTIONS).params
    assert_same(own, expected)
    # The key of the preprocessing is split off.
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(made))


def test_a_class_is_no_objective_and_a_name_no_estimator(params):
    with pytest.raises(ValueError, match=r"must be an instance, IWAE\(...\), got the"):
        fit(params, X, KEY, objective=IWAE, **OPTIONS)
    for objective in (ELBO, functools.partial(IWAE, num_samples=2)):
        with pytest.raises(ValueError, match="must be a function .*, got 'disarm'"):
            fit(params, X, KEY, objective=objective(estimator="disarm"), **OPTIONS)


def test_a_loop_on_the_host_is_refused_where_there_is_none(params):
    compiled = jax.jit(functools.partial(fit, validation=X, **OPTIONS))
    with pytest.raises(ValueError, match="^fit with validation is a loop on the host"):
        compiled(params, X, KEY)
    on_host = data.Rows(np.asarray(X), np.arange(len(X)), np.dtype(np.float32))
    with pytest.raises(ValueError, match="^fit with data on the host is a loop"):
        jax.jit(lambda params: fit(params, on_host, KEY, **OPTIONS))(params)
