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
# # Posterior collapse, seen and cured
#
# A VAE with a flexible decoder may learn to ignore its latents: $q(z \mid x) = p(z)$
# for **every** $x$. The KL is then 0, $z$ says nothing about $x$, and all samples look
# alike. The loss curve gives no hint: it is smooth, and ends in a local optimum.
#
# This notebook makes a model collapse on purpose, shows how to see it, compares cures,
# and ends with a model in which the collapse can be predicted exactly.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import scipy.stats
from figures import show_images, use_style

from vae_jax import (
    ELBO,
    MLP,
    FreeBits,
    Gaussian,
    Linear,
    LinearWarmup,
    ModelSpec,
    active_units,
    aggregate_posterior,
    data,
    decode,
    encode,
    evaluate,
    exact,
    fit,
    init,
    kl_per_unit,
)
from vae_jax.estimators import sigma_points

use_style()

# %% [markdown]
# ## A model that collapses
#
# The ingredients are harmless: three hidden layers in each network, 128 latents, and a
# decoder whose output bias starts at the mean of the data, which speeds up training.
#
# Look at the first steps. The encoder's means hardly depend on $x$ yet, and its
# variance is 1: to the decoder, $z$ is noise. The decoder already predicts the mean of
# the data, the best it can do without $z$, so every dependence on $z$ makes its
# prediction worse and it unlearns it. Since $z$ is of no use, the KL drives the
# posterior to the prior. Then neither network has a gradient that would bring $z$ back.
#
# `init(spec, key, x=data)` avoids this by starting $q$ narrow, at $\log \sigma^2 = -3$.
# We put it back to 0.

# %%
digits = data.load("digits")
train, test = (jnp.asarray(x > 8, jnp.float32) for x in (digits.train, digits.test))
spec = ModelSpec(
    encoder=MLP((100, 100, 100)),
    decoder=MLP((100, 100, 100)),
    latent_dim=128,
    data_shape=(8, 8),
)
init_key, fit_key, test_key, aggregate_key = jax.random.split(jax.random.key(0), 4)


def with_log_var(params, log_var):
    """The model with another log-variance of q at the start."""
    output = params.encoder["output"]
    bias = output["bias"].at[params.spec.latent_dim :].set(log_var)
    return params.replace(encoder=params.encoder | {"output": output | {"bias": bias}})


narrow = init(spec, init_key, x=train)
wide = with_log_var(narrow, 0.0)
no_bias = init(spec, init_key)  # without data: all biases are 0

# %% [markdown]
# ## Five cures
#
# - **the decoder's bias** left at 0: there is something to gain from $z$ for longer;
# - **a narrow start** of $q$: $z$ tells the images apart from the first step on;
# - **warm-up** of $\beta$, the weight of the KL, from 0 to 1 over 400 steps;
# - **free bits**: the first 3 nats of KL of each image cost nothing;
# - narrow start and warm-up together, the default of `python -m experiments.mnist`.
#
# Starts, warm-ups and free bits are all arrays, so `vmap` trains the six models in one
# program. A warm-up over 0 steps and 0 free nats are the plain ELBO.

# %%
settings = {  # start, steps of warm-up, free nats
    "collapsing": (wide, 0.0, 0.0),
    "bias of 0": (no_bias, 0.0, 0.0),
    "narrow start": (narrow, 0.0, 0.0),
    "warm-up": (wide, 400.0, 0.0),
    "free bits": (wide, 0.0, 3.0),
    "narrow, warm-up": (narrow, 400.0, 0.0),
}


def train_one(start, num_steps, nats):
    objective = ELBO(
        beta=LinearWarmup(1.0, num_steps=num_steps),
        penalty=FreeBits(nats, per="example"),
    )
    return fit(start, train, fit_key, num_epochs=60, objective=objective)


starts, warm_ups, nats = zip(*settings.values(), strict=True)
stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
models, history = jax.jit(jax.vmap(train_one))(
    stacked, jnp.array(warm_ups), jnp.array(nats)
)

# %% [markdown]
# ## How to see it
#
# - `kl_per_unit`: the KL of each latent, in nats, averaged over images. Near 0: unused.
# - `active_units`: latents whose posterior *mean* varies over images.
# - `aggregate_posterior`: the mutual information of $x$ and $z$, in nats.
# - The ELBO of a model that ignores $z$ is that of independent pixels, known in closed
#   form: pixel $d$ is on with the probability $\bar x_d$ of the training images.


