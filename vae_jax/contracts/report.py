"""Result of a check: lines with a verdict, and a readable table."""

from dataclasses import dataclass
from typing import NamedTuple

VERDICTS = {True: "passed", False: "FAILED", None: "does not apply"}
WIDTH = max(map(len, VERDICTS.values()))


class Line(NamedTuple):
    """One line of a report.

    Attributes:
      name: name of the tested property.
      passed: True, False, or None if the test does not apply.
      figure: the test statistic, as text; may be empty.
      detail: for a failed line, the actual and the expected result; for one that does
        not apply, the reason.

    Example:
      >>> from vae_jax.contracts import Line
      >>> print(Line("KL is not negative", True, "smallest 0.31 nats"))
      passed          KL is not negative: smallest 0.31 nats
    """

    name: str
    passed: bool | None
    figure: str = ""
    detail: str = ""

    def __str__(self) -> str:
        """Verdict, name and figure, followed by the indented detail."""
        figure = f": {self.figure}" if self.figure else ""
        first = f"{VERDICTS[self.passed]:<{WIDTH}}  {self.name}{figure}"
        indent = "\n" + " " * (WIDTH + 4)
        return first + "".join(indent + line for line in self.detail.splitlines())


@dataclass(frozen=True)
class Report:
    """Result of `check`.

    Attributes:
      lines: one line per test, in order.

    Example:
      >>> from vae_jax.contracts import Line, Report
      >>> report = Report((Line("values are finite", False, "", "log q is nan"),))
      >>> report.passed
      False
      >>> print(report)
      FAILED          values are finite
                        log q is nan
      0 passed, 1 failed, 0 do not apply
    """

    lines: tuple[Line, ...]

    @property
    def passed(self) -> bool:
        """Whether no line failed."""
        return not self.failed

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the lines that failed."""
        return tuple(line.name for line in self.lines if line.passed is False)

    def __str__(self) -> str:
        """Table of all lines, and the number of each verdict."""
        verdicts = [line.passed for line in self.lines]
        summary = ", ".join(
            f"{verdicts.count(verdict)} {word}"
            for verdict, word in ((True, "passed"), (False, "failed"))
        )
        summary += f", {verdicts.count(None)} do not apply"
        return "\n".join([*map(str, self.lines), summary])
