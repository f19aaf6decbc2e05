"""`exportable()`: what it routes, that it computes the same, and that all is put back."""

from __future__ import annotations

import functools
import sys
import threading
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tfanet.errors import InputError
from tfanet.plugins import exportable, install, selective_scan_ref, uninstall
from tfanet.plugins.pytorch.cross_scan import cross_merge, cross_scan

ZOO = Path(__file__).resolve().parent.parent / "zoo"


def operands(groups: int = 2, states: int = 3, length: int = 21) -> dict[str, torch.Tensor]:
    torch.manual_seed(length)
    return {
        "u": torch.randn(2, 4, length),
        "delta": torch.randn(2, 4, length),
        "A": -torch.rand(4, states) - 0.1,
        "B": torch.randn(2, groups, states, length),
        "C": torch.randn(2, groups, states, length),
        "D": torch.randn(4),
        "delta_bias": torch.randn(4),
    }


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The zoo's entry points, and a module of another package that imported them by name."""
    monkeypatch.syspath_prepend(str(ZOO))
    import zoo_kernels

    user = types.ModuleType("some_model")
    user.scan_under_another_name = zoo_kernels.selective_scan_fn  # type: ignore[attr-defined]
    user.partial = functools.partial(zoo_kernels.selective_scan_fn, backend="torch")  # type: ignore[attr-defined]
    user.apply = zoo_kernels.SelectiveScanCuda.apply  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "some_model", user)
    zoo_kernels.user = user
    yield zoo_kernels
    del sys.modules["zoo_kernels"]


