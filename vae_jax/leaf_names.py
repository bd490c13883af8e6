"""Leaves of a pytree by the names of their paths, such as `encoder.output.kernel`."""

from typing import Any

import jax

from vae_jax.types import PyTree


def leaf_name(path: tuple[Any, ...]) -> str:
    """The name of a path of `jax.tree_util`.

    Args:
      path: keys from the root to the leaf.

    Returns:
      The keys, joined by dots.
    """
    return jax.tree_util.keystr(path, simple=True, separator=".")


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """All leaves by name.

    Args:
      tree: a pytree.

    Returns:
      The leaves, in the order of the tree.

    Raises:
      ValueError: two leaves have the same name, as in `{"a.b": 1, "a": {"b": 2}}`.

    Example:
      >>> from vae_jax.leaf_names import named_leaves
      >>> named_leaves({"layers": [{"bias": 0.0, "kernel": 1.0}]})
      {'layers.0.bias': 0.0, 'layers.0.kernel': 1.0}
    """
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = leaf_name(path)
        if name in named:
            raise ValueError(f"two weights have the name {name}: rename one of them")
        named[name] = leaf
    return named
