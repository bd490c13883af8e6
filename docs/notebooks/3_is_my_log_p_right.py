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
# # Is my log p(x) right?
#
# A VAE is trained on a lower bound. To say how good the *model* is, and to compare it
# with others, one wants
#
# $$ \log p(x) = \log \int p(x \mid z) \, p(z) \, dz , $$
#
# the log-evidence, itself. All practical estimates of it are bounds in expectation, and
# a bad one looks just like a bad model. This notebook measures the common estimates
# against models whose $\log p(x)$ is known exactly, and then does the same for a VAE.

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import scipy.stats
from figures import use_style
from sklearn.datasets import load_wine

from vae_jax import (
    MLP,
    ModelSpec,
    annealed_log_evidence,
    bidirectional_log_evidence,
    data,
    encode,
    evaluate,
    exact,
    fit,
    init,
    log_evidence,
    log_weight,
)
from vae_jax.distributions import DiagonalGaussianDistribution

use_style()


def mean_and_error(values):
    values = np.asarray(values, float)
    return values.mean(), values.std(ddof=1) / np.sqrt(len(values))


# %% [markdown]
# ## A model with a known answer
#
# With a linear decoder and Gaussian noise everything is Gaussian:
#
# $$ z \sim N(0, I), \quad x \mid z \sim N(W z + b, s^2 I)
# \quad \Rightarrow \quad x \sim N(b, \, W W^\top + s^2 I) . $$
#
# This is probabilistic PCA, and its maximum likelihood has a closed form. We take 13
# chemical measurements of 178 wines, standardized, and four latents. Multiplying $W$ by
# a rotation changes nothing about $p(x)$, but makes the latents of the posterior
# dependent on one another, as they are in any interesting model.

# %%
wine = load_wine().data
x = jnp.asarray((wine - wine.mean(axis=0)) / wine.std(axis=0))
aligned = exact.maximum_likelihood(x, latent_dim=4)
rotation = scipy.stats.ortho_group.rvs(4, random_state=0)
model = aligned._replace(weights=aligned.weights @ rotation)
truth = exact.log_evidence(model, x)

covariance = model.weights @ model.weights.T + model.noise_var * jnp.eye(13)
by_scipy = scipy.stats.multivariate_normal(model.bias, covariance).logpdf(x)
np.testing.assert_allclose(truth, by_scipy, rtol=1e-4)
np.testing.assert_allclose(truth, exact.log_evidence(aligned, x), rtol=1e-4)
print(f"mean log p(x) = {truth.mean():.3f} nats per wine")

# %% [markdown]
# ## The ELBO
#
# `linear_vae` builds the VAE that has this decoder and the best encoder that a diagonal
# Gaussian $q$ allows. Its bound misses $\log p(x)$ by
# $\mathrm{KL}(q(z \mid x) \,\|\, p(z \mid x))$, which is known here: it is the same for
# every $x$, and no training can remove it.

# %%
vae = exact.linear_vae(model)
gap = exact.diagonal_gap(model)
bound = jax.jit(partial(evaluate, num_samples=200))(vae, x, jax.random.key(0)).elbo
shortfall, error = mean_and_error(truth - bound)
print(f"log p(x) - ELBO = {shortfall:.4f} ± {error:.4f} nats, exactly {gap:.4f}")
assert abs(shortfall - gap) < 4 * error and gap > 0.1

# %% [markdown]
# ## More samples: the importance-weighted bound
#
# Average the weights $w_k = p(x, z_k) / q(z_k \mid x)$ before taking the logarithm:
#
# $$ \log p(x) \;\ge\; \mathbb{E} \log \frac1K \sum_{k=1}^K w_k , \qquad
# z_k \sim q(z \mid x) . $$
#
# $K = 1$ is the ELBO. The bound rises with $K$ and converges to $\log p(x)$, at a rate
# of $1/K$ as long as the weights have a finite variance. Below, 1024 samples of each
# wine are used in groups of $K$. `importance_weighted_bound` is the same as a call.

