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
# # The two gradients
#
# Training a VAE needs the gradient of an expectation by the parameters of the
# *distribution* over which it is taken:
#
# $$ \nabla_\phi \, \mathbb{E}_{q_\phi(z)} f(z) . $$
#
# The samples depend on $\phi$, so the gradient cannot simply move inside. There are two
# classic ways out, and both are unbiased. This notebook compares their *variance*,
# against exact values, because variance decides how fast one can train.

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from figures import use_style

from vae_jax import (
    ELBO,
    MLP,
    Bernoulli,
    ModelSpec,
    data,
    elbo,
    estimators,
    fit,
    init,
)
from vae_jax.distributions import BernoulliDistribution, DiagonalGaussianDistribution
from vae_jax.estimators import exact_variance, gradient_moments

use_style()

# %% [markdown]
# ## The same gradient, twice
#
# **Score function** (REINFORCE). Differentiate the density. Because
# $\nabla q = q \, \nabla \log q$,
#
# $$ \nabla_\phi \int f(z) \, q_\phi(z) \, dz
# = \mathbb{E}_{q_\phi} \big[ f(z) \, \nabla_\phi \log q_\phi(z) \big] . $$
#
# It only needs values of $f$, which may be a black box, and works for discrete $z$.
#
# **Reparameterization** (pathwise). Write the sample as a function of noise whose
# distribution does not depend on $\phi$: $z = g_\phi(\varepsilon)$. Then
#
# $$ \nabla_\phi \, \mathbb{E}_{\varepsilon} f(g_\phi(\varepsilon))
# = \mathbb{E}_{\varepsilon} \big[ f'(g_\phi(\varepsilon)) \,
# \nabla_\phi g_\phi(\varepsilon) \big] . $$
#
# It needs the derivative of $f$, and a $z$ that changes smoothly with $\phi$.
#
# Our example is $f(z) = (z + 3)^2$ with $q = N(\mu, \sigma^2)$, $\mu = 1$ and
# $\sigma = 1.5$. Here $\mathbb{E} f = (\mu + 3)^2 + \sigma^2$, so the gradient in $\mu$
# is $2 (\mu + 3) = 8$. With $z = \mu + \sigma \varepsilon$ the score is
# $\partial_\mu \log q = \varepsilon / \sigma$.

# %%
mu, sigma, k = 1.0, 1.5, -3.0
noise = jax.random.normal(jax.random.key(0), (100_000,))
z = mu + sigma * noise
by_score = (z - k) ** 2 * noise / sigma
by_path = 2 * (z - k)


def mean_and_error(values):
    return np.mean(values), np.std(values) / np.sqrt(len(values))


for name, values in {"score function": by_score, "reparameterization": by_path}.items():
    mean, error = mean_and_error(values)
    print(f"{name:>18}: {mean:.3f} ± {error:.3f}, variance {np.var(values):.1f}")
    assert abs(mean - 8) < 4 * error

figure, axes = plt.subplots(figsize=(7.5, 3.4))
bins = np.linspace(-20, 80, 120)
axes.hist(by_score, bins, density=True, alpha=0.8, label="score function")
axes.hist(by_path, bins, density=True, alpha=0.6, label="reparameterization")
axes.axvline(8, color="black", linewidth=1, label="exact gradient")
axes.set(xlabel="gradient from one sample", ylabel="density")
axes.set_title("Both have the right mean; one of them is far noisier")
axes.legend()
plt.show()

# %% [markdown]
# ## Exact variances
#
# An estimated variance is itself noisy. For simple $f$ the exact one is known:
# `exact_variance` computes it from moments of $f$ and of the score.

# %%
moments = exact_variance.gaussian_moments("quadratic", mu=mu, sigma=sigma, k=k)["mu"]
exact = {
    "score function": exact_variance.score_function_variance(moments),
    "reparameterization": exact_variance.reparameterization_variance(moments),
}
print(f"gradient {moments.fs:.3f}")
for name, variance in exact.items():
    print(f"{name:>18}: variance {variance:.2f}")
assert np.isclose(moments.fs, 8) and np.isclose(exact["reparameterization"], 9)

