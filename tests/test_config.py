"""Configs: typed overrides, refusals that name the option, and the way through JSON."""

import dataclasses
import json
import shlex

import pytest

from lpm_jax.config import (
    AudioConfig,
    Config,
    DiTConfig,
    StreamConfig,
    TextConfig,
    UMT5Config,
    VAEConfig,
    WanVAEConfig,
    Wav2VecConfig,
)
from lpm_jax.errors import InputError
from lpm_jax.options import from_dict, load_config, override
from lpm_jax.training import distill, on_policy, online

BASE = Config(name="test", stages={"vae": {"steps": 7}, "base.speak": {"kinds": ("speak",), "batch": 2}})


def change(line: str) -> Config:
    return override(BASE, shlex.split(line))


def test_overrides_have_the_fields_types():
    config = change("--train.steps 100 --train.learning_rate 1e-4 --train.optimizer adamw --size 64 --data elsewhere")
    assert (config.train.steps, config.size) == (100, 64)
    assert type(config.train.steps) is int
    assert config.train.learning_rate == 1e-4 and type(config.train.learning_rate) is float
    assert config.train.optimizer == "adamw"
    assert config.data == "elsewhere"
    assert BASE.train.steps != 100  # a new config; the old one stays


def test_overrides_of_tuples():
    assert change("--stream.levels 1,0.25").stream.levels == (1.0, 0.25)
    assert change("--train.kinds 'speak, idle'").train.kinds == ("speak", "idle")
    assert change("--train.kinds=").train.kinds == ()  # none: all


def test_equals_sign_and_order():
    assert change("--train.steps=5").train.steps == 5
    assert change("--train.steps 5 --train.steps=6").train.steps == 6
    assert change("--data=a=b").data == "a=b"
    assert override(BASE, []) == BASE


def test_overrides_leave_the_rest():
    changed = change("--dit.depth 12")
    assert changed.dit == dataclasses.replace(BASE.dit, depth=12)
    assert (changed.train, changed.vae, changed.stages) == (BASE.train, BASE.vae, BASE.stages)


@pytest.mark.parametrize("line, message", [
    ("--train.stepz 5", r"--train.stepz: expected one of steps, batch, .*, found 'stepz'"),
    ("--trane.steps 5", r"--trane.steps: expected one of name, size, .*, found 'trane'"),
    ("--train.steps many", r"--train.steps: expected int, found 'many'"),
    ("--train.steps 1.5", r"--train.steps: expected int, found '1.5'"),
    ("--train.learning_rate fast", r"--train.learning_rate: expected float, found 'fast'"),
    ("--stream.levels 1,x", r"--stream.levels: expected float, found 'x'"),
    ("--train 5", r"--train: expected one of its parts, such as --train.steps"),
    ("--size.pixels 5", r"--size.pixels: size has no parts"),
    ("--train.steps", r"--train.steps: expected a value, found the end of the line"),
    ("train.steps 5", r"expected an option such as --train.steps, found 'train.steps'"),
    ("--stages x", r"--stages: cannot be set on the command line"),
    ("--dit.head_dim 5", r"--dit.head_dim: expected one of depth, .*, found 'head_dim'"),
])  # fmt: skip
def test_refusals_name_the_option_on_one_line(line, message):
    with pytest.raises(InputError, match="^" + message + "$") as caught:
        change(line)
    assert "\n" not in str(caught.value)


def test_stages():
    stage = BASE.for_stage("base.speak")
    assert stage.train == dataclasses.replace(BASE.train, kinds=("speak",), batch=2)
    assert stage.dit == BASE.dit
    assert BASE.for_stage("vae").train.steps == 7
    with pytest.raises(InputError, match=r"^--stage: expected one of vae, base.speak, found 'base.talk'$"):
        BASE.for_stage("base.talk")


