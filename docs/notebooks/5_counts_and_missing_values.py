# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Tables with missing values, and counts
#
# Not all data are images. This notebook models two kinds of tables:
#
# - **measurements** in the units of the user, some of them missing, which the model
#   then fills in, with their uncertainty;
# - **counts**, where the choice of the likelihood decides whether the model describes
#   the data at all, and a *posterior predictive check* shows it.

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import scipy.stats
from figures import use_style
from sklearn.datasets import load_breast_cancer
from sklearn.impute import SimpleImputer

from vae_jax import (
    MLP,
    Gaussian,
    LogNormal,
    Masked,
    ModelSpec,
    NegativeBinomial,
    Poisson,
    Standardized,
    decode,
    evaluate,
    fit,
    impute,
    init,
    log_evidence,
    posterior_predictive,
)

use_style()

# %% [markdown]
# ## A table in its own units
#
# 569 tumours, described by 30 measurements of cell nuclei. Their scales differ by a
# factor of 100,000: areas are around 650, some errors around 0.003. We remove a quarter
# of all values at random; `NaN` marks what is missing.

# %%
cancer = load_breast_cancer()
complete, names = cancer.data, cancer.feature_names
missing = np.random.default_rng(0).random(complete.shape) < 0.25
observed = np.where(missing, np.nan, complete)
for name in ("mean area", "smoothness error"):
    column = observed[:, names == name]
    print(f"{name:>17}: mean {np.nanmean(column):.4g}, {np.isnan(column).mean():.0%}")
print(f"rows without any missing value: {np.mean(~missing.any(axis=1)):.0%}")

# %% [markdown]
# Dropping incomplete rows would leave nothing. Instead, the likelihood is wrapped
# twice:
#
# - `Standardized` lets the networks see columns of mean 0 and variance 1, while $x$,
#   draws and $\log p(x)$ stay in the units of the data;
# - `Masked` leaves missing values out of $\log p(x \mid z)$. Because the columns are
#   independent *given $z$*, that is the exact likelihood of what was observed:
#
# $$ p(x_{\text{obs}} \mid z) = \int p(x \mid z) \, dx_{\text{mis}}
# = \prod_{d \, \text{observed}} p(x_d \mid z) . $$
#
# The ELBO becomes a bound on $\log p(x_{\text{obs}})$. It assumes that *whether* a
# value is missing does not depend on the value itself.
#
# The Gaussian learns the variance of each column. With its default, a fixed variance
# of 1, a column that is almost a function of the others would stay as noisy as one
# that is not.

# %%
network = MLP((64,), activation=jnp.tanh)


def spec_of(likelihood, *, latent_dim, columns):
    return ModelSpec(
        network,
        network,
        likelihood=likelihood,
        latent_dim=latent_dim,
        data_shape=(columns,),
    )


def trained(spec, x, key, *, num_epochs):
    init_key, fit_key = jax.random.split(key)
    params = init(spec, init_key, x=x)
    options = {"batch_size": 64, "optimizer": optax.adam(5e-3)}
    return fit(params, x, fit_key, num_epochs=num_epochs, **options).params


table = jnp.asarray(observed, jnp.float32)
real = Gaussian(learned_variance=True, per_dimension=True)
masked = spec_of(Masked(Standardized(real)), latent_dim=8, columns=30)
model = trained(masked, table, jax.random.key(0), num_epochs=150)

# %% [markdown]
# ## Filling in
#
# `impute` gives the mean of each missing value given the observed ones of its row, by
# importance sampling, and draws from that distribution. How far off are the means? The
# unit is the standard deviation of the column, so that guessing the column's mean is
# off by about 1.

# %%
filled = jax.jit(partial(impute, num_samples=500, num_draws=100))(
    model, table, jax.random.key(1)
)
by_column_means = SimpleImputer(strategy="mean").fit_transform(observed)


def errors_of(imputed):
    """Root mean square error of each column in its standard deviations, `[D]`."""
    squares = np.where(missing, (imputed - complete) ** 2, np.nan)
    return np.sqrt(np.nanmean(squares, axis=0)) / complete.std(axis=0)


