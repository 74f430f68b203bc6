"""Checkpoints: opened by `transformers`, never unpickled, whole or passed over."""

import errno
import json
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from gpt2wds import checkpoint
from gpt2wds.checkpoint import list_checkpoints, load_weights, newest_sound_checkpoint, restore, save_checkpoint
from gpt2wds.model import GPT2, GPT2Config
from gpt2wds.optim import Optimizers, make_optimizers

SMALL = GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=32, vocab_size=300)
FILES = ["SHA256SUMS", "config.json", "model.safetensors", "optimizer.safetensors", "state.json"]


def trained(seed: int = 0) -> tuple[GPT2, Optimizers]:
    model = GPT2(SMALL, seed=seed)
    rates = {"learning_rate": 1e-2, "weight_decay": 0.1, "muon_learning_rate": 0.02}
    optimizers = make_optimizers(model, "muon", **rates)
    for _ in range(2):
        ids = torch.randint(300, (2, 21), generator=torch.Generator().manual_seed(seed))
        model(ids[:, :-1], ids[:, 1:], torch.ones(2)).backward()
        optimizers.step(1.0)
    return model, optimizers


def save(folder: Path, step: int, *, keep: int = 3, **state: Any) -> Path:
    model, optimizers = trained(step)
    return save_checkpoint(folder, step, model, optimizers.state(model), state, keep=keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def no_warning(text: str) -> None:
    raise AssertionError(text)


def test_transformers_opens_it(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    model, _ = trained(7)
    ids = torch.randint(300, (2, 32), generator=torch.Generator().manual_seed(0))
    reference = transformers.AutoModelForCausalLM.from_pretrained(path)
    assert isinstance(reference, transformers.GPT2LMHeadModel)
    with torch.no_grad():
        expected = reference.eval()(ids).logits
        torch.testing.assert_close(model.logits(model.hidden(ids)[0]), expected, rtol=0, atol=1e-5)
        ours = load_weights(path)
        torch.testing.assert_close(ours.logits(ours.hidden(ids)[0]), expected, rtol=0, atol=1e-5)


def test_what_transformers_saves_is_opened(tmp_path: Path) -> None:
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=32, vocab_size=300)
    reference = transformers.GPT2LMHeadModel(config).eval()
    reference.save_pretrained(tmp_path)
    ids = torch.randint(300, (2, 32), generator=torch.Generator().manual_seed(0))
    model = load_weights(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(model.logits(model.hidden(ids)[0]), reference(ids).logits, rtol=0, atol=1e-5)


def test_everything_comes_back(tmp_path: Path) -> None:
    path = save(tmp_path, 12, epoch=3, taken=[[8, 5]], row={"step": 12, "train_loss": 1 / 3})
    assert path == tmp_path / "step-0000012"
    model, optimizers = trained(12)
    other = GPT2(SMALL, seed=1)
    state, tensors = restore(path, other)
    assert state == {"step": 12, "epoch": 3, "taken": [[8, 5]], "row": {"step": 12, "train_loss": 1 / 3}}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    expected = optimizers.state(model)
    assert expected.keys() == tensors.keys()
    assert all(torch.equal(expected[name], tensors[name]) for name in tensors)


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, 1)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was unpickled")

    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert newest_sound_checkpoint(tmp_path, no_warning) == path
    restore(path, GPT2(SMALL))
    load_weights(path)
    # A file that is a pickle is refused as what it is not, whatever its name says.
    monkeypatch.undo()
    (path / "model.safetensors").write_bytes(pickle.dumps({"a": 1}))
    monkeypatch.setattr(pickle, "loads", refuse)
    with pytest.raises(ValueError, match=f"{path}.*model.safetensors"):
        load_weights(path)


def test_sha256sum_checks_it(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    assert names(path) == FILES
    done = subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": OK") == 4


def test_as_many_are_kept_as_asked(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["step-0000015", "step-0000020"]
    assert newest_sound_checkpoint(tmp_path, no_warning) == tmp_path / "step-0000020"
    save(tmp_path, 25, keep=1)
    assert names(tmp_path) == ["step-0000025"]


def test_none_is_none(tmp_path: Path) -> None:
    assert newest_sound_checkpoint(tmp_path / "checkpoints", no_warning) is None


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip, truncate, empty, Path.unlink], ids=["flip", "truncate", "empty", "missing"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_one_is_passed_over_aloud(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    for step in (1, 2):
        path = tmp_path / f"step-{step:07d}"
        path.mkdir()
        for file in FILES[1:]:
            (path / file).write_text(f"{file} of step {step}, long enough to be damaged")
        sums = subprocess.run(["sha256sum", *FILES[1:]], cwd=path, capture_output=True, text=True, check=True).stdout
        (path / "SHA256SUMS").write_text(sums)
    assert newest_sound_checkpoint(tmp_path, no_warning) == tmp_path / "step-0000002"
    damage(tmp_path / "step-0000002" / name)
    warnings: list[str] = []
    assert newest_sound_checkpoint(tmp_path, warnings.append) == tmp_path / "step-0000001"
    (warning,) = warnings
    assert "step-0000002 is damaged" in warning
    assert "falling back" in warning
    damage(tmp_path / "step-0000001" / name)
    with pytest.raises(ValueError, match="all 2 are damaged"):
        newest_sound_checkpoint(tmp_path, warnings.append)


def test_after_a_fall_back_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (4, 8, 12):
        save(tmp_path, step)
    flip(tmp_path / "step-0000012" / "model.safetensors")
    # The run goes on from step 8 and saves before it comes to 12 again.
    for step in (9, 10, 11):
        save(tmp_path, step, keep=2)
        assert newest_sound_checkpoint(tmp_path, lambda _: None) == tmp_path / f"step-{step:07d}"
    assert [path.name for path in list_checkpoints(tmp_path)][:2] == ["step-0000010", "step-0000011"]
    save(tmp_path, 12, keep=2)
    assert names(tmp_path) == ["step-0000011", "step-0000012"]
    assert newest_sound_checkpoint(tmp_path, no_warning) == tmp_path / "step-0000012"


@pytest.mark.parametrize("failing_call", [1, 2])
def test_a_full_disk_leaves_the_older_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_call: int) -> None:
    first = save(tmp_path, 1)
    calls = 0
    write = checkpoint.save_file

    def full(tensors: dict[str, torch.Tensor], path: Path, **options: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == failing_call:
            path.write_bytes(b"a part")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(tensors, path, **options)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2, keep=1)
    assert names(tmp_path) == ["step-0000001"]
    assert newest_sound_checkpoint(tmp_path, no_warning) == first


def test_what_a_killed_write_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".step-0000003.4711.tmp").mkdir()
    (tmp_path / ".step-0000003.4711.tmp" / "model.safetensors").write_bytes(b"a part")
    assert newest_sound_checkpoint(tmp_path, no_warning) is None
    save(tmp_path, 3)
    assert names(tmp_path) == ["step-0000003"]


def test_what_is_no_gpt2(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected config.json and model.safetensors in Hugging Face layout"):
        load_weights(tmp_path)
    path = save(tmp_path, 1)
    config = json.loads((path / "config.json").read_text())

    def configured(**changes: Any) -> Path:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(path, copy)
        changed = {k: v for k, v in {**config, **changes}.items() if v is not None}
        (copy / "config.json").write_text(json.dumps(changed))
        return copy

    load_weights(configured())
    with pytest.raises(ValueError, match="expected a GPT-2, got model_type 'llama'"):
        load_weights(configured(model_type="llama"))
    with pytest.raises(ValueError, match="wte.weight must be"):
        load_weights(configured(vocab_size=301))
    with pytest.raises(ValueError, match="n_head"):
        load_weights(configured(n_head=None))
    (path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json"):
        load_weights(path)
