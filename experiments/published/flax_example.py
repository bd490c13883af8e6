"""The VAE example of flax: 784-500-20 on static MNIST, Adam at 1e-3, batches of 128.

python -m experiments.published.flax_example
"""

from typing import Any

from experiments.mnist import Config
from experiments.published.tables import STATIC, Cell, Table, main

_RECIPE: dict[str, Any] = {
    **STATIC,
    "hidden_dims": (500,),
    "schedule": "constant",
    "learning_rate": 1e-3,
}
_INIT = (
    "initial weights: those of vae_jax, with the decoder's bias at the data's mean and "
    "a narrow posterior"
)
TABLE = Table(
    "flax_example",
    "VAE example of flax, 784-500-20, static MNIST",
    "a log in issue 1361 of github.com/google/flax: loss 103.60 and 101.53",
    tuple(
        Cell(
            f"epochs_{epochs}",
            {"test_elbo": elbo},
            Config(**_RECIPE, epochs=epochs),
            epochs,
            _INIT,
        )
        for epochs, elbo in ((10, -103.60), (21, -101.53))
    ),
)

if __name__ == "__main__":
    main(TABLE)