# %% [markdown]
# $371.5$ against $9$: to be as precise as a single reparameterized sample, the score
# function needs 42 samples.
#
# The estimators of the library take an integrand, a distribution and a key. The value
# is always the plain average of $f$; only the gradient differs. `gradient_moments`
# draws many gradients, and gives their variance with its standard error.

# %%
quadratic = lambda z, log_q: jnp.sum((z - k) ** 2, axis=-1)


def gradient_by_mu(key, estimator, num_samples=1, f=quadratic):
    def expectation(mu):
        q = DiagonalGaussianDistribution(mu[None, None], jnp.full((1, 1), log_var))
        return estimator(f, q, key, num_samples=num_samples)[0]

    log_var = 2 * np.log(sigma)
    return jax.grad(expectation)(jnp.asarray(mu))


def measured(draw, key, num_draws=100_000):
    compiled = jax.jit(partial(gradient_moments, draw, num_draws=num_draws))
    return compiled(key).parameters


found = {
    "score function": estimators.score_function,
    "reparameterization": estimators.reparameterization,
}
for name, estimator in found.items():
    moments_of = measured(
        partial(gradient_by_mu, estimator=estimator), jax.random.key(1)
    )
    error = moments_of.variance_standard_error
    print(f"{name:>18}: variance {moments_of.variance:.2f} ± {error:.2f}")
    assert abs(moments_of.mean - 8) < 4 * moments_of.mean_standard_error
    assert abs(moments_of.variance - exact[name]) < 4 * error

# %% [markdown]
# ## Baselines
#
# The score has mean zero: $\mathbb{E}[\nabla \log q] = \nabla \int q = 0$. So any
# constant $b$ may be subtracted from $f$ without a bias,
#
# $$ \mathbb{E}\big[ (f(z) - b) \, \nabla_\phi \log q_\phi(z) \big] , $$
#
# and the variance is a parabola in $b$. `leave_one_out` needs no tuning: it uses the
# other samples' mean as the baseline of each sample.

# %%
baselines = np.linspace(-10, 50, 200)
parabola = [
    exact_variance.score_function_variance(moments, baseline=b) for b in baselines
]
best = exact_variance.optimal_constant(moments)
points = np.array([-5.0, 10.0, moments.f, best, 45.0])
with_baseline = [
    measured(
        partial(
            gradient_by_mu, estimator=partial(estimators.score_function, baseline=b)
        ),
        jax.random.key(2),
    )
    for b in points
]
variances, errors = (
    np.array([getattr(each, name) for each in with_baseline])
    for name in ("variance", "variance_standard_error")
)
for b, variance, error in zip(points, variances, errors, strict=True):
    expected = exact_variance.score_function_variance(moments, baseline=b)
    assert abs(variance - expected) < 4 * error

# %%
figure, axes = plt.subplots(figsize=(7.5, 3.6))
axes.plot(baselines, parabola, label="exact")
axes.errorbar(points, variances, 2 * errors, fmt="o", color="C1", label="measured")
axes.axhline(
    exact["reparameterization"], color="C2", ls="--", label="reparameterization"
)
axes.axvline(moments.f, color="0.5", lw=1, ls=":")
axes.annotate("E[f]", (moments.f, 620), xytext=(4, 0), textcoords="offset points")
axes.set(xlabel="baseline b", ylabel="variance of one sample", ylim=(0, 750))
axes.set_title("A good baseline removes more than half of the variance")
axes.legend(loc="upper left", bbox_to_anchor=(0.62, 1))
plt.show()
print(f"best constant {best:.1f}, variance {min(parabola):.1f}")

# %% [markdown]
# ## Reparameterization does not always win
#
# The pathwise gradient contains $f'$. If $f$ oscillates quickly its slope is large
# although its values are not, and the score function, which never sees the slope, has
# the smaller variance. With $f(z) = \cos(k z)$ the lines cross.

# %%
frequencies = np.linspace(0.1, 4, 100)
curves = {name: [] for name in found}
for frequency in frequencies:
    of_cos = exact_variance.gaussian_moments("cos", mu=mu, sigma=sigma, k=frequency)
    score = exact_variance.score_function_variance(of_cos["mu"])
    path = exact_variance.reparameterization_variance(of_cos["mu"])
    curves["score function"].append(score)
    curves["reparameterization"].append(path)
