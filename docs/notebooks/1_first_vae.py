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
# # Your first VAE
#
# A variational autoencoder (VAE) is a model of how data come about. First a latent
# vector $z$ is drawn from a simple distribution, the *prior* $p(z) = N(0, I)$. Then
# the observation $x$ is drawn from a distribution that depends on $z$ through a neural
# network, the *likelihood* $p_\theta(x \mid z)$. The network is called the *decoder*.
#
# Such a model can do three things:
#
# 1. **generate** new data: draw $z$ from the prior, then $x$ given $z$;
# 2. **encode** an observation: find the $z$ that could have produced it;
# 3. **score** an observation: say how probable it is.
#
# This notebook writes the training objective by hand, checks it against the library,
# trains a model of handwritten digits in a few seconds, and looks at what it learnt.

# %%
import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import scipy.stats
from figures import COLORS, show_images, use_style

from vae_jax import (
    ELBO,
    MLP,
    DiscretizedLogistic,
    ModelSpec,
    data,
    decode,
    elbo,
    elbo_terms,
    encode,
    evaluate,
    fit,
    generate,
    init,
    reconstruct,
    reparameterize,
)

use_style()

# %% [markdown]
# ## The data
#
# `digits` is embedded in the package: 1797 images of 8 x 8 pixels, each with one of 17
# grey levels. A model sees a level $0, \dots, 16$ as a number between 0 and 1.

# %%
digits = data.load("digits")
train = data.to_unit_interval(digits.train, digits.num_levels)
test = data.to_unit_interval(digits.test, digits.num_levels)
print(f"{train.shape[0]} training and {test.shape[0]} test images of {train.shape[1]}")

ten_each = np.stack([train[digits.train_labels == digit][:12] for digit in range(5)])
figure, axes = plt.subplots(figsize=(7.5, 3.3))
show_images(axes, ten_each, title="Training images of five digits")
plt.show()

# %% [markdown]
# ## The model
#
# A `ModelSpec` names the parts, and `init` draws initial weights. Here the latent
# vector has only two dimensions, so that we can draw a map of it.
#
# Each pixel is an integer. Its likelihood is a logistic distribution, rounded to the 17
# levels: the probability of a level is the mass that falls between the midpoints to its
# neighbours, and the first and the last level take the tails.

# %%
spec = ModelSpec(
    encoder=MLP((200,)),
    decoder=MLP((200,)),
    likelihood=DiscretizedLogistic(num_levels=17, num_components=1),
    latent_dim=2,
    data_shape=(8, 8),
)
init_key, noise_key, loop_key, fit_key, test_key, draw_key, sample_key = (
    jax.random.split(jax.random.key(0), 7)
)
params = init(spec, init_key, x=train)

# %% [markdown]
# `params` is a pytree of arrays that also carries its `spec`. JAX has no hidden random
# state: whatever is random takes a key. A key is used once; the same key is given
# twice only where two computations are to see the same noise.
#
# ## The objective, by hand
#
# We would like to maximize $\log p_\theta(x)$, but the integral
#
# $$ p_\theta(x) = \int p_\theta(x \mid z) \, p(z) \, dz $$
#
# has no closed form. Let $q_\phi(z \mid x)$ be any distribution of $z$. By Jensen's
# inequality
#
# $$ \log p_\theta(x) = \log \mathbb{E}_{q_\phi(z \mid x)}
# \frac{p_\theta(x \mid z) \, p(z)}{q_\phi(z \mid x)}
# \;\ge\; \underbrace{\mathbb{E}_{q_\phi(z \mid x)} \log p_\theta(x \mid z)
# - \mathrm{KL}\big(q_\phi(z \mid x) \,\|\, p(z)\big)}_{\text{ELBO}} . $$
#
# The right-hand side is the *evidence lower bound* (ELBO). Its distance to
# $\log p_\theta(x)$ is $\mathrm{KL}(q_\phi(z \mid x) \,\|\, p_\theta(z \mid x))$, so
# that the best $q$ is the true posterior. In a VAE,
# $q_\phi(z \mid x) = N(\mu, \mathrm{diag}(\sigma^2))$, and a second network, the
# *encoder*, computes $\mu$ and $\log \sigma^2$ from $x$.
#
# Both terms take a few lines. The *reparameterization trick* writes the sample as
# $z = \mu + \sigma \odot \varepsilon$ with $\varepsilon \sim N(0, I)$, so that
# gradients flow through $\mu$ and $\sigma$. The KL divergence of two Gaussians has a
# closed form:
#
# $$ \mathrm{KL} = \tfrac12 \sum_j \big( \mu_j^2 + \sigma_j^2 - 1 - \log \sigma_j^2
# \big) . $$

