"""Checkpoints of a run: whole or not picked, restored to any devices, refused where they belong to something else."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax.config import TrainConfig
from lpm_jax.errors import InputError
from lpm_jax.training.resume import Position, Saver, folders, load_average, sums
from lpm_jax.training.state import create_state, make_optimizer

ROOT = Path(__file__).parents[2]
TRAIN = TrainConfig(keep=3)
SAME = {"seed": 0, "data": "some clips"}


def make(seed: int = 0, width: int = 64):
    """A training state of random numbers, with every kind of array that one has."""
    rng = np.random.default_rng(seed)
    params = {"layer": {"kernel": rng.normal(size=(32, width)), "bias": rng.normal(size=width)}}
    state = create_state(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params), make_optimizer(TRAIN))
    return state._replace(step=jnp.int32(seed))


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Checkpoints of steps 1 and 2."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    saver = Saver(directory, TRAIN, SAME)
    for step in (1, 2):
        saver.save(step, make(step), {"next_index": step})
    saver.close()
    return directory


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def restore(directory: Path, same: dict = SAME, like=None):
    saver = Saver(directory, TRAIN, same)
    try:
        return saver.restore(abstract(make() if like is None else like))
    finally:
        saver.close()


def test_nothing_saved_is_a_fresh_start(tmp_path):
    assert restore(tmp_path / "checkpoints") is None


def test_state_and_position_come_back(saved):
    restored, position, said = restore(saved)
    assert_same(restored, make(2))
    assert position == {"next_index": 2} and said == "resumed at step 2"


def test_what_is_saved_is_the_state_at_the_call(tmp_path):
    """The next steps take over the arrays, and the loader runs on, while the checkpoint is written."""
    saver = Saver(tmp_path, TRAIN, SAME)
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = step(make(5, width=4096))
    expected = jax.device_get(state)
    position = {"next_index": 7}
    saver.save(1, state, position)
    position["next_index"] = 8
    for _ in range(20):
        state = step(state)
    saver.wait()
    saver.close()
    restored, position, _ = restore(tmp_path, like=make(0, width=4096))
    assert_same(restored, expected)
    assert position == {"next_index": 7}


def largest(folder: Path) -> Path:
    return max(folder.rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


DAMAGE = {
    "the arrays' file is cut": lambda folder: cut(largest(folder / "state")),
    "the arrays' file is empty": lambda folder: largest(folder / "state").write_bytes(b""),
    "the arrays' file is gone": lambda folder: largest(folder / "state").unlink(),
    "a byte of an array changed": lambda folder: flip(largest(folder / "state")),
    "the description of the arrays is gone": lambda folder: (folder / "state" / "_METADATA").unlink(),
    "the description of the arrays is cut": lambda folder: cut(folder / "state" / "_METADATA"),
    "the database's head is gone": lambda folder: (folder / "state" / "manifest.ocdbt").unlink(),
    "the metadata is gone": lambda folder: (folder / "_CHECKPOINT_METADATA").unlink(),
    "the metadata is cut": lambda folder: cut(folder / "_CHECKPOINT_METADATA"),
    "the state is gone": lambda folder: shutil.rmtree(folder / "state"),
    "the position is gone": lambda folder: shutil.rmtree(folder / "data"),
    "the position is cut": lambda folder: cut(folder / "data" / "position.json"),
    "nothing is left": lambda folder: [shutil.rmtree(folder), folder.mkdir()],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_checkpoint_gives_way_to_the_one_before(copy, damage):
    DAMAGE[damage](copy / "2")
    left = sorted(path.relative_to(copy / "2") for path in (copy / "2").rglob("*"))
    restored, position, said = restore(copy)
    assert_same(restored, make(1))
    assert position == {"next_index": 1}
    assert said.startswith("resumed at step 1; checkpoint 2 cannot be read (") and said.endswith(" is now 2.broken")
    assert sorted(path.name for path in copy.iterdir()) == ["1", "2.broken"]
    assert sorted(path.relative_to(copy / "2.broken") for path in (copy / "2.broken").rglob("*")) == left
    assert restore(copy).said == "resumed at step 1"


def test_the_run_goes_on_after_a_broken_checkpoint(copy):
    """Its step can be saved again, and a second broken one of that step keeps the first."""
    for _ in range(2):
        cut(largest(copy / "2" / "state"))
        saver = Saver(copy, TRAIN, SAME)
        state = saver.restore(abstract(make())).state
        saver.save(2, state._replace(step=jnp.int32(2)), {"next_index": 2})
        saver.wait()
        saver.close()
    assert sorted(path.name for path in copy.iterdir()) == ["1", "2", "2.broken", "2.broken+"]
    assert restore(copy).said == "resumed at step 2"


def test_a_byte_is_named(copy):
    flip(largest(copy / "2" / "state"))
    assert "is not what was saved" in restore(copy).said


def test_where_no_checkpoint_can_be_read_nothing_starts_anew(copy):
    cut(largest(copy / "2" / "state"))
    shutil.rmtree(copy / "1" / "data")
    for _ in range(2):  # nor the second time
        with pytest.raises(InputError, match=r"checkpoints: expected a checkpoint that can be read, found 2 \(.*\), 1 "
                           r"\(no data\); to start anew, move the folder away"):  # fmt: skip
            restore(copy)
        assert sorted(path.name for path in copy.iterdir()) == ["1", "2"]


def test_a_half_written_checkpoint_is_never_picked(copy):
    (copy / "2").rename(copy / "2.orbax-checkpoint-tmp-17")  # as Orbax names what it has not finished
    restored, _, said = restore(copy)
    assert_same(restored, make(1))
    assert said == "resumed at step 1"


@pytest.mark.parametrize("change, message", [
    ({"seed": 3}, r"^--train.seed: expected 0 as in .*/2, found 3 \(another run needs another --workdir\)$"),
    ({"data": "others"}, r"^--data: expected 'some clips' as in .*/2, found 'others' \(another run"),
])  # fmt: skip
def test_another_run_is_refused(copy, change, message):
    with pytest.raises(InputError, match=message):
        restore(copy, SAME | change)
    assert sorted(path.name for path in copy.iterdir()) == ["1", "2"]


def test_another_model_is_refused_not_called_broken(copy):
    with pytest.raises(InputError, match=r"/2: ema/layer/bias: expected \(65,\), found \(64,\) \(another model"):
        restore(copy, like=make(0, width=65))
    other = create_state(make().params, make_optimizer(dataclasses.replace(TRAIN, optimizer="adamw")))
    with pytest.raises(InputError, match=r"/2: optimizer/.*: expected .*, found .* \(another model or optimiser"):
        restore(copy, like=other)
    assert sorted(path.name for path in copy.iterdir()) == ["1", "2"]


def test_checkpoints_of_before_are_still_read(copy):
    """Without seed and sums, and with Grain's own file for the position."""
    path = copy / "2" / "_CHECKPOINT_METADATA"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"custom_metadata": {}}))
    (copy / "2" / "data" / "position.json").rename(copy / "2" / "data" / "process_0-of-1.json")
    restored, position, said = restore(copy, {"seed": 9, "data": "others"})
    assert_same(restored, make(2))
    assert position == {"next_index": 2} and said == "resumed at step 2"