assert curves["reparameterization"][0] < curves["score function"][0]
assert curves["reparameterization"][-1] > 10 * curves["score function"][-1]

figure, axes = plt.subplots(figsize=(7.5, 3.4))
for name, curve in curves.items():
    axes.plot(frequencies, curve, label=f"{name}, exact")
for frequency in (0.5, 1.5, 3.0):
    f = lambda z, log_q, c=frequency: jnp.sum(jnp.cos(c * z), axis=-1)
    for color, (name, estimator) in enumerate(found.items()):
        draw = partial(gradient_by_mu, estimator=estimator, f=f)
        variance = measured(draw, jax.random.key(3), num_draws=20_000).variance
        axes.plot(frequency, variance, "o", color=f"C{color}")
        expected = np.interp(frequency, frequencies, curves[name])
        assert np.isclose(variance, expected, rtol=0.1)
axes.set(
    xlabel="frequency k of cos(k z)", ylabel="variance of one sample", yscale="log"
)
axes.set_title("Fast oscillations favour the score function (dots: measured)")
axes.legend()
plt.show()

# %% [markdown]
# ## Bits
#
# A discrete $z$ has no pathwise gradient: a small change of $\phi$ flips a bit or does
# nothing. With one bit, $q = \mathrm{Bernoulli}(p)$ and $p = 1 / (1 + e^{-\ell})$, the
# gradient in the logit is $p (1 - p) (f(1) - f(0))$. Better estimators than the plain
# score function exploit pairs of samples: ARM evaluates $f$ at two antithetic bits, and
# DisARM also integrates out the remaining noise. Their exact variances are known.

# %%
logit, target = 1.0, 0.45
of_bit = {"logit": logit, "f0": target**2, "f1": (1 - target) ** 2}
bit_moments = exact_variance.bernoulli_moments(**of_bit)
exact_of_bits = {
    "score_function": exact_variance.score_function_variance(bit_moments),
    "leave_one_out": exact_variance.leave_one_out_variance(bit_moments, num_samples=2),
    "arm": exact_variance.arm_variance(**of_bit),
    "disarm": exact_variance.disarm_variance(**of_bit),
}


def gradient_by_logit(key, estimator, num_samples=1):
    def expectation(logit):
        f = lambda b, log_q: jnp.sum((b - target) ** 2, axis=-1)
        q = BernoulliDistribution(logit[None, None])
        return estimator(f, q, key, num_samples=num_samples)[0]

    return jax.grad(expectation)(jnp.asarray(logit))


print(f"exact gradient {bit_moments.fs:.4f}")
for name, expected in exact_of_bits.items():
    samples = 2 if name == "leave_one_out" else 1
    draw = partial(
        gradient_by_logit, estimator=getattr(estimators, name), num_samples=samples
    )
    each = measured(draw, jax.random.key(4))
    print(f"{name:>15}: variance {each.variance:.6f}, exact {expected:.6f}")
    assert abs(each.mean - bit_moments.fs) < 4 * each.mean_standard_error
    assert abs(each.variance - expected) < 4 * each.variance_standard_error + 1e-9

# %% [markdown]
# The other popular way is to *relax* the bit to a number between 0 and 1 and to
# reparameterize that: Gumbel-softmax. It has little variance and a bias, which no
# number of samples removes. A low temperature reduces the bias, at the price of
# variance.

# %%
temperatures = np.array([0.1, 0.2, 0.4, 0.7, 1.0, 1.5])
relaxed = [
    measured(
        partial(
            gradient_by_logit,
            estimator=partial(estimators.gumbel_softmax, temperature=temperature),
        ),
        jax.random.key(5),
    )
    for temperature in temperatures
]
means, mean_errors, spreads = (
    np.array([getattr(each, name) for each in relaxed])
    for name in ("mean", "mean_standard_error", "variance")
)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
left.errorbar(temperatures, means, 2 * mean_errors, fmt="o-", label="Gumbel-softmax")
left.axhline(bit_moments.fs, color="black", lw=1, label="exact gradient")
left.set(xlabel="temperature", ylabel="mean of the gradients", title="Bias ...")
left.legend()
right.plot(temperatures, spreads, "o-", label="Gumbel-softmax")
right.axhline(exact_of_bits["disarm"], color="C2", ls="--", label="DisARM, unbiased")
right.set(
    xlabel="temperature", ylabel="variance", yscale="log", title="... or variance"
)
right.legend()
plt.show()
assert abs(means[-1] - bit_moments.fs) > 10 * mean_errors[-1]
assert spreads[0] > spreads[-1]