# %%
batch = train[:100]
q = encode(params, batch)
noise = jax.random.normal(noise_key, q.mean.shape)
z = q.mean + jnp.exp(0.5 * q.log_var) * noise
log_likelihood = decode(params, z).log_prob(batch)
kl = 0.5 * jnp.sum(q.mean**2 + jnp.exp(q.log_var) - 1 - q.log_var, axis=-1)
by_hand = jnp.mean(log_likelihood - kl)
print(f"ELBO of the untrained model: {by_hand:.2f} nats per image")

# %% [markdown]
# Is that right? The library computes the same number from the same noise. And the
# likelihood of one image agrees with SciPy's logistic distribution.

# %%
terms = elbo_terms(params, batch, noise_key)
np.testing.assert_allclose(elbo(params, batch, noise_key), by_hand, rtol=1e-5)
np.testing.assert_allclose(terms.kl_divergence, kl, rtol=1e-4)

pixel = decode(params, z[:1])
logistic = scipy.stats.logistic(
    np.ravel(pixel.location), np.exp(np.ravel(pixel.log_scale))
)
level, half = np.asarray(batch[0], float), 0.5 / 16
above = np.where(level == 1, 1, logistic.cdf(level + half))
below = np.where(level == 0, 0, logistic.cdf(level - half))
np.testing.assert_allclose(log_likelihood[0], np.log(above - below).sum(), rtol=1e-4)

# %% [markdown]
# All figures are in nats, summed over the 64 pixels and averaged over the images. The
# ELBO is *maximized*. Loss functions in other programs often have the opposite sign,
# leave out constants, or average over pixels: then numbers cannot be compared.
#
# ## A training loop of your own
#
# `elbo(params, x, key)` is an ordinary function. JAX differentiates and compiles it,
# and optax turns the gradient into a step. `fold_in` gives each step noise of its own.

# %%
optimizer = optax.adam(2e-3)