def test_round_trip_through_json():
    config = dataclasses.replace(change("--stream.levels 1,0.25 --train.kinds speak,idle --dit.eps 1e-5"), size=96)
    again = from_dict(json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config
    assert hash(again) == hash(config)
    assert again.stream.levels == (1.0, 0.25) and isinstance(again.train.kinds, tuple)
    stage = again.for_stage("base.speak")
    assert hash(stage) == hash(config.for_stage("base.speak")) and stage == config.for_stage("base.speak")


def test_hashable_and_comparable():
    """Configs are static arguments of compiled functions: equal ones must share a program."""
    assert hash(Config(name="a")) == hash(Config(name="a"))
    assert Config(name="a") != Config(name="b")
    assert dataclasses.replace(BASE, dit=DiTConfig(depth=2)) != BASE


@pytest.mark.parametrize("data, message", [
    ({"name": "x", "colour": 3}, r"config: expected fields of Config, found 'colour'"),
    ({"name": "x", "dit": {"deep": 3}}, r"config: expected fields of DiTConfig, found 'deep'"),
    ({"name": "x", "dit": 3}, r"config: expected fields of DiTConfig, found 3"),
    (["name"], r"config: expected fields of Config, found \['name'\]"),
])  # fmt: skip
def test_unknown_fields_are_refused(data, message):
    with pytest.raises(InputError, match="^" + message + "$"):
        from_dict(data)


def test_config_files(tmp_path):
    good = tmp_path / "good.py"
    good.write_text("from lpm_jax.config import Config\ndef get_config():\n    return Config(name='mine')\n")
    assert load_config(good).name == "mine"
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n")
    with pytest.raises(InputError, match=r"empty.py: expected a function get_config\(\), found none"):
        load_config(empty)
    with pytest.raises(InputError, match=r"absent.py: expected a Python file with get_config\(\), found no file"):
        load_config(tmp_path / "absent.py")


def test_the_bundled_recipe():
    config = load_config("configs/toy.py")
    parts = ["vae", "audio", "lips", "faces"]
    drawn = ["base.speak", "base.listen", "base.identity", "online.causal", "online.rollout"]
    assert list(config.recipe) == [*parts, *drawn]
    for stage in config.stages:
        train = config.for_stage(stage).train
        assert train.steps > 0 and train.latents % config.stream.chunk == 0
        assert not train.init or train.init in config.stages
    assert all(
        config.for_stage(stage).train.init not in distill.STAGES for stage in on_policy.STAGES
    )  # toy's last ones
    assert config.dit.channels == config.vae.channels
    assert config.dit.audio_width == config.audio.width and config.dit.text_width == config.text.width
    assert config.dit.width % config.dit.heads == 0 and config.dit.depth % 2 == 0
    assert config.size % (8 * config.dit.patch) == 0


@pytest.mark.parametrize("name", ["toy", "lpm_17b"])
def test_settings_of_online_stages_fit_each_other(name):
    """What ``train.py`` checks before it starts, but for the Refiner's level and the encoder, which are given later."""
    config = load_config(f"configs/{name}.py")
    config = dataclasses.replace(config, stream=dataclasses.replace(config.stream, refine=0.25))
    config = dataclasses.replace(config, audio=dataclasses.replace(config.audio, wav2vec=None))
    found = [stage for stage in online.STAGES if stage in config.stages]
    assert len(found) >= 5
    for stage in found:
        online.check(config.for_stage(stage), stage, frames=10**6)


@pytest.mark.parametrize("change", [{"chunk": 0}, {"window": 0}, {"sink": -1}, {"references": -1}])
def test_a_stream_has_a_window(change):
    """Without one, every chunk after the sink would be written over the sink."""
    name, value = next(iter(change.items()))
    with pytest.raises(InputError, match=rf"stream.{name}: expected at least \d, found {value}"):
        StreamConfig(**change)


def test_encoders_of_either_kind_survive_json():
    config = Config(
        "x",
        vae=WanVAEConfig(base_dim=8, z_dim=4, latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4),
        audio=AudioConfig(wav2vec=Wav2VecConfig(layers=2)),
        text=TextConfig(umt5=UMT5Config(layers=2)),
    )
    again = from_dict(json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config and hash(again) == hash(config)
    assert isinstance(from_dict({"name": "x", "vae": {"width": 8}}).vae, VAEConfig)
    for bad, words in (
        ({"name": "x", "vae": {"width": 8, "base_dim": 8}}, "'base_dim'"),
        ({"name": "x", "vae": {"z_dim": 3}}, "latents_mean: expected 3 values"),
        ({"name": "x", "text": {"umt5": {"layers": "2"}}}, "UMT5Config.layers: expected int, found '2'"),
        ({"name": "x", "dit": {"eps": True}}, "DiTConfig.eps: expected float, found True"),
        ({"name": "x", "stream": {"window": 0}}, "stream.window: expected at least 1, found 0"),
    ):
        with pytest.raises(InputError, match=words):
            from_dict(bad)
