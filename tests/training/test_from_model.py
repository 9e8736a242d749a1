"""A model as the start of a run: its own weights, and new parts as from scratch."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax import pretrained
from lpm_jax.checkpoint import load_weights, save_weights
from lpm_jax.errors import InputError
from lpm_jax.models import conditions, vae
from lpm_jax.options import override
from lpm_jax.training import from_model
from lpm_jax.training.flow_matching import starting_weights
from tests import tiny

NARROW = override(tiny.CONFIG, ["--dit.life", "false", "--dit.warp", "0"])
NEW = ("dit/embed/life/bias", "dit/embed/life/kernel", "dit/head/warp/bias", "dit/head/warp/kernel")


@pytest.fixture
def start(tmp_path, monkeypatch):
    """``start(config, *options)`` saves a model of that config and makes a run of it; gives the model's weights."""

    def start_with(config, *options: str) -> dict:
        params = tiny.fill(conditions.abstract(config), 1) | {"vae": tiny.params()["vae"]}
        pretrained.save(tmp_path / "model", config, params, jnp.float32)
        monkeypatch.setattr(sys, "argv", ["from_model", str(tmp_path / "model"), str(tmp_path / "run"), *options])
        from_model.main()
        return params

    return start_with


def equal(a: dict, b: dict) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_run_starts_with_the_models_weights(start, tmp_path):
    params = start(tiny.CONFIG, "--name", "before")
    equal(load_weights(tmp_path / "run" / "vae" / "weights", "model", vae.abstract(tiny.CONFIG.vae)), params.pop("vae"))
    equal(starting_weights(tmp_path / "run", "before", conditions.abstract(tiny.CONFIG)), params)
    with pytest.raises(InputError, match="vae/weights: expected a folder without this stage, found one"):
        start(tiny.CONFIG, "--name", "again")


def test_another_runs_hearing_takes_the_place_of_the_models(start, tmp_path):
    other = {name: x["hearing"] for name, x in tiny.fill(conditions.abstract(tiny.CONFIG), 2).items() if "hearing" in x}
    assert other.keys() == {"speak", "listen"}
    save_weights(tmp_path / "heard" / "audio" / "weights", "model", other)
    params = start(tiny.CONFIG, "--hearing", str(tmp_path / "heard"))
    found = starting_weights(tmp_path / "run", "seed", conditions.abstract(tiny.CONFIG))
    for name, hears in other.items():
        equal(found[name].pop("hearing"), hears)
        params[name].pop("hearing")
    params.pop("vae")
    equal(found, params)


def test_parts_that_a_model_lacks_are_new_and_named(start, tmp_path, capsys):
    params = start(NARROW, "--dit.life", "true", "--dit.warp", "3")
    found = starting_weights(tmp_path / "run", "seed", conditions.abstract(tiny.CONFIG))
    warp, life = found.pop("warp"), found["dit"]["embed"].pop("life")
    said = found["dit"]["head"].pop("warp")
    params.pop("vae")
    equal(found, params)
    assert not np.any(warp["motions"]) and not np.any(said["kernel"])  # a stage measures motions that are nothing
    assert 0.02 < np.std(life["kernel"]) < 0.1
    told = capsys.readouterr().out
    assert all(name in told for name in (*NEW, "warp/motions"))


def test_what_does_not_fit_is_refused(start, tmp_path):
    with pytest.raises(InputError, match="^dit/head/warp/bias: expected nothing in the new model, found "):
        start(tiny.CONFIG, "--dit.warp", "0")
    with pytest.raises(InputError, match="nowhere/audio/weights: expected model-.* found none"):
        start(tiny.CONFIG, "--hearing", str(tmp_path / "nowhere"))
    assert not (tmp_path / "run").exists()