@jax.jit
def step(params, opt_state, number):
    key = jax.random.fold_in(loop_key, number)
    order_key, noise_key = jax.random.split(key)
    x = train[jax.random.choice(order_key, len(train), (128,), replace=False)]
    value, gradient = jax.value_and_grad(elbo)(params, x, noise_key)
    descent = jax.tree.map(jnp.negative, gradient)
    updates, opt_state = optimizer.update(descent, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value


state, values = (params, optimizer.init(params)), []
for number in range(300):
    *state, value = step(*state, number)
    values.append(float(value))
print(f"first step {values[0]:.1f}, last 50 steps {np.mean(values[-50:]):.1f} nats")
assert np.mean(values[-50:]) > values[0] + 20

# %% [markdown]
# ## The same with `fit`
#
# `fit` is that loop as one call. It visits every image once in each epoch and compiles
# the whole run. Given validation data, it returns the parameters of the best epoch. We
# set the last 200 training images aside for that, so that the test images are used
# only once, at the end.

# %%
fitted = fit(
    params,
    train[:-200],
    fit_key,
    num_epochs=100,
    optimizer=optimizer,
    validation=train[-200:],
)
model, history = fitted

epochs = np.arange(1, len(history["elbo"]) + 1)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
left.plot(epochs, history["elbo"], label="training")
left.plot(epochs, history["validation_elbo"], label="validation")
left.set(xlabel="epoch", ylabel="ELBO (nats per image)", title="The bound rises")
left.set_ylim(bottom=float(np.percentile(history["elbo"], 4)))
left.legend()
right.plot(epochs, history["kl_divergence"], color="C2")
right.set(xlabel="epoch", ylabel="KL (nats per image)", title="and so does the KL")
plt.show()

# %%
compiled_evaluate = jax.jit(evaluate)
before = compiled_evaluate(params, test, test_key)
after = compiled_evaluate(model, test, test_key)
gain = after.elbo - before.elbo
error = jnp.std(gain) / jnp.sqrt(len(gain))
print(f"test ELBO {before.elbo.mean():.2f} before and {after.elbo.mean():.2f} after")
print(f"gain: {gain.mean():.2f} ± {error:.2f} nats per image")
assert gain.mean() > 10 * error

# %% [markdown]
# ## What the model learnt
#
# **Reconstructions**: encode a test image, draw $z$ from $q(z \mid x)$, and show the
# mean of $p(x \mid z)$. Two numbers cannot describe all of an image. They often keep
# which digit it is, and sometimes confuse it with one that looks alike.
#
# **Samples**: draw $z$ from the prior instead. No image is involved.

# %%
ten = jnp.stack([test[digits.test_labels == digit][0] for digit in range(10)])
pictures = [ten, jax.jit(reconstruct)(model, ten, draw_key)]
draw = jax.jit(generate, static_argnames="num_samples")
samples = draw(model, sample_key, num_samples=40).reshape(4, 10, 64)
figure, (top, bottom) = plt.subplots(
    2, 1, figsize=(7.5, 4.8), gridspec_kw={"height_ratios": [2, 4]}
)
show_images(
    top,
    pictures,
    title="Test images and their reconstructions",
    row_labels=["test image", "reconstruction"],
)
show_images(bottom, samples, title="Means of p(x|z) for z drawn from the prior")
plt.show()

# %% [markdown]
# **The latent plane.** On the left, the posterior mean of every test image. The model
# never saw a label, and yet images of the same digit lie together: they look alike, so
# they are cheap to encode side by side. On the right, the decoder's mean over a grid of
# latents, placed at quantiles of the prior.

# %%
means = encode(model, test).mean
quantiles = scipy.stats.norm.ppf((np.arange(13) + 0.5) / 13)
grid = np.stack(np.meshgrid(quantiles, quantiles[::-1]), axis=-1)
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.9))
for digit in range(10):
    own = means[digits.test_labels == digit]
    left.scatter(*own.T, s=14, alpha=0.8, color=COLORS[digit], label=digit)
left.set(xlabel="$z_1$", ylabel="$z_2$", title="Posterior means of the test images")
left.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
left.legend(title="digit", loc="center left", bbox_to_anchor=(1, 0.5))
decoded = jax.jit(lambda z: decode(model, z).mean)(grid)
show_images(right, decoded, title="Decoded grid of latents")
plt.show()

# %% [markdown]
# Do nearby latents mean similar images? If so, the nearest neighbour of a test image in
# the latent plane should have the same label far more often than one time in ten.

# %%
train_means = encode(model, train).mean
distances = jnp.sum((means[:, None] - train_means) ** 2, axis=-1)
nearest = np.asarray(digits.train_labels)[np.argmin(distances, axis=1)]
accuracy = np.mean(nearest == digits.test_labels)
print(f"nearest neighbour in the latent plane has the same label: {accuracy:.0%}")
assert accuracy > 0.4

# %% [markdown]
# ## Exercises
#
# 1. **The KL from samples.** $\mathrm{KL}(q \,\|\, p) = \mathbb{E}_q[\log q(z \mid x) -
#    \log p(z)]$. Estimate it for one test image from 10,000 samples and check that the
#    closed form lies within a few standard errors.
# 2. **More latents.** Train with `latent_dim=10`. How much does the test ELBO gain?
#    Which of its two terms pays, and which one gains?
# 3. **No KL term.** Train with `ELBO(beta=0.0)`: an autoencoder with noise. Compare
#    $\sigma$, the reconstructions and the samples with those of the VAE.

