"""Base class of families for categories coded 0 to K - 1."""

from dataclasses import dataclass

from vae_jax.distributions.support import Support
from vae_jax.options import require_at_least
from vae_jax.types import Family


@dataclass(frozen=True)
class Codes(Family):
    """Base of the families for categories coded 0 to K - 1.

    Attributes:
      num_categories: K.

    Raises:
      ValueError: K below 2.
    """

    num_categories: int
    covers_unit_interval = False

    def __post_init__(self):
        require_at_least("num_categories", self.num_categories, 2)

    @property
    def support(self) -> Support:
        """The codes 0 to K - 1."""
        return Support(0.0, self.num_categories - 1, whole=True)