of_vae, of_means = errors_of(np.asarray(filled.mean)), errors_of(by_column_means)
print(
    f"root mean square error: column means {np.sqrt(np.mean(of_means**2)):.2f}, ",
    end="",
)
print(f"VAE {np.sqrt(np.mean(of_vae**2)):.2f} standard deviations")
assert np.mean(of_vae < of_means) > 0.9
assert np.sqrt(np.mean(of_vae**2)) < 0.55 * np.sqrt(np.mean(of_means**2))
np.testing.assert_allclose(filled.mean[~missing], table[~missing])

# %%
area = int(np.flatnonzero(names == "mean area")[0])
chosen = missing[:, area]
order = np.argsort(of_vae)
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4), width_ratios=[1, 1.5])
left.plot(complete[chosen, area], by_column_means[chosen, area], ".", color="C1")
left.plot(complete[chosen, area], filled.mean[chosen, area], ".", color="C0")
left.axline((0, 0), slope=1, color="black", lw=1)
left.set(xlabel="true mean area (pixels²)", ylabel="imputed mean area (pixels²)")
left.set_title("Removed values of one column")
right.plot(of_means[order], "o", color="C1", ms=5, label="column means")
right.plot(of_vae[order], "o", color="C0", ms=5, label="VAE")
right.set_xticks(range(30), names[order], rotation=90, fontsize=7)
right.set(ylabel="RMSE (standard deviations)", ylim=(0, 1.7))
right.set_title("All columns")
right.legend(loc="upper left")
plt.show()

# %% [markdown]
# ## How sure is it?
#
# A filled-in value is a guess. The 100 draws say how good: a 90% interval should hold
# the true value nine times out of ten. The weights of the importance samples have heavy
# tails in many rows (Pareto k, see the notebook on $\log p(x)$), so that this check
# against values we know is worth more than the model's word.

# %%
low, high = np.quantile(filled.draws, [0.05, 0.95], axis=0)
inside = ((low <= complete) & (complete <= high))[missing].mean()
print(f"90% intervals hold {inside:.1%} of the {missing.sum()} removed values")
print(f"Pareto k above 0.7 in {np.mean(filled.pareto_k > 0.7):.0%} of the rows")
assert 0.86 < inside < 0.94

some = np.flatnonzero(missing[:, 1])[:50]
some = some[np.argsort(complete[some, 1])]
figure, axes = plt.subplots(figsize=(8, 3.4))
axes.vlines(range(50), low[some, 1], high[some, 1], "C0", lw=4, alpha=0.5)
axes.plot(filled.mean[some, 1], "o", ms=4, label="imputed mean, 90% interval")
axes.plot(complete[some, 1], "_", color="black", ms=9, mew=2, label="removed value")
axes.set(
    xlabel="50 of the rows, sorted", ylabel=f"{names[1]} (grey levels)", ylim=(9, 34)
)
axes.set_title("A column that is hard to guess, and is known to be")
axes.legend()
plt.show()

# %% [markdown]
# ## Units
#
# The density of a continuous $x$ has a unit. In millimetres instead of metres every
# number is 1000 times larger, the density is 1000 times smaller, and $\log p$ falls by
# $\log 1000 \approx 6.9$ nats *for each column*, with the same model:
#
# $$ \log p(c \, x) = \log p(x) - \sum_d \log c_d . $$
#
# So a $\log p(x)$ of real numbers can be positive, and two values are comparable only
# for the same data in the same units. A model of standardized columns would report a
# third number.

# %%
change = np.geomspace(0.01, 1000, 30)
likelihood = model.likelihood | {
    "shift": model.likelihood["shift"] * change,
    "log_scale": model.likelihood["log_scale"] + np.log(change),
}
in_other_units = model.replace(likelihood=likelihood)
full = jnp.asarray(complete, jnp.float32)
score = jax.jit(evaluate)
before = score(model, full, jax.random.key(2)).elbo.mean()
after = score(in_other_units, full * change, jax.random.key(2)).elbo.mean()
print(f"ELBO {before:.2f} nats per row, {after:.2f} in other units")
assert abs(before - after - np.log(change).sum()) < 0.01