# %% [markdown]
# ## Solutions
#
# ### 1. The KL from samples

# %%
q = encode(model, test[:1])
draws = reparameterize(q, jax.random.key(1), num_samples=10_000)
prior = scipy.stats.norm.logpdf(draws).sum(axis=-1)[:, 0]
differences = np.asarray(q.log_prob(draws)[:, 0]) - prior
estimate, error = differences.mean(), differences.std() / 100
exact = 0.5 * jnp.sum(q.mean**2 + jnp.exp(q.log_var) - 1 - q.log_var)
print(f"{estimate:.3f} ± {error:.3f} nats from samples, {exact:.3f} in closed form")
assert abs(estimate - exact) < 4 * error

# %% [markdown]
# ### 2. More latents
#
# More latents tell the decoder more about the image: the KL, the price of that
# information, rises, and the log-likelihood rises by more.

# %%
spec_of_ten = dataclasses.replace(spec, latent_dim=10)
start = init(spec_of_ten, init_key, x=train)
of_ten = fit(start, train, fit_key, num_epochs=60, optimizer=optimizer).params
terms_of_ten = compiled_evaluate(of_ten, test, test_key)
for name, two, ten in zip(after._fields, after, terms_of_ten, strict=True):
    print(f"{name:>15}: {two.mean():7.2f} with 2 latents, {ten.mean():7.2f} with 10")
gain = terms_of_ten.elbo - after.elbo
assert gain.mean() > 4 * gain.std() / np.sqrt(len(gain))
assert terms_of_ten.kl_divergence.mean() > after.kl_divergence.mean()

# %% [markdown]
# ### 3. No KL term
#
# `fit` is a pure function, so `vmap` trains both models in one program. Without the KL
# nothing keeps the noise up: $\sigma$ shrinks until each image is nearly a point, and
# $q(z \mid x)$ is known far more precisely than the prior allows. The KL counts that
# precision in nats. The ELBO of the test images falls, although the autoencoder fits
# the *training* images better.

# %%
betas = jnp.array([1.0, 0.0])
both = jax.vmap(
    lambda beta: (
        fit(
            params,
            train,
            fit_key,
            num_epochs=60,
            objective=ELBO(beta=beta),
            optimizer=optimizer,
        ).params
    )
)(betas)
for_both = jax.jit(jax.vmap(evaluate, in_axes=(0, None, None)))
of_train, of_test = (for_both(both, x, test_key) for x in (train, test))
sigma = jax.vmap(lambda each: jnp.exp(encode(each, test).log_var / 2))(both)
for number, beta in enumerate(betas):
    print(
        f"beta = {beta:.0f}: median sigma {jnp.median(sigma[number]):.3f}, "
        f"log-likelihood of training images "
        f"{of_train.log_likelihood[number].mean():.1f}, test ELBO "
        f"{of_test.elbo[number].mean():.1f}"
    )
assert jnp.median(sigma[1]) < 0.5 * jnp.median(sigma[0])
assert of_train.log_likelihood[1].mean() > of_train.log_likelihood[0].mean()
assert of_test.elbo[1].mean() < of_test.elbo[0].mean() - 1

figure, axes = plt.subplots(figsize=(7.5, 3.2))
bins = np.geomspace(1e-3, 1, 60)
for beta, values in zip(betas, sigma, strict=True):
    axes.hist(np.ravel(values), bins, alpha=0.7, label=f"beta = {beta:.0f}")
axes.set(
    xscale="log", xlabel="posterior standard deviation of a latent", ylabel="count"
)
axes.set_title("Without the KL, the posterior shrinks towards a point (test images)")
axes.legend()
plt.show()
