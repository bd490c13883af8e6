"""PyTorch contestants of `experiments.throughput`: eager, compiled, DataLoader.

They use the same weights, batches and data as the others, and the fused Adam. Networks
are functions of lists of layers, as in the hand-written scan.

For dead hidden units and rarely lit pixels, Adam's first moment shrinks by a tenth per
step and becomes a denormal number after about 800 steps; arithmetic on denormals is
many times slower. XLA flushes them to zero, while PyTorch keeps them by default. Here
PyTorch is set to flush them as well, so that they do not distort the comparison.
"""

import importlib.util
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from experiments.throughput.contestants import (
    LEARNING_RATE,
    Contestant,
    Rate,
    Run,
    Training,
    Workload,
    activation_of,
    plain_weights,
)
from experiments.throughput.limit import product_shapes

EAGER, COMPILED, LOADER = "torch eager", "torch.compile", "torch DataLoader"
TORCH_PRODUCTS = "torch's products"
TORCH = "torch"


def flush_denormals(flush: bool) -> None:
    """Set whether PyTorch, if installed, flushes numbers below 1.2e-38 to zero.

    The setting belongs to the current thread and is inherited by the workers it starts,
    so it must be made before PyTorch's first operation.
    """
    if importlib.util.find_spec(TORCH):
        import torch

        torch.set_flush_denormal(flush)


def _to_torch(array: Any) -> Any:
    import torch

    return torch.from_numpy(np.array(array))


def _weights(workload: Workload) -> dict[str, list[dict[str, Any]]]:
    return jax.tree.map(_to_torch, plain_weights(workload.params))


def _activation(workload: Workload) -> Callable:
    import torch

    is_tanh = activation_of(workload) is jax.numpy.tanh
    return torch.tanh if is_tanh else torch.relu


def _perceptron(layers: list[dict[str, Any]], inputs: Any, activation: Callable) -> Any:
    import torch

    for number, layer in enumerate(layers):
        inputs = torch.addmm(layer["bias"], inputs, layer["kernel"])
        if number + 1 < len(layers):
            inputs = activation(inputs)
    return inputs


def _log_likelihood(logits: Any, x: Any) -> Any:
    import torch

    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, x, reduction="none"
    )
    return -losses.sum(-1)


def elbo_loss(workload: Workload) -> Callable[[Any, Any], Any]:
    """Make the negative ELBO of grey pixels, with one sample and the closed-form KL."""
    import torch

    activation = _activation(workload)

    def loss(weights: Any, x: Any) -> Any:
        outputs = _perceptron(weights["encoder"], x, activation)
        mean, log_var = outputs.chunk(2, dim=-1)
        z = mean + torch.exp(log_var / 2) * torch.randn_like(mean)
        log_likelihood = _log_likelihood(
            _perceptron(weights["decoder"], z, activation), x
        )
        kl = (mean**2 + log_var.exp() - log_var - 1).sum(-1) / 2
        return (kl - log_likelihood).mean()

    return loss


def _log_weights(workload: Workload, weights: Any, x: Any, num_samples: int) -> Any:
    """Log importance weights log p(x, z) / q(z|x) of bits x `[B, D]`, `[S, B]`."""
    import torch

    activation = _activation(workload)
    outputs = _perceptron(weights["encoder"], x, activation)
    mean, log_var = outputs.chunk(2, dim=-1)
    noise = torch.randn(num_samples, *mean.shape)
    z = mean + torch.exp(log_var / 2) * noise
    logits = _perceptron(weights["decoder"], z.flatten(0, 1), activation)
    logits = logits.view(num_samples, *x.shape)
    log_ratio = (noise**2 + log_var - z**2).sum(-1) / 2
    return _log_likelihood(logits, x.expand_as(logits)) + log_ratio