# %%
q = encode(vae, x)
z, log_q = q.sample_and_log_prob(jax.random.key(1), 1024)
log_w = log_weight(vae, x, z, log_q)  # [samples, wines]

counts = np.array([1, 4, 16, 64, 256, 1024])
shortfalls = []
for count in counts:
    groups = log_w.reshape(-1, count, len(x))
    bounds = jax.nn.logsumexp(groups, axis=1) - np.log(count)
    shortfalls.append(mean_and_error(truth - bounds.mean(axis=0)))
means, errors = np.transpose(shortfalls)
assert abs(means[0] - gap) < 4 * errors[0]
assert means[2] < means[0] / 3, "the bound rises"
assert np.all(means > -3 * errors), "and stays below"

figure, axes = plt.subplots(figsize=(7.5, 3.6))
axes.errorbar(counts, means, 2 * errors, fmt="o-", capsize=3, label="measured")
axes.axhline(gap, color="C1", ls="--", label="exact gap of the ELBO")
axes.axhline(0, color="black", lw=1)
axes.set(xscale="log", xlabel="importance samples K", ylabel="log p(x) - bound (nats)")
axes.set_title("The bound approaches log p(x) from below (bars: 2 standard errors)")
axes.legend()
plt.show()

# %% [markdown]
# ## When importance sampling fails, and how to notice
#
# The estimate relies on $q$ covering the posterior. If $q$ is too narrow, a few samples
# in its tails would carry most of the evidence, but they are hardly ever drawn. Then
# the estimate is too low, *and its standard error too small*: it only knows the weights
# that were drawn.
#
# The diagnostic is the tail index $\hat k$ of the weights (Pareto k). Above 0.7 neither
# the estimate nor its error bar can be trusted. Let us scale the standard deviation of
# $q$ by a factor and compare.

# %%
scales = np.array([0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0])
estimate = jax.jit(partial(log_evidence, num_samples=1000))
rows = []
for scale in scales:
    scaled = DiagonalGaussianDistribution(q.mean, q.log_var + 2 * np.log(scale))
    found = estimate(vae, x, jax.random.key(2), posterior=scaled)
    actual = np.sqrt(np.mean((found.estimate - truth) ** 2))
    claimed = np.sqrt(np.mean(found.standard_error**2))
    rows.append((actual, claimed, np.median(found.pareto_k)))
    print(
        f"scale {scale:4}: root mean square error {actual:.3f}, standard error "
        f"{claimed:.3f}, k > 0.7 for {np.mean(found.pareto_k > 0.7):4.0%}"
    )
actual, claimed, tail_index = np.transpose(rows)
assert actual[0] > 3 * claimed[0] and tail_index[0] > 0.7
assert actual[-1] < 1.3 * claimed[-1] and tail_index[-1] < 0.7

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
left.plot(scales, actual, "o-", label="actual error")
left.plot(scales, claimed, "o-", label="standard error it claims")
left.set(xscale="log", yscale="log", xlabel="width of q / best width", ylabel="nats")
left.set_title("Too narrow: wrong and sure of it")
left.legend()
right.plot(scales, tail_index, "o-", color="C2")
right.axhline(0.7, color="black", lw=1, ls="--", label="0.7")
right.set(xscale="log", xlabel="width of q / best width", ylabel="median Pareto k")
right.set_title("Pareto k gives the warning")
right.legend()
for axes in (left, right):
    axes.set_xticks(scales, scales)
    axes.minorticks_off()
plt.show()

# %% [markdown]
# ## From both sides: annealing
#
# Annealed importance sampling (AIS) needs no $q$. It moves samples of the prior to the
# posterior along a path of distributions $p(z) \, p(x \mid z)^t$, with steps of
# Hamiltonian Monte Carlo in between, and gives a lower bound in expectation.
#
# On data that the model itself has *simulated* there is more: the $z$ that produced $x$
# is an exact sample of the posterior. Annealing back from it to the prior gives an
# **upper** bound. If both agree, both are right, to within their standard errors; no
# other estimate offers that.

