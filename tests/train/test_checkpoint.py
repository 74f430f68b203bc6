"""Checkpoints: others open them, damage is found, and a failed write harms nothing."""

import json
import os
import pickle
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import transformers

from gpt2wds.errors import Error
from gpt2wds.model import GPT2, GPT2Config
from gpt2wds.train.checkpoint import (
    State,
    list_checkpoints,
    load_state,
    newest_sound_checkpoint,
    save_checkpoint,
)
from gpt2wds.train.optim import Optimizers, make_optimizers
from gpt2wds.train.weights import load_weights

# A small vocabulary that is no multiple of 128, so that there are padding rows.
SMALL = GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=64, vocab_size=300)
FILES = ("model.safetensors", "config.json", "optimizer.safetensors", "state.json", "SHA256SUMS")


def trained() -> tuple[GPT2, Optimizers]:
    """A model that moved off its initial values, and its optimizer with something to remember."""
    model = GPT2(SMALL)
    optimizers = make_optimizers(model, "muon", learning_rate=1e-2, weight_decay=0.1, muon_learning_rate=0.02)
    ids = torch.randint(300, (2, 65), generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        model(ids[:, :-1], ids[:, 1:], torch.ones(2)).backward()
        optimizers.step(1.0)
    return model, optimizers


def save(folder: Path, *steps: int, keep: int = 3) -> list[Path]:
    model, optimizers = trained()
    states = [State(step, {"step": step, "tokens": 8 * step}) for step in steps]
    return [save_checkpoint(folder, state, model, optimizers.state(model), keep=keep) for state in states]


def names(folder: Path) -> list[str]:
    """Everything in the folder, hidden names too."""
    return sorted(path.name for path in folder.iterdir())


GOOD_STATE = {"step": 2, "row": {"step": 2, "tokens": 512, "train_loss": 3.5}, "batches": {"epoch": 0}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"step": None}, "'step': expected a count, got nothing"),
        ({"step": -1}, "'step': expected a count, got -1"),
        ({"step": 3}, "'row': expected that of step 3, got {'step': 2"),
        ({"row": {"step": 2}}, "'tokens': expected a count, got nothing"),
        ({"row": {"step": 2, "tokens": 512, "train_loss": "low"}}, "'row': expected numbers, got"),
        ({"row": []}, "'row': expected an object, got []"),
        ({"batches": [1]}, "'batches': expected an object, got [1]"),
        ({"origin": "x"}, "'origin': expected an object, got 'x'"),
        ({"origin": {}}, "'path': expected text, got nothing"),
    ],
)
def test_a_state_of_a_stranger_is_checked(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    assert State.from_json(json.dumps(GOOD_STATE)).row["train_loss"] == 3.5
    (tmp_path / "state.json").write_text(json.dumps(GOOD_STATE | change))
    with pytest.raises(Error, match=re.escape(f"state.json: expected a checkpoint's state, {said}")):
        load_state(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"step": -1}', b'{"step": 1, "row": 2}', b"\xff", b"[" * 100_000])
def test_a_state_that_is_none_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.json").write_bytes(content)
    with pytest.raises(Error, match=r"state.json: expected a checkpoint's state, .*; take another checkpoint"):
        load_state(tmp_path)


def test_an_optimizers_state_of_a_stranger_is_checked(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps(GOOD_STATE))
    (tmp_path / "optimizer.safetensors").write_bytes(b"no tensors")
    with pytest.raises(Error, match=r"optimizer\.safetensors: expected tensors, .*; take another checkpoint"):
        load_state(tmp_path)
    model, optimizers = trained()
    other = {name: value[..., :1] if value.dim() else value for name, value in optimizers.state(model).items()}
    with pytest.raises(Error, match=r"optimizer state: .*: expected \(.*\), got \(.*1\)"):
        optimizers.load_state(model, other)


def test_transformers_opens_it(tmp_path: Path) -> None:
    model, optimizers = trained()
    with torch.no_grad():
        for parameter in model.h.parameters():
            parameter *= 4  # so that each of config.json's settings shows
    path = save_checkpoint(tmp_path, State(7), model, optimizers.state(model), keep=1)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
    assert type(theirs) is transformers.GPT2LMHeadModel
    ids = torch.randint(300, (2, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model.logits(model.hidden(ids)[0])
        torch.testing.assert_close(theirs(ids).logits, expected, rtol=0, atol=1e-5)
        ours = load_weights(path)
        assert torch.equal(ours.logits(ours.hidden(ids)[0]), expected)


def test_what_transformers_saves_opens(tmp_path: Path) -> None:
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=64, vocab_size=300)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path)
    model = load_weights(tmp_path)
    ids = torch.randint(300, (2, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model.logits(model.hidden(ids)[0]), theirs(ids).logits, rtol=0, atol=1e-5)


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was unpickled")

    (path,) = save(tmp_path, 1)
    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    assert newest_sound_checkpoint(tmp_path, pytest.fail) == path
    load_state(path)
    load_weights(path)
    # A pickle under the weights' name is refused as what it is not.
    (path / "model.safetensors").write_bytes(pickle.dumps({"a": 1}))
    (path / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match=r"cannot read model\.safetensors"):
        load_weights(path)


def test_everything_comes_back(tmp_path: Path) -> None:
    model, optimizers = trained()
    batches = {"version": 1, "epoch": 3, "taken": [[8, 5], [4, 1]], "dataset_id": "é"}
    state = State(12, {"step": 12, "tokens": 96, "train_loss": 10.123456789012345}, batches)
    path = save_checkpoint(tmp_path, state, model, optimizers.state(model), keep=1)
    other = load_weights(path)
    restored, tensors = load_state(path)
    assert restored == state
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    expected = optimizers.state(model)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())


def test_sha256sum_checks_it(tmp_path: Path) -> None:
    (path,) = save(tmp_path, 1)
    assert names(path) == sorted(FILES)
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    done = subprocess.run(command, cwd=path, capture_output=True, text=True, check=True)
    assert done.stdout.count(": OK") == 4


def test_the_newest_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 2, 4, 6, 100, keep=2)
    assert names(tmp_path) == ["step-0000006", "step-0000100"]
    assert newest_sound_checkpoint(tmp_path, pytest.fail) == tmp_path / "step-0000100"