# %%
def diagnose(params):
    return {
        "elbo": evaluate(params, test, test_key).elbo.mean(),
        "kl": kl_per_unit(params, test),
        "active": active_units(params, test).count,
        "information": aggregate_posterior(
            params, test, aggregate_key
        ).mutual_information,
    }


found = jax.device_get(jax.jit(jax.vmap(diagnose))(models))
p = np.clip(train.mean(axis=0), 1e-3, 1 - 1e-3)
without_z = scipy.stats.bernoulli(p).logpmf(np.asarray(test)).sum(axis=1).mean()
print(f"{'':>16} {'test ELBO':>10} {'KL':>6} {'active':>7} {'information':>12}")
for number, name in enumerate(settings):
    print(
        f"{name:>16} {found['elbo'][number]:10.2f} {found['kl'][number].sum():6.2f} "
        f"{found['active'][number]:7d} {found['information'][number]:12.2f}"
    )
print(f"{'independent pixels':>16} {without_z:8.2f}")

# %% [markdown]
# The first model is dead: no active unit, no information, and the ELBO of independent
# pixels. It is not the best that this network can do: every cure finds a better one.

# %%
assert found["active"][0] == 0 and found["kl"][0].sum() < 0.05
assert abs(found["elbo"][0] - without_z) < 0.2
assert np.all(found["elbo"][1:] > found["elbo"][0] + 0.5)
assert np.all(found["active"][1:] > 0)

epochs = np.arange(1, 61)
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.9), width_ratios=[1, 1.35])
for number, name in enumerate(settings):
    color = "black" if number == 0 else f"C{number - 1}"
    left.plot(epochs, history["kl_divergence"][number], color=color)
    units = np.sort(found["kl"][number])[::-1]
    right.semilogy(np.arange(1, 129), np.maximum(units, 1e-6), color=color, label=name)
left.set(xlabel="epoch", ylabel="KL (nats per image)", ylim=(-0.3, 12))
left.set_title("The collapsed model stays at 0")
right.set(xlabel="latent, sorted", ylabel="KL of a latent (nats)", ylim=(1e-6, 3))
right.set_title("KL of each latent after training")
right.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# Reconstructions show the same without any number. Below each test image: the mean of
# $p(x \mid z)$ for $z$ at the posterior mean.


# %%
def reconstruct_means(params, x):
    return decode(params, encode(params, x).mean).mean


ten = jnp.stack([test[digits.test_labels == digit][0] for digit in range(10)])
pictures = jax.jit(jax.vmap(reconstruct_means, in_axes=(0, None)))(models, ten)
figure, axes = plt.subplots(figsize=(7.5, 5.2))
show_images(
    axes,
    [ten, *pictures],
    title="Reconstructions",
    row_labels=["test image (bits)", *settings],
)
plt.show()
assert np.ptp(pictures[0], axis=0).max() < 0.05, "every image is the same"
assert np.ptp(pictures[-1], axis=0).max() > 0.5

# %% [markdown]
# ## Which cure?
#
# The narrow start and the warm-up change how training *begins*. At its end the
# objective is the ELBO again, and nothing is lost. Free bits and a smaller $\beta$
# change the objective itself: they keep information in $z$ even where the ELBO would
# rather have none. That is wanted if the latents are the purpose, and costs ELBO.

# %% [markdown]
# ## Exercises
#
# 1. **A collapse that is right.** In a linear VAE with noise variance $s^2$ and weight
#    $\beta$, a direction of the data is modelled exactly if its variance is above
#    $\beta s^2$. Take six independent columns with variances 4, 2, 1, 0.5, 0.25, 0.125
#    and $s^2 = 0.3$. Predict the number of active units for $\beta = 1, 2, 5, 20$, then
#    train.
# 2. **Free bits of each unit.** Train the collapsing model with `FreeBits(0.1)`, which
#    exempts 0.1 nats of each of the 128 latents. How many are active? Why is the ELBO
#    so low?
# 3. **A KL without information.** Change the narrow start so that $q(z \mid x)$ is the
#    same for every $x$, but not the prior. What are its KL, its active units and its
#    mutual information?

