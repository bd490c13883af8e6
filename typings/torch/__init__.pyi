"""Whatever name: PyTorch is an optional peer that `make types` does not install."""

from typing import Any

def __getattr__(name: str, /) -> Any: ...