def test_none_yet(tmp_path: Path) -> None:
    assert newest_sound_checkpoint(tmp_path / "checkpoints", pytest.fail) is None


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGES = [truncate, flip_a_bit, Path.unlink]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_falls_back(tmp_path: Path, damage: Callable[[Path], Any], name: str) -> None:
    older, newest = save(tmp_path, 1, 2)
    damage(newest / name)
    warnings: list[str] = []
    assert newest_sound_checkpoint(tmp_path, warnings.append) == older
    assert len(warnings) == 1
    assert warnings[0].startswith(f"WARNING: checkpoint {newest} is damaged")
    assert warnings[0].endswith("; falling back to the one before")


def test_all_damaged(tmp_path: Path) -> None:
    for damage, path in zip(DAMAGES, save(tmp_path, 1, 2, 3), strict=True):
        damage(path / "model.safetensors")
    warnings: list[str] = []
    with pytest.raises(ValueError, match="expected a sound checkpoint, all 3 are damaged; restore one, or choose"):
        newest_sound_checkpoint(tmp_path, warnings.append)
    assert len(warnings) == 3 and not any("falling back" in warning for warning in warnings)  # to what?


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root may read everything."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65_534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def test_what_may_not_be_read_is_not_damaged() -> None:
    """A fall-back would train up to it again, and put another in its place; no checkpoint would begin from nothing."""
    with TemporaryDirectory() as name:  # pytest's folders are their owner's alone
        folder = Path(name)
        folder.chmod(0o755)
        _, newest = save(folder, 1, 2)
        (newest / "state.json").chmod(0)
        with (
            unprivileged(),
            pytest.raises(Error, match=r"step-0000002: expected to read it .*; make it readable"),
        ):
            newest_sound_checkpoint(folder, pytest.fail)
        folder.chmod(0o311)
        with unprivileged(), pytest.raises(PermissionError, match=re.escape(name)):
            newest_sound_checkpoint(folder, pytest.fail)
        folder.chmod(0o755)


def test_one_that_the_disk_does_not_give_falls_back(tmp_path: Path) -> None:
    """What cannot be read is lost; unlike what is not allowed."""
    older, newest = save(tmp_path, 1, 2)
    (newest / "state.json").unlink()
    (newest / "state.json").symlink_to("/proc/self/mem")  # whose first bytes are EIO
    warnings: list[str] = []
    assert newest_sound_checkpoint(tmp_path, warnings.append) == older
    assert "Input/output error" in warnings[0] and len(warnings) == 1


def test_a_damaged_newer_one_pushes_no_sound_one_out(tmp_path: Path) -> None:
    """After a fall-back the damaged one is still the newest by name when the next is saved."""
    older, damaged = save(tmp_path, 4, 8)
    flip_a_bit(damaged / "state.json")
    assert newest_sound_checkpoint(tmp_path, lambda warning: None) == older
    save(tmp_path, 6, keep=1)
    assert newest_sound_checkpoint(tmp_path, lambda warning: None) == tmp_path / "step-0000006"
    assert not older.exists()


