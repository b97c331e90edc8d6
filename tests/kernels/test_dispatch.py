"""Measured choices: what is saved is chosen, on the device it was measured on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import attention, dispatch, group_norm

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(dispatch, "FOLDER", tmp_path / "measured")
    return tmp_path / "measured"


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.names.append(str(function))
        return function(*arguments, **(keywords or {}))


def test_what_was_not_measured_is_no_choice() -> None:
    assert dispatch.choice("attention", CPU, "anything") is None


def test_choices_are_added_to_those_known(folder: Path) -> None:
    path = dispatch.save_choices(CPU, {"attention": {"a": "flash", "b": "math"}})
    dispatch.save_choices(CPU, {"attention": {"b": "flash"}, "group_norm": {"c": "plain"}})
    assert path == folder / "cpu.json"
    assert [dispatch.choice("attention", CPU, key) for key in "abz"] == ["flash", "flash", None]
    assert dispatch.choice("group_norm", CPU, "c") == "plain"
    assert [file.name for file in folder.iterdir()] == ["cpu.json"]


def test_devices_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    dispatch._slug.cache_clear()
    path = dispatch.save_choices(torch.device("cuda"), {"attention": {"a": "flash"}})
    assert path.name == "nvidia-a100-sxm4-80gb.json"
    assert dispatch.choice("attention", CPU, "a") is None
    dispatch._slug.cache_clear()


def test_a_damaged_file_is_named(folder: Path) -> None:
    folder.mkdir()
    (folder / "cpu.json").write_text('{"attention": ')
    dispatch._choices.cache_clear()
    with pytest.raises(ValueError, match=r"cpu\.json is not valid JSON .* measure it anew"):
        dispatch.choice("attention", CPU, "a")


def test_attention_takes_the_measured_backend() -> None:
    q = torch.randn(1, 2, 16, 8)
    with Operations() as before:
        expected = attention.attention(q, q, q)
    assert any("flash" in name for name in before.names)
    dispatch.save_choices(CPU, {"attention": {attention.dispatch_key(q, q): "math"}})
    with Operations() as after:
        actual = attention.attention(q, q, q)
    assert not any("flash" in name for name in after.names)
    torch.testing.assert_close(actual, expected)


def test_attention_measured_best_by_a_package_that_is_gone_goes_by_its_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "memory_efficient_attention", None)
    q = torch.randn(1, 2, 16, 8)
    dispatch.save_choices(CPU, {"attention": {attention.dispatch_key(q, q): "xformers"}})
    attention.attention(q, q, q)


def fake_gpu_names(monkeypatch: pytest.MonkeyPatch, measured: dict[str, str]) -> list[str]:
    """The operations of a compiled group norm on a GPU that is not there."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    dispatch._slug.cache_clear()
    dispatch.save_choices(torch.device("cuda"), {"group_norm": measured})
    torch._dynamo.reset()
    graphs = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    with torch._subclasses.FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        x = torch.zeros(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)
        torch.compile(group_norm.group_norm, backend=keep, fullgraph=True, dynamic=False)(
            x, torch.ones(8), torch.zeros(8), 2
        )
    dispatch._slug.cache_clear()
    return [str(node.target) for node in graphs[0].graph.nodes if node.op == "call_function"]


def test_a_compiled_group_norm_goes_to_inductor_where_that_was_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fake_gpu_names(monkeypatch, {}).count("sgdm.group_norm.default") == 1
    assert "sgdm.group_norm.default" in fake_gpu_names(monkeypatch, {"float32 16x4x4": "plain"})
    assert "sgdm.group_norm.default" not in fake_gpu_names(monkeypatch, {"float32 8x4x4": "plain"})