def bound_loss(workload: Workload) -> Callable[[Any, Any], Any]:
    """Make the negative importance-weighted bound of freshly binarized pixels."""
    import torch

    def loss(weights: Any, grey: Any) -> Any:
        log_w = _log_weights(
            workload, weights, torch.bernoulli(grey), workload.num_samples
        )
        bound = torch.logsumexp(log_w, 0) - math.log(workload.num_samples)
        return -bound.mean()

    return loss


def train_run(
    workload: Workload,
    make_loss: Callable[[Workload], Callable],
    *,
    compiled: bool = False,
    loader: bool = False,
    rate: Rate = LEARNING_RATE,
) -> Training:
    """Set up a training loop over rows of one tensor, or over a DataLoader."""
    import torch

    torch.manual_seed(0)
    weights = _weights(workload)
    leaves = [leaf.requires_grad_() for leaf in jax.tree.leaves(weights)]
    adam = torch.optim.Adam(leaves, lr=LEARNING_RATE, fused=True)
    images, scale = _to_torch(workload.images), workload.num_levels - 1
    loss = make_loss(workload)
    loss = torch.compile(loss) if compiled else loss

    def batches_of(indices: np.ndarray):
        if not loader:
            return (images[row] for row in torch.from_numpy(indices))
        data = torch.utils.data.TensorDataset(images)
        batches = torch.utils.data.DataLoader(data, batch_sampler=indices.tolist())
        return (batch for (batch,) in batches)

    def train(step: int, batches: Any) -> tuple[int, np.ndarray]:
        losses = []
        indices = np.array(batches, np.int64)
        steps = np.arange(step, step + len(indices))
        rates = np.broadcast_to(rate(steps) if callable(rate) else rate, len(indices))
        for own_rate, batch in zip(rates.tolist(), batches_of(indices), strict=True):
            adam.param_groups[0]["lr"] = own_rate
            adam.zero_grad(set_to_none=True)
            value = loss(weights, batch.float() / scale)
            value.backward()
            adam.step()
            losses.append(value.detach())
        return step + len(losses), torch.stack(losses).numpy()

    def to_numpy(_: int) -> Any:
        return jax.tree.map(lambda leaf: leaf.detach().numpy().copy(), weights)

    return Training(train, 0, to_numpy)


def evidence_run(workload: Workload) -> Run:
    """Set up log evidence image by image, with samples in chunks of up to 1000."""
    import torch

    torch.manual_seed(0)
    weights, images = _weights(workload), _to_torch(workload.images)
    chunk_size = math.gcd(workload.num_samples, 1000)

    def run(batches: Any) -> np.ndarray:
        found = []
        with torch.inference_mode():
            for index in np.ravel(np.array(batches)):
                x = images[int(index)][None].float()
                chunks = [
                    torch.logsumexp(
                        _log_weights(workload, weights, x, chunk_size)[:, 0], 0
                    )
                    for _ in range(workload.num_samples // chunk_size)
                ]
                total = torch.logsumexp(torch.stack(chunks), 0)
                found.append(total - math.log(workload.num_samples))
        return torch.stack(found).numpy()

    return run


def prepare_products(workload: Workload) -> Run:
    """Prepare the matrix products of a round, the counterpart of `limit` in PyTorch."""
    import torch

    pairs = [
        (torch.ones(rows, inner), torch.ones(inner, outputs))
        for rows, inner, outputs in product_shapes(workload)
    ]

    def run(batches: Any) -> Any:
        products = []
        for _ in range(len(batches)):
            products = [left @ right for left, right in pairs]
        return products[-1].numpy()

    return run


def training_contestants(make_loss: Callable, *, loader: bool) -> list[Contestant]:
    """Eager and compiled training, optionally a DataLoader, and the products alone."""
    eager = partial(train_run, make_loss=make_loss)
    ways: dict[str, Callable[[Workload], Run]] = {
        EAGER: eager,
        COMPILED: partial(eager, compiled=True),
    }
    if loader:
        ways[LOADER] = partial(eager, loader=True)
    ways[TORCH_PRODUCTS] = prepare_products
    return [Contestant(name, prepare, TORCH) for name, prepare in ways.items()]