def test_the_newest_stay_and_every_so_many(tmp_path):
    saver = Saver(tmp_path, dataclasses.replace(TRAIN, keep=2, keep_every=4), SAME)
    for step in range(1, 12):
        saver.save(step, make(step), {})
    saver.close()
    assert list(folders(tmp_path)) == [11, 10, 8, 4]


def test_a_step_is_saved_once(tmp_path):
    saver = Saver(tmp_path, TRAIN, SAME)
    saver.save(1, make(1), {})
    saver.save(1, make(2), {})
    saver.close()
    assert int(restore(tmp_path).state.step) == 1


def test_a_failed_write_is_told_at_the_next_save(tmp_path, monkeypatch):
    saver = Saver(tmp_path, TRAIN, SAME)
    saver.save(1, make(1), {"next_index": 1})
    saver.wait()

    async def fail(self, directory):
        async def write():
            await directory.await_creation()
            raise OSError("no space left on device")

        return write()

    monkeypatch.setattr(Position, "save", fail)
    saver.save(2, make(2), {})
    with pytest.raises(OSError, match="no space left on device"):
        saver.save(3, make(3), {})
    monkeypatch.undo()
    restored, _, said = restore(tmp_path)
    assert said == "resumed at step 1"
    assert_same(restored, make(1))


