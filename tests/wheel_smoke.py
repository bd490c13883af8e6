"""What an installed wheel does in an environment that has nothing else.

Run as a script, by the Python of that environment: make wheel.
"""

import importlib.metadata
import importlib.util
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import vae_jax

CHECKOUT = Path(__file__).parents[1]


def main():
    installed = Path(vae_jax.__file__)
    assert CHECKOUT / "vae_jax" not in installed.parents, installed
    assert (installed.parent / "py.typed").exists()
    assert importlib.util.find_spec("experiments") is None
    version = importlib.metadata.version("vae_jax")

    spec = vae_jax.ModelSpec(
        encoder=vae_jax.MLP((16,)),
        decoder=vae_jax.MLP((16,)),
        latent_dim=2,
        data_shape=(8, 8),
    )
    data = vae_jax.data.load("digits")
    x = jnp.asarray(data.train[:256] / (data.num_levels - 1), jnp.float32).round()
    params = vae_jax.init(spec, jax.random.key(0), x=x)
    key = jax.random.key(1)
    before = vae_jax.elbo(params, x, key)
    fitted = vae_jax.fit(params, x, jax.random.key(2), num_epochs=40, batch_size=64)
    assert vae_jax.elbo(fitted.params, x, key) > before + 1
    with tempfile.TemporaryDirectory() as folder:
        vae_jax.save_run(f"{folder}/run", fitted.params)
        again = vae_jax.load_run(f"{folder}/run")
    for one, other in zip(*map(jax.tree.leaves, (fitted.params, again)), strict=True):
        np.testing.assert_array_equal(one, other)
    try:
        importlib.import_module("vae_jax.sklearn")
    except ImportError as error:
        assert "vae_jax[sklearn]" in str(error)
    print(f"vae_jax {version} works from {installed.parents[2].name}")


if __name__ == "__main__":
    main()