# %% [markdown]
# ## Solutions
#
# ### 1. A collapse that is right
#
# Here the collapse is no accident of the start: an unused latent is the *optimum*,
# since describing the direction costs more nats than it saves. The cure, if one wants
# the direction, is a smaller noise variance or $\beta$.
#
# `sigma_points` integrates the quadratic ELBO without noise, so the training is exact.

# %%
variances = np.array([4, 2, 1, 0.5, 0.25, 0.125])
columns = np.random.default_rng(0).normal(size=(256, 6))
columns = np.linalg.qr(columns - columns.mean(axis=0))[0] * np.sqrt(256 * variances)
columns = jnp.asarray(columns, jnp.float32)
linear = ModelSpec(
    Linear(), Linear(), likelihood=Gaussian(), latent_dim=6, data_shape=(6,)
)
start = init(linear, jax.random.key(1), x=columns)
start = start.replace(likelihood={"log_var": jnp.log(0.3)})


def count_active(beta):
    trained = fit(
        start,
        columns,
        jax.random.key(2),
        num_epochs=1500,
        batch_size=256,
        objective=ELBO(beta=beta, estimator=sigma_points),
        optimizer=optax.adam(optax.cosine_decay_schedule(0.03, 1500)),
    ).params
    return active_units(trained, columns).count


betas = jnp.array([1.0, 2.0, 5.0, 20.0])
counts = jax.jit(jax.vmap(count_active))(betas)
for beta, count in zip(betas, counts, strict=True):
    above = np.sum(variances > 0.3 * float(beta))
    print(f"beta = {beta:4.0f}: {count} active units, {above} variances above beta s²")
    assert count == above
    assert count == exact.live_units(columns, noise_var=0.3, beta=beta)

line = np.geomspace(0.3, 30, 500)
figure, axes = plt.subplots(figsize=(7.5, 3.2))
axes.semilogx(line, (variances[:, None] > 0.3 * line).sum(axis=0), label="exact")
axes.plot(betas, counts, "o", color="C1", label="after training")
axes.set(xlabel="weight of the KL, beta", ylabel="active units of 6")
axes.set_title("A linear VAE collapses unit by unit, where it should")
axes.legend()
plt.show()

# %% [markdown]
# ### 2. Free bits of each unit
#
# Every latent uses its free allowance, which costs nothing in training but is charged
# in the ELBO: about $128 \times 0.1$ nats, more than 64 pixels of bits have to tell.

# %%
per_unit = fit(
    wide, train, fit_key, num_epochs=60, objective=ELBO(penalty=FreeBits(0.1))
).params
of_units = jax.device_get(jax.jit(diagnose)(per_unit))
print(f"{of_units['active']} active units, KL {of_units['kl'].sum():.2f} nats")
print(f"test ELBO {of_units['elbo']:.2f}, collapsed {found['elbo'][0]:.2f} nats")
assert of_units["active"] == 128
assert of_units["elbo"] < found["elbo"][-1] - 1

# %% [markdown]
# ### 3. A KL without information
#
# With the weights of the encoder's last layer at 0, only its biases remain:
# $q = N(0, e^{-3} I)$ for every $x$. The KL is that of a narrow Gaussian, about one nat
# a unit, and looks healthy. But it is all distance of the aggregate posterior
# $q(z) = \frac1n \sum_i q(z \mid x_i)$ to the prior, and none of it is information.

# %%
output = jax.tree.map(jnp.zeros_like, narrow.encoder["output"])
constant = narrow.replace(encoder=narrow.encoder | {"output": output})
constant = with_log_var(constant, narrow.encoder["output"]["bias"][-1])
log_var = encode(constant, test).log_var[0, 0]
units = kl_per_unit(constant, test)
parts = jax.jit(aggregate_posterior)(constant, test, aggregate_key)
print(f"KL of a unit {units[0]:.3f} nats; {active_units(constant, test).count} active")
print(f"mutual information {parts.mutual_information:.4f} nats")
print(f"KL of q(z) to the prior {parts.kl_to_prior:.1f} nats")
expected = 0.5 * (np.exp(log_var) - 1 - log_var)
np.testing.assert_allclose(units, expected, rtol=1e-4)
assert abs(parts.mutual_information) < 1e-3
error = parts.kl_to_prior_standard_error
assert abs(parts.kl_to_prior - units.sum()) < 4 * error