def test_a_damaged_one_is_replaced_by_the_same_step(tmp_path: Path) -> None:
    _, damaged = save(tmp_path, 4, 8)
    (damaged / "optimizer.safetensors").unlink()
    save(tmp_path, 8)
    assert newest_sound_checkpoint(tmp_path, pytest.fail) == damaged


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A real failure of writing, in the middle of a file, wherever the tests run."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("fails", ["model.safetensors", "optimizer.safetensors"])
def test_a_failed_write_harms_nothing(tmp_path: Path, fails: str) -> None:
    (older,) = save(tmp_path, 1)
    size = (older / "model.safetensors").stat().st_size
    with (
        files_of_at_most(size if fails.startswith("opt") else size - 1),
        pytest.raises(OSError, match=f"File too large: .*{fails}"),
    ):
        save(tmp_path, 2, keep=1)
    assert names(tmp_path) == [older.name]
    assert newest_sound_checkpoint(tmp_path, pytest.fail) == older


def test_what_a_killed_write_left_is_no_checkpoint(tmp_path: Path) -> None:
    (path,) = save(tmp_path, 1)
    shutil.copytree(path, tmp_path / ".step-0000002.4711.tmp")
    assert list_checkpoints(tmp_path) == [path]
    save(tmp_path, 3)
    assert names(tmp_path) == ["step-0000001", "step-0000003"]


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("activation_function", "relu", "'gelu_new'"),
        ("layer_norm_epsilon", 1e-6, "1e-05"),
        ("scale_attn_by_inverse_layer_idx", True, "False"),
        ("reorder_and_upcast_attn", True, "False"),
        ("scale_attn_weights", False, "True"),
    ],
)
def test_settings_that_our_model_does_not_compute(tmp_path: Path, setting: str, value: Any, expected: str) -> None:
    (path,) = save(tmp_path, 1)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {setting: value}))
    (path / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match=f"{setting}: expected {expected}, got {value!r}, which we do not compute"):
        load_weights(path)
    # The same function by its other name.
    (path / "config.json").write_text(json.dumps(config | {"activation_function": "gelu_pytorch_tanh"}))
    load_weights(path)


def test_models_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected config.json and model.safetensors in Hugging Face layout"):
        load_weights(tmp_path)
    (path,) = save(tmp_path, 1)
    (path / "SHA256SUMS").unlink()
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(ValueError, match="expected a GPT-2, got model_type 'llama'"):
        load_weights(path)
    (path / "config.json").write_text(json.dumps({name: n for name, n in config.items() if name != "n_head"}))
    with pytest.raises(ValueError, match=r"expected whole numbers from 1 on in config\.json, got .*'n_head': None"):
        load_weights(path)
    (path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"expected a GPT-2, got model_type \[\] in config\.json"):
        load_weights(path)
    truncate(path / "model.safetensors")
    with pytest.raises(ValueError, match=r"cannot read model.safetensors"):
        load_weights(path)


def test_only_exactly_our_names_are_checkpoints(tmp_path: Path) -> None:
    """A copy that somebody keeps is neither the newest nor removed."""
    (path,) = save(tmp_path, 40)
    for name in ("step-0000040-best", "step-0000041.bak", "step-41", "step-"):
        shutil.copytree(path, tmp_path / name)
    assert list_checkpoints(tmp_path) == [path]
    assert newest_sound_checkpoint(tmp_path, pytest.fail) == path
    save(tmp_path, 41, 42, keep=1)
    assert names(tmp_path) == ["step-", "step-0000040-best", "step-0000041.bak", "step-0000042", "step-41"]


def test_an_old_checkpoint_that_cannot_be_removed_is_a_warning(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    folder = tmp_path / "checkpoints"
    (path,) = save(elsewhere, 1)
    folder.mkdir()
    (folder / path.name).symlink_to(path)
    said: list[str] = []
    model, optimizers = trained()
    saved = save_checkpoint(folder, State(2), model, optimizers.state(model), keep=1, warn=said.append)
    assert saved.is_dir() and path.is_dir()
    assert len(said) == 1 and said[0].startswith(f"WARNING: the old checkpoint {folder / path.name} could not be")


def test_all_files_of_a_checkpoint_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        (path,) = save(tmp_path, 1)
    finally:
        os.umask(old)
    assert {oct(file.stat().st_mode & 0o777) for file in path.iterdir()} == {"0o640"}


def test_no_checkpoint_is_removed_under_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill in the middle of a removal leaves no half of one for readers."""
    removed: list[str] = []
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: removed.append(Path(path).name))
    save(tmp_path, 1, 2, 2, keep=1)  # the second 2 takes the place of a damaged one
    assert removed and all(name.startswith(".step-") for name in removed)
