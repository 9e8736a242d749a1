"""A study from its command to its results: what is run, what is not run again, and what is refused."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from lpm_jax.checkpoint import load_weights, save_weights
from lpm_jax.config import WanVAEConfig
from lpm_jax.errors import InputError
from lpm_jax.scaling import __main__ as door
from lpm_jax.scaling import evaluate, laws, plot, report, sweep
from lpm_jax.training import latents, stages, validation
from tests import tiny
from tests.scaling import fake
from tests.scaling.test_fit import runs as synthetic

WEIGHTS = tiny.params(fake.config())
CONFIG = """
from tests.scaling import fake

def get_config():
    return fake.config({arguments})
"""


@pytest.fixture(scope="module")
def cached(tmp_path_factory) -> Path:
    return fake.cache(tmp_path_factory.mktemp("cache") / "clips")


@pytest.fixture
def workdir(tmp_path, cached, monkeypatch) -> Path:
    monkeypatch.setattr(latents, "build", lambda *_: cached)
    return fake.workdir(tmp_path / "work")


@pytest.fixture
def trained(monkeypatch) -> list[str]:
    """Instead of training random weights, and instead of a loss the steps; the folders asked for."""
    asked = []

    def run(stage, config, folder):
        asked.append(Path(folder).name)
        save_weights(folder / stage / "weights", "model", {k: v for k, v in WEIGHTS.items() if k != "vae"})

    monkeypatch.setattr(stages, "run", run)
    monkeypatch.setattr(evaluate, "losses", lambda config, *_: np.arange(1.0, 4.0) / config.train.steps)
    return asked


def command(tmp_path: Path, workdir: Path, *more: str, arguments: str = "") -> list[str]:
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG.format(arguments=arguments))
    return [str(path), "--workdir", str(workdir), "--out", str(tmp_path / "results.json"), "--draws", "2", *more]


def call(monkeypatch, *words: str) -> dict:
    monkeypatch.setattr(sys, "argv", ["scaling", *words])
    door.main()
    return json.loads(Path(words[words.index("--out") + 1]).read_text())


@pytest.mark.slow
def test_a_study_trains_judges_and_resumes(workdir, tmp_path, monkeypatch, capsys):
    """A real run of three steps. Again, nothing is trained; with other questions the same weights are judged."""
    monkeypatch.setattr(validation, "Validator", lambda *_: lambda *_: {})
    words = command(tmp_path, workdir, "--steps", "3", "--train.log_every", "1")
    first = call(monkeypatch, *words)
    folder = workdir / "scaling" / "tiny-3-0"
    assert (folder / "vae").resolve() == (workdir / "vae").resolve()
    saved = {path: path.stat().st_mtime_ns for path in (folder / "base.speak" / "weights").iterdir()}
    (run,) = first["runs"]
    assert first["versions"]["optax"] and run["tokens"] == 3 * 2 * 6 * 4 and run["seconds"] > 0
    assert run["loss"] == pytest.approx(np.mean(run["clips"]), abs=1e-5) and len(run["clips"]) == fake.CLIPS
    params = load_weights(folder / "base.speak" / "weights", "model")
    config = sweep.plan([fake.config()], "base.speak", [3], [], None)[0]
    expected = evaluate.losses(config, "base.speak", params, evaluate.held_out(config, workdir), 2)
    np.testing.assert_allclose(run["clips"], expected, atol=1e-5)
    assert "3 steps, seed 0: 0.0" in capsys.readouterr().out

    monkeypatch.setattr(stages, "run", lambda *_: pytest.fail("a finished run was run again"))
    again = call(monkeypatch, *words)
    assert again["runs"] == first["runs"] and again["laws"] == first["laws"]
    assert capsys.readouterr().out.count("(done before)") == 1
    assert saved == {path: path.stat().st_mtime_ns for path in saved}
    words[words.index("--draws") + 1], words[words.index("--out") + 1] = "3", str(tmp_path / "other.json")
    (other,) = call(monkeypatch, *words)["runs"]
    assert other["seconds"] == run["seconds"] and other["clips"] != run["clips"]


def test_runs_that_are_missing_are_run_and_join_the_others(workdir, trained, tmp_path, monkeypatch):
    call(monkeypatch, *command(tmp_path, workdir, "--steps", "2,4"))
    assert trained == ["tiny-2-0", "tiny-4-0"]
    (workdir / "scaling" / "tiny-4-0" / "base.speak" / "held_out.json").unlink()  # killed before it was judged
    call(monkeypatch, *command(tmp_path, workdir, "--steps", "2,4,6"))
    assert trained[2:] == ["tiny-4-0", "tiny-6-0"]
    both = call(monkeypatch, *command(tmp_path, workdir, "--steps", "4", "--train.seed", "1"))
    assert trained[4:] == ["tiny-4-1"]
    assert [(run["steps"], run["seed"]) for run in both["runs"]] == [(2, 0), (4, 0), (4, 1), (6, 0)]


def test_dear_runs_are_left_out(trained, workdir, tmp_path, monkeypatch):
    config = fake.config()
    costs = [sweep.count.cost(run, "base.speak").flops for run in sweep.plan([config], "base.speak", [2, 4], [], None)]
    call(monkeypatch, *command(tmp_path, workdir, "--steps", "2,4", "--max-flops", str(costs[0])))
    assert trained == ["tiny-2-0"]


def test_the_held_out_loss_is_the_same_question_for_all(workdir):
    config = sweep.plan([fake.config(kinds=("idle",))], "base.speak", [2], [], None)[0]
    source = evaluate.held_out(config, workdir)
    assert len(source) == fake.CLIPS // 2
    params = {name: part for name, part in WEIGHTS.items() if name != "vae"}
    head = jax.tree.map(np.zeros_like, params["dit"]["head"])  # says nothing
    params = params | {"dit": params["dit"] | {"head": head}}
    once, twice = (evaluate.losses(config, "base.speak", params, source, 2) for _ in range(2))
    np.testing.assert_array_equal(once, twice)
    other = evaluate.losses(config, "base.speak", params, source, 2, seed=1)
    assert (once != other).all()
    head["projection"]["bias"] = head["projection"]["bias"] + 1.0
    assert (evaluate.losses(config, "base.speak", params, source, 2) > once).all()


def test_fit_only_fits_what_is_there(tmp_path, monkeypatch, capsys):
    runs = [run | {"clips": list(run["clips"])} for run in synthetic(clips=3)]
    extra = {"stage": "base.speak", "parameters": 10, "seconds": None, "seconds_per_step": None, "standard_error": None}
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"stage": "base.speak", "runs": [run | extra | {"loss": 1.0} for run in runs]}))
    found = call(monkeypatch, "--fit-only", "--out", str(path))
    assert found["laws"]["size"]["alpha"] == pytest.approx(0.35, rel=1e-2)
    assert found["laws"] == json.loads(json.dumps(laws.analyse(runs)))
    printed = capsys.readouterr().out
    assert printed.count("| ") > 12 and "L(N, D) = 0.2" in printed and "Held back: 9000000 800" in printed


def test_the_plot_is_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    from PIL import Image

    runs = synthetic(noise=0.1)
    path = tmp_path / "deep" / "scaling.png"
    plot.save(path, {"stage": "base.speak", "runs": runs, "laws": laws.analyse(runs)})
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert picture.shape[1] > 800 and [p.name for p in path.parent.iterdir()] == ["scaling.png"]
    colours = {tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in plot.COLOURS[:3]}
    assert colours <= {tuple(int(v) for v in pixel) for pixel in picture.reshape(-1, 3)}  # each size's line is there
    plot.save(path, {"stage": "base.speak", "runs": runs[:2], "laws": laws.analyse(runs[:2])})  # without any law


def test_no_matplotlib_is_said_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(sys, "argv", ["scaling", "a.py", "--workdir", ".", "--out", "a.json", "--plot", "a.png"])
    with pytest.raises(InputError, match=r"^--plot: expected matplotlib, found none; install it with: uv sync"):
        door.main()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--out", "r.json"], "expected configs and --workdir, or --fit-only"),
        (["a.py", "--out", "r.json"], "expected configs and --workdir, or --fit-only"),
        (["a.py", "--workdir", "w"], "the following arguments are required: --out"),
        (["a.py", "--workdir", "w", "--out", "r.json"], "--steps: expected numbers of steps such as 50,100, found ''"),
        (["a.py", "--workdir", "w", "--out", "r.json", "--steps", "5,x"], "found '5,x'"),
        (["a.py", "--workdir", "w", "--out", "r.json", "--steps", "0,5"], "found '0,5'"),
        (["a.py", "--workdir", "w", "--out", "r.json", "--steps", "5", "--draws", "0"], "--draws: expected at least 1"),
        (["--fit-only", "--out", "absent.json"], "--out absent.json: expected the results of a study, found no file"),
        (["--fit-only", "a.py", "--out", "r.json"], "--fit-only: expected no runs and no settings, found a.py"),
        (["absent.py", "--workdir", "w", "--out", "r.json", "--steps", "5"], "absent.py: expected a Python file"),
    ],
)
def test_bad_commands(words, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["scaling", *words])
    with pytest.raises(InputError) as error:
        door.main()
    assert message in str(error.value) and "\n" not in str(error.value)


def test_results_that_are_none(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    for text in ("", "[]", "{}", '{"runs": [{"name": 1}]}'):
        path.write_text(text)
        with pytest.raises(InputError, match="expected the results of a study, found something else"):
            call(monkeypatch, "--fit-only", "--out", str(path))
        assert path.read_text() == text


def test_runs_that_cannot_be_compared():
    first = fake.config()
    other = dataclasses.replace(first, name="other", dit=dataclasses.replace(first.dit, channels=16))
    with pytest.raises(InputError, match="^other: expected the latent space and the data of tiny, found others$"):
        sweep.plan([first, other], "base.speak", [5], [], None)
    with pytest.raises(InputError, match="^configs: expected different names, found tiny, tiny$"):
        sweep.plan([first, first], "base.speak", [5], [], None)
    with pytest.raises(InputError, match="^tiny: expected a diffusion stage of the toy's latents, found vae$"):
        sweep.plan([first], "vae", [5], [], None)
    with pytest.raises(InputError, match="^tiny: expected a diffusion stage of the toy's latents"):
        sweep.plan([dataclasses.replace(first, vae=WanVAEConfig())], "base.speak", [5], [], None)
    with pytest.raises(InputError, match="^--stage: expected one of base.speak, found 'base.sing'$"):
        sweep.plan([first], "base.sing", [5], [], None)
    with pytest.raises(InputError, match="^--max-flops: expected room for a run, found 10$"):
        sweep.plan([first], "base.speak", [5], [], 10.0)


def test_a_folder_of_another_run_is_refused(trained, workdir, tmp_path, monkeypatch):
    call(monkeypatch, *command(tmp_path, workdir, "--steps", "2"))
    config = sweep.plan([fake.config()], "base.speak", [2], [], None)[0]
    folder = workdir / "scaling" / "tiny-2-0" / "base.speak"
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    results = tmp_path / "results.json"
    with pytest.raises(InputError, match=r"expected learning_rate 0.1, found 0.002; name another file$"):
        call(monkeypatch, *command(tmp_path, workdir, "--steps", "2", "--train.learning_rate", "0.1"))
    results.unlink()
    with pytest.raises(InputError, match=r"train.learning_rate 0.1, found 0.002; take another --workdir$"):
        call(monkeypatch, *command(tmp_path, workdir, "--steps", "2", "--train.learning_rate", "0.1"))
    call(monkeypatch, *command(tmp_path, workdir, "--steps", "2", "--train.log_every", "7"))  # changes no result
    assert trained == ["tiny-2-0"]
    with pytest.raises(InputError, match="expected draws 3, found 2; name another file"):
        call(monkeypatch, *command(tmp_path, workdir, "--steps", "4", "--draws", "3"))
    with pytest.raises(InputError, match="^--train.steps: expected --steps$"):
        call(monkeypatch, *command(tmp_path, workdir, "--steps", "2", "--train.steps", "9"))


def test_a_workdir_without_an_autoencoder(trained, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"^--workdir .*empty: expected the weights of stage vae in it, found none$"):
        call(monkeypatch, *command(tmp_path, tmp_path / "empty", "--steps", "2"))
    assert not trained


def test_a_line_for_a_run():
    run = {
        "name": "1m", "steps": 100, "seed": 0, "parameters": 1_152_864, "flops": 2.01e12, "seconds_per_step": 0.25,
        "loss": 0.51234, "standard_error": 0.01,
    }  # fmt: skip
    expected = "1m, 100 steps, seed 0: 1.15 M parameters, 2.01e+12 FLOP, 0.25 s a step, held-out loss 0.5123 +- 0.0100"
    assert report.line(run) == expected


def test_times_of_a_curve(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert sweep.times(path) == {"seconds": None, "seconds_per_step": None}
    lines = [
        {"step": 20, "seconds_per_step": 1.0},  # as older curves call it
        {"step": 40, "speed/seconds_per_step": 0.2},
        {"step": 40, "validation": {}},
    ]
    lines.append({"step": 50, "speed/seconds_per_step": 0.1})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert sweep.times(path) == {"seconds": 25.0, "seconds_per_step": 0.2}