def module(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> Any:
    """A module of a fork, with functions and classes that say they are from it."""
    made = types.ModuleType(name)
    for key, value in members.items():
        value.__module__, value.__name__, value.__qualname__ = name, key, key
        setattr(made, key, value)
    monkeypatch.setitem(sys.modules, name, made)
    return made


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    assert got.shape == expected.shape
    got, expected = got.detach().double(), expected.detach().double()
    return float((got - expected).abs().max() / expected.abs().max())


def test_every_reference_is_routed_and_put_back(kernels: Any) -> None:
    x = operands()
    args = (x["u"], x["delta"], x["A"], x["B"], x["C"], x["D"], x["delta_bias"], True)
    expected = selective_scan_ref(**x, delta_softplus=True)
    holder = nn.Module()
    holder.scan = kernels.selective_scan_fn  # as MambaIR keeps it
    before = {**vars(kernels)}, {**vars(kernels.user)}, {**vars(holder)}
    with exportable() as names:
        assert "zoo_kernels.selective_scan_fn" in names
        assert "zoo_kernels.CrossMergeTritonF" in names
        for call in (
            kernels.selective_scan_fn,
            kernels.user.scan_under_another_name,
            kernels.user.partial,
            kernels.user.apply,
            kernels.SelectiveScanCuda.apply,
            holder.scan,
        ):
            assert error(call(*args), expected) < 1e-6
        taken_inside = kernels.selective_scan_fn
        kernels.user.new = taken_inside
    assert (vars(kernels), vars(holder)) == (before[0], before[2])
    assert kernels.user.new is kernels.selective_scan_fn is not taken_inside
    del kernels.user.new
    assert vars(kernels.user) == before[1]
    with pytest.raises(RuntimeError, match="CUDA"):
        kernels.user.apply(*args)


def test_all_is_put_back_after_an_error(kernels: Any) -> None:
    original = kernels.selective_scan_fn

    @exportable()
    def fails() -> None:
        assert kernels.selective_scan_fn is not original
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert kernels.selective_scan_fn is original
    assert "apply" not in vars(kernels.SelectiveScanCuda)


def test_blocks_nest_and_decorate(kernels: Any) -> None:
    original = kernels.cross_scan_fn

    @exportable()
    def inside() -> Any:
        return kernels.cross_scan_fn

    with exportable():
        routed = kernels.cross_scan_fn
        assert inside() is routed is not original
        assert kernels.cross_scan_fn is routed
    assert kernels.cross_scan_fn is original
    assert inside() is not original  # a decorated function opens its block at every call
    assert kernels.cross_scan_fn is original


def test_a_block_in_another_thread_keeps_the_routes(kernels: Any) -> None:
    original, opened, close = kernels.cross_scan_fn, threading.Event(), threading.Event()

    def other() -> None:
        with exportable():
            opened.set()
            close.wait(3600)

    thread = threading.Thread(target=other)
    thread.start()
    assert opened.wait(3600)
    with exportable():
        pass
    assert kernels.cross_scan_fn is not original
    close.set()
    thread.join()
    assert kernels.cross_scan_fn is original


def test_install_lasts_until_uninstall_and_finds_later_imports(
    kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = kernels.cross_scan_fn
    try:
        install()
        with exportable():
            pass
        assert kernels.cross_scan_fn is not original

        def later(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
            raise RuntimeError("needs CUDA")

        fork = module(monkeypatch, "imported_later", selective_scan_fn=later)
        assert fork.selective_scan_fn is later
        assert "imported_later.selective_scan_fn" in install()
        assert fork.selective_scan_fn is not later
    finally:
        uninstall()
    assert kernels.cross_scan_fn is original and fork.selective_scan_fn is later
    uninstall()


def test_gradients_flow_through_a_routed_function(kernels: Any) -> None:
    x = operands(length=9)
    leaves = [v.requires_grad_() for v in x.values()]
    expected = torch.autograd.grad(
        kernels.selective_scan_fn(*leaves, True).square().sum(), leaves, retain_graph=False
    )
    with exportable():
        got = torch.autograd.grad(kernels.selective_scan_fn(*leaves, True).square().sum(), leaves)
    for ours, theirs in zip(got, expected, strict=True):
        assert error(ours, theirs) < 1e-5


def test_oflex_widens_half_precision_and_the_other_kernels_do_not(kernels: Any) -> None:
    x = operands()
    half = [x[n].half() if n in ("u", "delta", "B", "C") else x[n] for n in x]
    expected = selective_scan_ref(**dict(zip(x, half, strict=True)), delta_softplus=True)
    with exportable():
        wide = kernels.selective_scan_fn(*half)
        narrow = kernels.selective_scan_fn(*half, True, False)
        mamba = kernels.selective_scan_fn(*half, backend="mamba")
    assert (wide.dtype, narrow.dtype, mamba.dtype) == (torch.float32, torch.half, torch.half)
    assert error(wide, expected) < 1e-6
    assert error(narrow, expected) < 2e-3


def mamba_scan(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False,
    return_last_state=False,
):  # fmt: skip
    raise RuntimeError("needs CUDA")


@pytest.mark.parametrize("rank", [2, 3, 4])
@pytest.mark.parametrize("gated", [False, True])
def test_mamba_scan_with_its_last_state(
    monkeypatch: pytest.MonkeyPatch, rank: int, gated: bool
) -> None:
    fork = module(monkeypatch, "fake_interface", selective_scan_fn=mamba_scan)
    x = operands(groups=1 if rank == 3 else 2)
    z = torch.randn_like(x["u"]) if gated else None
    full = {**x, "z": z}
    if rank == 3:
        x["B"], x["C"] = x["B"][:, 0], x["C"][:, 0]
    if rank == 2:  # constant over the steps: every channel its own
        x["B"], x["C"] = torch.randn(4, 3), torch.randn(4, 3)
        for name in ("B", "C"):
            full[name] = x[name][None, :, :, None].expand(2, -1, -1, x["u"].shape[2])
    with exportable():
        y, state = fork.selective_scan_fn(
            x["u"], x["delta"], x["A"], x["B"], x["C"], x["D"], z, x["delta_bias"], True, True
        )
        only_y = fork.selective_scan_fn(x["u"], x["delta"], x["A"], B=x["B"], C=x["C"])
    assert error(y, selective_scan_ref(**full, delta_softplus=True)) < 1e-6
    assert only_y.shape == y.shape

    h = torch.zeros(2, 4, 3, dtype=torch.double)
    groups = full["B"].shape[1]
    for t in range(x["u"].shape[2]):
        step = x["delta"][..., t].double() + x["delta_bias"].double()
        step = torch.nn.functional.softplus(step)[..., None]
        b = full["B"][..., t].double().repeat_interleave(4 // groups, dim=1)
        h = torch.exp(step * x["A"].double()) * h + step * b * x["u"][..., t, None].double()
    assert error(state, h) < 1e-6


def test_transformers_mixers_and_their_cache() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.MambaConfig(
        vocab_size=30, hidden_size=16, state_size=4, num_hidden_layers=2
    )
    model = transformers.MambaModel(config).eval()
    ids = torch.randint(0, 30, (2, 13))
    with torch.no_grad():
        expected = model(ids, use_cache=True)
        with exportable() as names:
            got = model(ids, use_cache=True)
    assert "transformers.models.mamba.modeling_mamba.mamba_selective_scan" in names
    assert error(got.last_hidden_state, expected.last_hidden_state) < 1e-6
    for layer in range(2):
        ours, own = (
            r.cache_params.get_recurrent_state(layer, state_idx=0) for r in (got, expected)
        )
        assert error(ours, own) < 1e-6


class OlderMixer(nn.Module):
    """The parts and the slow path of transformers' mixer before its kernels were functions."""

    def __init__(self) -> None:
        super().__init__()
        self.time_step_rank, self.ssm_state_size = 2, 3
        self.in_proj, self.out_proj = nn.Linear(4, 12), nn.Linear(6, 4)
        self.conv1d, self.act = nn.Conv1d(6, 6, 4, padding=3, groups=6), nn.SiLU()
        self.x_proj, self.dt_proj = nn.Linear(6, 8, bias=False), nn.Linear(2, 6)
        self.A_log, self.D = nn.Parameter(torch.rand(6, 3)), nn.Parameter(torch.rand(6))

    def slow_forward(
        self, input_states, cache_params=None, cache_position=None, attention_mask=None
    ):
        if cache_params is not None:
            return "decoded"
        mask = 1 if attention_mask is None else attention_mask.unsqueeze(1)
        x, gate = self.in_proj(input_states).transpose(1, 2).chunk(2, dim=1)
        x = self.act(self.conv1d(x * mask)[..., : x.shape[2]]) * mask
        dt, B, C = self.x_proj(x.transpose(1, 2)).split([2, 3, 3], dim=-1)
        delta = nn.functional.softplus(self.dt_proj(dt)).transpose(1, 2)
        A = -self.A_log.exp()
        y = selective_scan_ref(x, delta, A, B.transpose(1, 2), C.transpose(1, 2), self.D)
        return self.out_proj((y.float() * self.act(gate)).transpose(1, 2))


def test_the_slow_path_of_older_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "transformers.models.mamba.modeling_mamba"
    fake = types.ModuleType(name)
    fake.MambaMixer = OlderMixer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, fake)
    torch.manual_seed(0)
    mixer, x = OlderMixer(), torch.randn(2, 9, 4)
    mask = torch.ones(2, 9)
    mask[0, :3] = 0
    slow = OlderMixer.slow_forward
    expected, masked = mixer.slow_forward(x), mixer.slow_forward(x, None, None, mask)
    with exportable() as names:
        assert f"{name}.MambaMixer.slow_forward" in names
        assert error(mixer.slow_forward(x), expected) < 1e-6
        assert error(mixer.slow_forward(x, attention_mask=mask), masked) < 1e-6
        assert mixer.slow_forward(x, object()) == "decoded"
    assert OlderMixer.slow_forward is slow


def test_what_the_operator_does_not_know_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_state(u, delta, A, B, C, D=None, delta_bias=None, delta_softplus=True, h0=None):
        raise RuntimeError("needs CUDA")

    fork = module(monkeypatch, "fork_with_state", selective_scan_fn=with_state)
    x = operands()
    with exportable():
        assert fork.selective_scan_fn(**x).shape == x["u"].shape
        with pytest.raises(InputError, match=r"fork_with_state.selective_scan_fn.*'h0'"):
            fork.selective_scan_fn(**x, h0=torch.zeros(2, 4, 3))
        with pytest.raises(InputError, match=r"complex64.*real A"):
            fork.selective_scan_fn(**{**x, "A": x["A"].to(torch.complex64)})
        with pytest.raises(InputError, match="delta has shape"):
            fork.selective_scan_fn(**{**x, "delta": x["delta"][..., 1:]})
        with pytest.raises(TypeError, match="9 arguments"):
            fork.selective_scan_fn(*x.values(), True, None, 1)


@pytest.mark.parametrize(
    ("signature", "words"),
    [
        ("states, gates", "but no parameter 'u': it is left as it is; call tfanet.plugins"),
        ("u, delta, A, B", "but no parameter 'C': it is left as it is"),
        ("u, dt, A, B, C, mask, D=None", "but a parameter 'mask', which that does not have: it is"),
    ],
)
def test_a_function_with_other_parameters_is_left_alone_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, signature: str, words: str
) -> None:
    function = eval(f"lambda {signature}: None")
    fork = module(monkeypatch, "other_meaning", selective_scan_fn=function)
    pattern = rf"other_meaning.selective_scan_fn has the name of a known entry point, {words}"
    with pytest.warns(UserWarning, match=pattern):
        kept, names = under_exportable(lambda: fork.selective_scan_fn is function)
    assert kept and not any(name.startswith("other_meaning") for name in names)


def test_a_norm_or_a_window_of_another_meaning_is_left_alone_in_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def other(values):
        return values

    fork = module(monkeypatch, "other_norm", rms_norm_fn=other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with exportable():
            assert fork.rms_norm_fn is other


def under_exportable(call: Any) -> tuple[Any, tuple[str, ...]]:
    with exportable() as names:
        return call(), names


def function(forward: Any) -> Any:
    """An autograd Function of its own, so that a fork's module can take it over."""
    return type("Forward", (torch.autograd.Function,), {"forward": staticmethod(forward)})


def eight_ways(ctx: Any, x):
    return torch.stack([x.flatten(2)] * 8, 1)


def unflagged(ctx: Any, x):
    rows, columns = x.flatten(2), x.transpose(2, 3).flatten(2)
    return torch.stack([rows, columns, rows.flip(-1), columns.flip(-1)], 1)


def only_on_gpu(ctx: Any, x):
    raise RuntimeError("0 active drivers")


def test_other_orders_of_scanning_are_not_taken_for_vmambas(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fork = module(monkeypatch, "eight_ways", CrossScan=function(eight_ways))
    x = torch.randn(1, 2, 3, 4)
    with pytest.warns(UserWarning, match=r"eight_ways.CrossScan goes over the map in another"):
        shape, names = under_exportable(lambda: fork.CrossScan.apply(x).shape)
    assert shape == (1, 8, 2, 12)
    assert not any(name.startswith("eight_ways") for name in names)


def test_triton_forms_are_routed_beside_a_pytorch_form_that_agrees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.randn(2, 2, 3, 4)
    alone = module(monkeypatch, "triton_alone", CrossScanTriton=function(only_on_gpu))
    with pytest.warns(UserWarning, match=r"triton_alone.CrossScanTriton .*can't be checked"):
        _, names = under_exportable(lambda: None)
    assert "triton_alone.CrossScanTriton" not in names
    module(monkeypatch, "pytorch_form", CrossScan=function(unflagged))
    alone.CrossScan = sys.modules["pytorch_form"].CrossScan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with exportable() as names:
            assert torch.equal(alone.CrossScanTriton.apply(x), cross_scan(x))
    assert {"triton_alone.CrossScanTriton", "pytorch_form.CrossScan"} <= set(names)


def pixel_order(mode: int, direction: int, height: int, width: int) -> list[tuple[int, int]]:
    """The pixels in the order in which a direction visits them, from the definition in words."""
    rows = [(h, w) for h in range(height) for w in range(width)]
    columns = [(h, w) for w in range(width) for h in range(height)]
    if mode == 0:
        order = columns if direction % 2 else rows
        return order[::-1] if direction >= 2 else order
    if mode == 1:
        return rows
    if mode == 2:
        return rows[::-1] if direction >= 2 else rows
    counter_clockwise = [(h, width - 1 - w) for w in range(width) for h in range(height)]
    return [rows, counter_clockwise, rows[::-1], counter_clockwise[::-1]][direction]


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
@pytest.mark.parametrize("first_in", [True, False])
@pytest.mark.parametrize("first_out", [True, False])
@pytest.mark.parametrize("one_by_one", [True, False])
def test_cross_scan_and_merge_follow_the_order(
    mode: int, first_in: bool, first_out: bool, one_by_one: bool
) -> None:
    torch.manual_seed(mode)
    height, width = 3, 5
    maps = torch.randn(2, 4, 3, height, width)
    if not one_by_one:
        maps = maps[:, :1].expand(-1, 4, -1, -1, -1)
    orders = [pixel_order(mode, k, height, width) for k in range(4)]
    expected = torch.stack(
        [torch.stack([maps[:, k, :, h, w] for h, w in orders[k]], -1) for k in range(4)], 1
    )
    given = maps if one_by_one else maps[:, 0]
    if not first_in:
        given = given.permute(0, 3, 4, 1, 2) if one_by_one else given.permute(0, 2, 3, 1)
    flags = (first_in, first_out, one_by_one, mode)
    y = cross_scan(given, *flags)
    assert torch.equal(y, expected if first_out else expected.permute(0, 3, 1, 2))

    sequences = torch.randn(2, 4, 3, height * width)
    apart = torch.zeros(2, 4, 3, height, width)
    for k in range(4):
        for t, (h, w) in enumerate(orders[k]):
            apart[:, k, :, h, w] = sequences[:, k, :, t]
    as_map = sequences.unflatten(-1, (height, width))
    x = cross_merge(as_map if first_out else as_map.permute(0, 3, 4, 1, 2), *flags)
    merged = (apart if one_by_one else apart.sum(1)).flatten(-2)
    if not first_in:
        merged = merged.permute(0, 3, 1, 2) if one_by_one else merged.transpose(1, 2)
    assert x.shape == merged.shape
    torch.testing.assert_close(x, merged, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: cross_scan(torch.zeros(1, 2, 3, 4), scans=7), "scan mode is 7"),
        (lambda: cross_scan(torch.zeros(2, 3, 4)), "expected rank 4"),
        (lambda: cross_scan(torch.zeros(1, 8, 2, 3, 4), one_by_one=True), "8 directions"),
        (lambda: cross_merge(torch.zeros(1, 8, 2, 3, 4)), "8 directions"),
    ],
)
def test_maps_that_do_not_fit_are_refused(call: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()