# %%
lengths = np.array([4, 20, 100])
lower, upper = [], []
for length in lengths:
    sandwich = jax.jit(
        partial(
            bidirectional_log_evidence,
            num_examples=30,
            num_chains=4,
            num_temperatures=int(length),
        )
    )(vae, jax.random.key(3))
    known = exact.log_evidence(model, sandwich.x)
    lower.append(mean_and_error(sandwich.lower - known))
    upper.append(mean_and_error(sandwich.upper - known))
lower, upper = np.transpose(lower), np.transpose(upper)
assert np.all(lower[0] < 3 * lower[1]) and np.all(upper[0] > -3 * upper[1])
assert upper[0][-1] < upper[0][0] / 3 and lower[0][-1] > lower[0][0] / 3

figure, axes = plt.subplots(figsize=(7.5, 3.6))
for (means, errors), name in ((upper, "reverse annealing"), (lower, "annealing")):
    axes.errorbar(lengths, means, 2 * errors, fmt="o-", capsize=3, label=name)
axes.axhline(0, color="black", lw=1, label="exact")
axes.set(xscale="log", xlabel="temperatures", ylabel="estimate - log p(x) (nats)")
axes.set_xticks(lengths, lengths)
axes.minorticks_off()
axes.set_title("Two bounds close in on the exact value (30 simulated wines)")
axes.legend()
plt.show()

# %% [markdown]
# ## A VAE of digits
#
# Now a nonlinear decoder. With two latents the integral can still be done on a grid:
# `quadrature_log_evidence` sums over $300^2$ points, and reports its own error. A
# smooth integrand suits it best, hence the `tanh` in the networks.

# %%
digits = data.load("digits")
bits, test = (jnp.asarray(x > 8, jnp.float32) for x in (digits.train, digits.test))
network = MLP((100,), activation=jnp.tanh)
spec = ModelSpec(network, network, latent_dim=2, data_shape=(8, 8))
init_key, fit_key, elbo_key, evidence_key, annealing_key = jax.random.split(
    jax.random.key(4), 5
)
vae_of_digits = fit(
    init(spec, init_key, x=bits),
    bits,
    fit_key,
    num_epochs=60,
    optimizer=optax.adam(2e-3),
).params

images = test[:60]
grid = jax.jit(partial(exact.quadrature_log_evidence, num_points=300))
on_grid = grid(vae_of_digits, images)
print(f"mean log p(x) = {on_grid.estimate.mean():.3f} nats per image")
print(f"largest error of the quadrature {on_grid.error.max():.1e} nats")
assert on_grid.error.max() < 1e-3

# %%
importance = {
    f"importance, K = {count}": jax.jit(partial(log_evidence, num_samples=count))(
        vae_of_digits, images, evidence_key
    )
    for count in (10, 100, 5000)
}
annealed = jax.jit(partial(annealed_log_evidence, num_chains=8, num_temperatures=100))(
    vae_of_digits, images, annealing_key
)
elbos = jax.jit(partial(evaluate, num_samples=100))(vae_of_digits, images, elbo_key)

estimates = {"ELBO": elbos.elbo}
estimates |= {name: found.estimate for name, found in importance.items()}
estimates["annealing"] = annealed.estimate
off = {
    name: mean_and_error(each - on_grid.estimate) for name, each in estimates.items()
}
for name, (mean, error) in off.items():
    print(f"{name:>22}: {mean:+.3f} ± {error:.3f} nats off the grid")
assert off["ELBO"][0] < off["importance, K = 10"][0] < off["importance, K = 5000"][0]
assert off["ELBO"][0] < off["annealing"][0]
assert all(mean < 4 * error + 0.01 for mean, error in off.values()), "lower bounds"

# %%
figure, axes = plt.subplots(figsize=(7.5, 3.2))
means, errors = np.transpose(list(off.values()))
rows = np.arange(len(off))[::-1]
axes.errorbar(means, rows, xerr=2 * errors, fmt="o", capsize=3)
axes.axvline(0, color="black", lw=1)
axes.set_yticks(rows, list(off))
axes.set(xlabel="estimate - log p(x) by quadrature (nats, mean of 60 test images)")
axes.set_title("The same VAE, five estimates (bars: 2 standard errors)")
plt.show()

