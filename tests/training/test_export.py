"""A finished run as a model, by itself and averaged with the weights that it started from."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax import pretrained
from lpm_jax.checkpoint import save_weights
from lpm_jax.errors import InputError
from lpm_jax.models import conditions
from lpm_jax.training import export
from tests import tiny

CONFIG_FILE = "from tests import tiny\ndef get_config():\n    return tiny.CONFIG\n"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """``run(*options)`` exports a finished ``online.ode`` and returns the model's weights."""
    after = tiny.fill(conditions.abstract(tiny.CONFIG), 1)
    save_weights(tmp_path / "run" / "online.ode" / "weights", "model", after)
    save_weights(tmp_path / "run" / "vae" / "weights", "model", tiny.params()["vae"])
    (tmp_path / "config.py").write_text(CONFIG_FILE)

    def export_with(*options: str) -> dict:
        words = [tmp_path / "config.py", tmp_path / "run", tmp_path / "out", "--stage", "online.ode", *options]
        monkeypatch.setattr(sys, "argv", ["export", *map(str, words)])
        export.main()
        return pretrained.load(tmp_path / "out", jnp.float32)[1]

    return export_with


@pytest.mark.slow
def test_a_blend_is_the_weighted_mean(run, tmp_path):
    before, after = tiny.params(), run()
    pretrained.save(tmp_path / "before", tiny.CONFIG, before, jnp.float32)
    mixed = run("--blend", str(tmp_path / "before"), "--share", "0.25")
    for name in ("dit", "text", "speak"):
        want = jax.tree.map(lambda a, b: 0.25 * a + 0.75 * b, after[name], before[name])
        for a, b in zip(jax.tree.leaves(mixed[name]), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=0.02, atol=0.02)  # bfloat16, twice
    kernel = [x["dit"]["head"]["projection"]["kernel"] for x in (mixed, after, before)]
    assert tiny.differs(kernel[0], kernel[1], 0.1) and tiny.differs(kernel[0], kernel[2], 0.05)
    for a, b in zip(jax.tree.leaves(mixed["vae"]), jax.tree.leaves(after["vae"]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_cannot_be_blended_is_told(run):
    with pytest.raises(InputError, match="--blend: expected a model of the run's own shape, found another"):
        run("--blend", "toy")
    with pytest.raises(InputError, match="--share: expected 0 to 1, found 1.5"):
        run("--blend", "toy", "--share", "1.5")
    with pytest.raises(InputError, match="nobody"):
        run("--blend", "nobody")


def test_a_run_on_its_way_is_exported_from_its_checkpoint(run, tmp_path):
    with pytest.raises(InputError, match="checkpoint"):  # it has none; training/test_resume.py reads averages from some
        run("--stage", "online.ode@latest")