# %% [markdown]
# ## Counts
#
# Counts are whole numbers, with many zeros and a long tail. Our table is simulated, so
# that we know the truth: 600 samples of 20 species. Two hidden factors set the expected
# counts, and the counts vary more than a Poisson distribution allows.

# %%
random = np.random.default_rng(0)
factors = random.normal(size=(900, 2))
loadings = random.normal(size=(2, 20)) * 0.6
rates = np.exp(0.8 + factors @ loadings)
counts = random.negative_binomial(1.5, 1.5 / (1.5 + rates))
train_counts, test_counts = (
    jnp.asarray(rows, jnp.float32) for rows in (counts[:600], counts[600:])
)
print(f"zeros {np.mean(counts == 0):.0%}, largest count {counts.max()}")

# %% [markdown]
# The Poisson distribution has variance = mean $m$. The negative binomial has the
# variance $m + m^2 / r$, with $r$ learnt for each column. Which one fits?

# %%
families = {"Poisson": Poisson(), "negative binomial": NegativeBinomial()}
of_counts = {
    name: trained(
        spec_of(family, latent_dim=2, columns=20),
        train_counts,
        jax.random.key(3),
        num_epochs=80,
    )
    for name, family in families.items()
}
evidence = jax.jit(partial(log_evidence, num_samples=200))
log_p = {
    name: np.asarray(evidence(params, test_counts, jax.random.key(4)).estimate)
    for name, params in of_counts.items()
}
difference = log_p["negative binomial"] - log_p["Poisson"]
error = difference.std(ddof=1) / np.sqrt(len(difference))
for name, values in log_p.items():
    print(f"{name:>17}: test log p(x) = {values.mean():.2f} nats per sample")
print(f"difference {difference.mean():.2f} ± {error:.2f}")
assert difference.mean() > 10 * error

# %% [markdown]
# The library's negative binomial agrees with SciPy's:

# %%
z = jnp.zeros((1, 1, 2))
negative_binomial = jax.jit(decode)(of_counts["negative binomial"], z)
mean, r = (
    np.ravel(np.broadcast_to(each, (1, 1, 20)))
    for each in (negative_binomial.mean, negative_binomial.inverse_dispersion)
)
by_scipy = scipy.stats.nbinom(r, r / (r + mean)).logpmf(np.asarray(test_counts[0]))
np.testing.assert_allclose(
    negative_binomial.log_prob(test_counts[:1])[0, 0], by_scipy.sum(), rtol=1e-4
)

# %% [markdown]
# ## A posterior predictive check
#
# A better $\log p(x)$ does not say *what* is wrong with the other model, or whether the
# better one is any good. So let each model make data like those it was given: draw $z$
# from $q(z \mid x)$, then new counts from $p(x \mid z)$, 100 times, and compare
# statistics. One that lies outside of the predictive interval is a property of the data
# that the model does not have.

# %%
check = jax.jit(partial(posterior_predictive, num_replications=100))
checks = {
    name: check(params, test_counts[:200], jax.random.key(5))
    for name, params in of_counts.items()
}
statistics = {"zeros": "share of zeros", "dispersion": "variance / mean"}
figure, panels = plt.subplots(2, 1, figsize=(8.5, 5.6), sharex=True)
for axes, (statistic, label) in zip(panels, statistics.items(), strict=True):
    for number, (name, found) in enumerate(checks.items()):
        where, each = np.arange(20) + 0.3 * number - 0.15, found[statistic]
        axes.vlines(where, each.lower, each.upper, f"C{number}", lw=4, label=name)
    axes.plot(checks["Poisson"][statistic].observed, "k_", ms=11, mew=2, label="data")
    axes.set(ylabel=label)
panels[0].set_title("95% predictive intervals of each column, and the data")
panels[0].legend(loc="upper left", bbox_to_anchor=(1, 1))
panels[1].set(xlabel="column", xticks=range(20), yscale="log")
plt.show()