# %% [markdown]
# What to report, then?
#
# - The ELBO compares *training runs* of one kind of model. It also judges the encoder.
# - Importance samples from the encoder's $q$ with their standard error, **and** the
#   share of examples whose Pareto k is above 0.7. If it is large, say "lower bound".
# - Annealing where that share is large, and its sandwich on simulated data to show that
#   it has converged.
#
# For this model, this is the share:

# %%
heavy = importance["importance, K = 5000"].pareto_k > 0.7
print(f"Pareto k above 0.7 for {np.mean(heavy):.0%} of the images")

# %% [markdown]
# ## Exercises
#
# 1. **The bias.** To second order, the importance-weighted bound is too low by half the
#    squared standard error of the estimate, $(\overline{w^2} / \bar w^2 - 1) / 2K$.
#    Check this for the linear model with $K = 32$, from the weights above.
# 2. **Two encoders, one model.** `aligned` and `model` have the same $p(x)$. Compare
#    their ELBOs. What would somebody conclude who compares models by the ELBO?
# 3. **A sandwich of digits.** Simulate 30 images from the VAE of digits and compute
#    both bounds with 100 temperatures. How wide is the interval, and does the exact
#    value lie in it?

# %% [markdown]
# ## Solutions
#
# ### 1. The bias

# %%
groups = log_w.reshape(-1, 32, len(x))
bounds = jax.nn.logsumexp(groups, axis=1) - np.log(32)
w = jnp.exp(groups - bounds[:, None])  # of mean 1 in each group
half = (jnp.mean(w**2, axis=1) - 1) / (2 * 32)
bias, error = mean_and_error(truth - bounds.mean(axis=0))
expected, error_of_half = mean_and_error(half.mean(axis=0))
print(f"bias {bias:.4f} ± {error:.4f}, half the squared error {expected:.4f}")
assert abs(bias - expected) < 4 * np.hypot(error, error_of_half)
assert bias > 3 * error

# %% [markdown]
# ### 2. Two encoders, one model
#
# The columns of `aligned.weights` are orthogonal, so the posterior factorizes, a
# diagonal $q$ is exact and the ELBO is $\log p(x)$. The rotated copy looks worse by the
# gap computed above although it assigns the same probability to every wine. A
# difference in ELBO need not be one in $p(x)$.

# %%
bound_of_aligned = jax.jit(partial(evaluate, num_samples=200))(
    exact.linear_vae(aligned), x, jax.random.key(6)
).elbo
print(f"ELBO {bound_of_aligned.mean():.3f} and {bound.mean():.3f} nats per wine")
shortfall, error = mean_and_error(truth - bound_of_aligned)
assert abs(shortfall) < 4 * error
assert np.isclose(exact.diagonal_gap(aligned), 0, atol=1e-4)

# %% [markdown]
# ### 3. A sandwich of digits
#
# The mean width bounds the mean error of either side without any exact value. The
# standard error over images is the larger part here: to tell two models apart by a few
# hundredths of a nat, average over more images.

# %%
sandwich = jax.jit(
    partial(
        bidirectional_log_evidence, num_examples=30, num_chains=16, num_temperatures=100
    )
)(vae_of_digits, jax.random.key(7))
known = grid(vae_of_digits, sandwich.x)
gap, error = mean_and_error(sandwich.gap)
below, error_below = mean_and_error(sandwich.lower - known.estimate)
above, error_above = mean_and_error(sandwich.upper - known.estimate)
print(f"the interval is {gap:.4f} ± {error:.4f} nats wide")
print(f"lower bound off by {below:+.4f} ± {error_below:.4f} nats")
print(f"upper bound off by {above:+.4f} ± {error_above:.4f} nats")
assert -4 * error < gap < 0.4
assert below < 4 * error_below and above > -4 * error_above