def test_sums_see_every_bit():
    state = make(3)
    before = sums(state)
    assert set(before) >= {"step", "params/layer/kernel", "ema/layer/bias"}
    kernel = np.asarray(state.params["layer"]["kernel"]).copy()
    kernel.view(np.uint32)[5, 7] ^= 1
    after = sums(state._replace(params={"layer": state.params["layer"] | {"kernel": jnp.asarray(kernel)}}))
    assert {name for name in before if before[name] != after[name]} == {"params/layer/kernel"}
    odd = {
        "bfloat16": jnp.ones(3, jnp.bfloat16),
        "bool": jnp.array([True, False, True]),
        "int8": jnp.full(2, -1, "int8"),
    }
    assert sums(odd) == {"bfloat16": 3 * 0x3F80, "bool": 2, "int8": 2 * 255}
    assert sums({"x": jnp.array([-1, -1, 3], jnp.int32)}) == {"x": 1}  # modulo 2^32


def test_the_average_alone(saved):
    expected = jax.device_get(make(1).ema)
    for step in ("1", "latest"):
        found = load_average(saved, step, make().params)
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found))
        assert_same(found, expected if step == "1" else jax.device_get(make(2).ema))


@pytest.mark.parametrize("step, like, message", [
    ("3", make().params, r"^--train.init @3: expected a step of .* or 'latest', found 2, 1$"),
    ("newest", make().params, r"^--train.init @newest: expected a step of .* or 'latest', found 2, 1$"),
    ("2", make(0, 65).params, r"/2: ema/layer/bias: expected \(65,\), found \(64,\)"),
])  # fmt: skip
def test_an_average_that_is_not_there(saved, step, like, message):
    with pytest.raises(InputError, match=message):
        load_average(saved, step, like)


def test_a_broken_average(copy, tmp_path):
    largest(copy / "2" / "state").write_bytes(b"half")
    with pytest.raises(InputError, match=r"/2: expected a checkpoint, found "):
        load_average(copy, "latest", make().params)
    path = copy / "1" / "_CHECKPOINT_METADATA"  # as if a byte of the array had changed
    metadata = json.loads(path.read_text())
    metadata["custom_metadata"]["sums"]["ema/layer/kernel"] ^= 1
    path.write_text(json.dumps(metadata))
    with pytest.raises(InputError, match=r"/1: expected a checkpoint, found ema/layer/kernel is not what was saved"):
        load_average(copy, "1", make().params)
    with pytest.raises(InputError, match="found none$"):
        load_average(tmp_path / "nowhere", "latest", make().params)


SPREAD = """
import sys
import jax, numpy as np
from pathlib import Path
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from tests.training.test_resume import SAME, TRAIN, abstract, assert_same, make
from lpm_jax.training.resume import Saver

def spread(state):
    mesh = Mesh(np.array(jax.devices()), ("all",))
    def put(x):
        axis = next((i for i, n in enumerate(x.shape) if n % mesh.size == 0), None)
        spec = P() if axis is None else P(*(None,) * axis, "all")
        return jax.device_put(x, NamedSharding(mesh, spec))
    return jax.tree.map(put, state)

saver = Saver(Path(sys.argv[1]), TRAIN, SAME)
if sys.argv[2] == "save":
    state = spread(make(4))
    assert len(state.params["layer"]["kernel"].addressable_shards[0].data) * jax.device_count() == 32
    saver.save(4, state, {"next_index": 4})
    saver.wait()
else:
    like = spread(make(0))
    state, position, said = saver.restore(abstract(like))
    assert position == {"next_index": 4} and said == "resumed at step 4"
    assert all(a.sharding == b.sharding for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(like)))
    assert_same(state, make(4))
saver.close()
print("done on", jax.device_count())
"""


@pytest.mark.slow
def test_saved_spread_over_eight_devices_and_restored_on_fewer(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")

    def start(devices: int, what: str) -> subprocess.Popen:
        monkeypatch.setenv("XLA_FLAGS", f"--xla_force_host_platform_device_count={devices}")
        command = [sys.executable, "-c", SPREAD, str(tmp_path), what]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    first = start(8, "save")
    output = first.communicate()[0]
    assert first.returncode == 0, output
    children = {devices: start(devices, "restore") for devices in (1, 2, 4)}
    for devices, child in children.items():
        output = child.communicate()[0]
        assert child.returncode == 0 and f"done on {devices}" in output, output
