"""A griffe extension: our docstrings as the site's generator reads them."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Take `Example:` for the section that griffe knows as `Examples:`."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section of one docstring."""
        if obj.docstring:
            obj.docstring.value = re.sub(
                r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE
            )