# %% [markdown]
# ## In a VAE
#
# In a model, the estimator is an option of the ELBO. First the gradient of one batch,
# drawn many times: the variance of the encoder's part, summed over its weights.

# %%
digits = data.load("digits")
train = jnp.asarray(digits.train > 8, jnp.float32)  # bright or dark
spec = ModelSpec(
    encoder=MLP((100,)),
    decoder=MLP((100,)),
    likelihood=Bernoulli(),
    latent_dim=4,
    data_shape=(8, 8),
)
init_key, warm_key, noise_key, fit_key = jax.random.split(jax.random.key(6), 4)
start = init(spec, init_key, x=train)
optimizer = optax.adam(2e-3)
warm = fit(start, train, warm_key, num_epochs=10, optimizer=optimizer).params

in_a_vae = {
    "reparameterization": estimators.reparameterization,
    "leave_one_out": estimators.leave_one_out,
    "score_function": estimators.score_function,
}


# %%
def encoder_gradient(key, estimator):
    def value(encoder):
        model = warm.replace(encoder=encoder)
        return elbo(model, train[:32], key, num_samples=2, estimator=estimator)

    return jax.grad(value)(warm.encoder)


of_encoder = {
    name: jax.jit(
        partial(
            gradient_moments,
            partial(encoder_gradient, estimator=estimator),
            num_draws=200,
            chunk_size=25,
        )
    )(noise_key)
    for name, estimator in in_a_vae.items()
}
totals = {
    name: float(sum(jax.tree.leaves(found.leaves.variance)))
    for name, found in of_encoder.items()
}
for name, total in totals.items():
    print(f"{name:>18}: {total / totals['reparameterization']:9.1f} times the variance")
assert totals["reparameterization"] < totals["leave_one_out"] < totals["score_function"]

# %% [markdown]
# All three estimate the same gradient. Their means over the draws agree within their
# standard errors, for example for the bias of the encoder's output layer:

# %%
reference = of_encoder["reparameterization"].parameters
for name, found_moments in of_encoder.items():
    other = found_moments.parameters
    difference, errors = (
        other.mean["output"]["bias"] - reference.mean["output"]["bias"],
        jnp.hypot(
            other.mean_standard_error["output"]["bias"],
            reference.mean_standard_error["output"]["bias"],
        ),
    )
    largest = float(jnp.max(jnp.abs(difference) / errors))
    print(f"{name:>18}: largest difference {largest:.1f} standard errors")
    assert largest < 4.5

# %% [markdown]
# Then train from the same start with each of them, with 2 samples per image. Noise
# costs time: after 30 epochs the plain score function is two nats behind.

# %%
curves = {}
for name, estimator in in_a_vae.items():
    objective = ELBO(num_samples=2, estimator=estimator)
    _, history = fit(
        start, train, fit_key, num_epochs=30, objective=objective, optimizer=optimizer
    )
    curves[name] = np.asarray(history["elbo"])

figure, axes = plt.subplots(figsize=(7.5, 3.6))
for name, curve in curves.items():
    axes.plot(np.arange(1, 31), curve, label=name.replace("_", " "))
axes.set(xlabel="epoch", ylabel="training ELBO (nats per image)", ylim=(-32, None))
axes.set_title("Less variance, faster training")
axes.legend()
plt.show()
final = {name: float(curve[-1]) for name, curve in curves.items()}
for name, value in final.items():
    print(f"{name:>18}: {value:.1f} nats per image after 30 epochs")
assert final["leave_one_out"] > final["score_function"] + 1
assert final["reparameterization"] > final["score_function"] + 1

