"""Every check of every lecture topic holds when it runs as a command."""

import pytest
from lecture_examples import topic

# Flags that keep each topic short.
TOPICS = {
    "information": {},
    "mixtures": {"dataset": "digits"},
    "autoencoders": {"dataset": "digits"},
    "reparameterization": {},
    "evidence": {},
    "collapse": {"dataset": "digits"},
    "applications": {"dataset": "digits"},
    "regimes": {"dataset": "digits"},
    "inference": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TOPICS)
def test_every_check_of_a_topic_holds(name, tmp_path, capsys):
    module = topic(name)
    config = module.Config(**TOPICS[name], run_dir=str(tmp_path / name))
    report = module.run(config)
    assert not [check.what for check in report.checks if not check.ok]
    assert "all hold" in capsys.readouterr().out
    drawn = {path.stem for path in (tmp_path / name / "figures").glob("*.png")}
    assert drawn == set(report.figures)