# %% [markdown]
# The Poisson model makes too few zeros and varies too little in most columns. The
# negative binomial has both. Statistics of the data lie outside of a 95% interval in
# one column of twenty even where the model is right.

# %%
for name, found in checks.items():
    for statistic in statistics:
        share = np.mean(found[statistic].inside)
        print(f"{name:>17}, {statistic:>10}: data inside in {share:.0%} of the columns")
for statistic in statistics:
    poisson, negative = (found[statistic].inside for found in checks.values())
    assert np.mean(poisson) < 0.5 < np.mean(negative)

# %% [markdown]
# ## Exercises
#
# 1. **Means shrink.** Compare the standard deviation of the removed values of each
#    column, of their imputed means, and of one draw for each. Which of the two would
#    you fill in before computing a variance or a correlation?
# 2. **Missing for a reason.** Remove the *largest* quarter of `mean area` and of
#    nothing else, train, and impute. Are the imputed areas right on average? Which
#    assumption was broken?
# 3. **Skewed columns.** Which likelihood suits the ten `error` columns without zeros
#    better, `Standardized(real)` or `LogNormal()`? Compare
#    $\log p(x)$ of 169 test rows in the units of the data.

# %% [markdown]
# ## Solutions
#
# ### 1. Means shrink
#
# The conditional mean leaves out what the observed values do not tell, so that imputed
# means vary less than real values. Draws have the right spread: use several of them,
# compute the result for each, and average (multiple imputation).

# %%
deviation = lambda x: np.nanstd(np.where(missing, x, np.nan), axis=0)
of_truth = deviation(complete)
ratios = {
    "imputed means": deviation(filled.mean) / of_truth,
    "one draw": deviation(filled.draws[0]) / of_truth,
}
for name, ratio in ratios.items():
    print(f"{name:>13}: {np.mean(ratio):.2f} of the true standard deviation")
assert np.mean(ratios["imputed means"]) < 0.95
assert abs(np.mean(ratios["one draw"]) - 1) < abs(np.mean(ratios["imputed means"]) - 1)

# %% [markdown]
# ### 2. Missing for a reason
#
# The model has only seen small areas. Other columns (radius, perimeter) still say that
# the removed ones are large, but the imputed values are too small: values were *not*
# missing at random given the observed ones, and no amount of data repairs that.

# %%
large = complete[:, area] > np.quantile(complete[:, area], 0.75)
without_large = complete.copy()
without_large[large, area] = np.nan
censored = jnp.asarray(without_large, jnp.float32)
biased = trained(masked, censored, jax.random.key(6), num_epochs=100)
guess = jax.jit(partial(impute, num_samples=500))(biased, censored, jax.random.key(7))
off = np.asarray(guess.mean)[large, area] - complete[large, area]
at_random = (
    np.asarray(filled.mean)[chosen & large, area] - complete[chosen & large, area]
)
print(f"mean error {off.mean():.0f}, when missing at random {at_random.mean():.0f}")
assert off.mean() < -4 * off.std() / np.sqrt(len(off))
assert off.mean() < at_random.mean()

# %% [markdown]
# ### 3. Skewed columns

# %%
positive = np.flatnonzero(
    [
        "error" in name and complete[:, column].min() > 0
        for column, name in enumerate(names)
    ]
)
rows = jnp.asarray(complete[np.random.default_rng(1).permutation(569)][:, positive])
of_family = {}
for name, family in {
    "Gaussian": Standardized(real),
    "log-normal": LogNormal(),
}.items():
    spec = spec_of(family, latent_dim=3, columns=len(positive))
    params = trained(spec, rows[:400], jax.random.key(8), num_epochs=150)
    of_family[name] = np.asarray(
        evidence(params, rows[400:], jax.random.key(9)).estimate
    )
    print(f"{name:>10}: test log p(x) = {of_family[name].mean():.2f} nats per row")
difference = of_family["log-normal"] - of_family["Gaussian"]
assert difference.mean() > 4 * difference.std() / np.sqrt(len(difference))