# %% [markdown]
# ## Exercises
#
# 1. **The best baseline.** Minimize the variance of $(f - b) \, s$ over $b$, with $s$
#    the score. Compute the result for the quadratic from the samples at the top and
#    compare it with the exact one. Is it $\mathbb{E}[f]$?
# 2. **More samples.** Plot the variance of the score function and of `leave_one_out`
#    against the number of samples $n$, exact and measured. How many samples does
#    `leave_one_out` need to match one reparameterized sample?
# 3. **The bias of a relaxation.** For one bit, the mean of the Gumbel-softmax gradient
#    is an integral over a single uniform number. Compute it by quadrature, and check
#    the measured means above.

# %% [markdown]
# ## Solutions
#
# ### 1. The best baseline
#
# The mean does not depend on $b$, so minimizing the variance means minimizing
# $\mathbb{E}[(f - b)^2 s^2]$: $b^* = \mathbb{E}[f s^2] / \mathbb{E}[s^2]$. That is a
# mean of $f$ in which samples with a large score count more. Here it is larger than
# $\mathbb{E}[f]$, because $f$ is largest far from $\mu$.

# %%
score = noise / sigma
values = (z - k) ** 2
from_samples = jnp.mean(values * score**2) / jnp.mean(score**2)
print(f"best baseline {from_samples:.2f} from samples, {best:.2f} exactly")
print(f"E[f] = {moments.f:.2f}")
# Delta method: the standard error of a ratio of means.
residual = (values - from_samples) * score**2 / jnp.mean(score**2)
assert abs(from_samples - best) < 4 * mean_and_error(residual)[1]
assert best > moments.f

# %% [markdown]
# ### 2. More samples

# %%
counts = np.array([2, 4, 8, 16, 32, 64])
plain = exact["score function"] / counts
loo = [exact_variance.leave_one_out_variance(moments, num_samples=n) for n in counts]
loo_measured = [
    measured(
        partial(gradient_by_mu, estimator=estimators.leave_one_out, num_samples=int(n)),
        jax.random.key(7),
        num_draws=20_000,
    )
    for n in counts
]
for expected, each in zip(loo, loo_measured, strict=True):
    assert abs(each.variance - expected) < 4 * each.variance_standard_error

figure, axes = plt.subplots(figsize=(7.5, 3.4))
axes.loglog(counts, plain, label="score function, exact")
axes.loglog(counts, loo, label="leave-one-out, exact")
axes.plot(counts, [each.variance for each in loo_measured], "o", color="C1")
axes.axhline(
    exact["reparameterization"], color="C2", ls="--", label="one pathwise sample"
)
axes.set(xlabel="samples n", ylabel="variance of the estimate")
axes.set_xticks(counts, counts)
axes.minorticks_off()
axes.set_title("Variance falls as 1 / n, from very different heights")
axes.legend()
plt.show()
enough = next(
    n
    for n in range(2, 100)
    if exact_variance.leave_one_out_variance(moments, num_samples=n) <= 9
)
of_plain = int(np.ceil(exact["score function"] / exact["reparameterization"]))
print(f"leave-one-out needs {enough} samples, the plain score function {of_plain}")
assert enough < of_plain == 42

# %% [markdown]
# ### 3. The bias of a relaxation
#
# With $u$ uniform, the relaxed bit is $r = \mathrm{sigmoid}((\ell + \mathrm{logit}\, u)
# / t)$, and the gradient of $(r - c)^2$ by $\ell$ is $2 (r - c) \, r (1 - r) / t$.

# %%
nodes, weights = np.polynomial.legendre.leggauss(2000)
uniform, weights = (nodes + 1) / 2, weights / 2
log_odds = logit + np.log(uniform) - np.log1p(-uniform)
for temperature, mean, error in zip(temperatures, means, mean_errors, strict=True):
    r = 1 / (1 + np.exp(-log_odds / temperature))
    expected = weights @ (2 * (r - target) * r * (1 - r) / temperature)
    print(f"t = {temperature}: {mean:.5f} ± {error:.5f}, quadrature {expected:.5f}")
    assert abs(mean - expected) < 4 * error
