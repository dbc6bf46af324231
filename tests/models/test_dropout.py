"""Dropout with masks drawn 64 bits at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from siamdetr.models.dropout import Dropout, drop_out, relu_and_drop_out
from siamdetr.models.heads import FeedForward


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(1001, 1003), (1, 262147), (3, 5, 70001)])
def test_share_and_mean(probability: float, shape: tuple[int, ...]) -> None:
    """The dropped share is the probability, and the others are enlarged, also beyond a piece."""
    torch.manual_seed(0)
    found = drop_out(torch.ones(shape), probability)
    assert (found == 0).float().mean() == pytest.approx(probability, abs=5e-3)
    assert found.mean() == pytest.approx(1, abs=0.02)
    assert found.flatten()[-2000:].mean() == pytest.approx(1, abs=0.3)
    assert found.max() == pytest.approx(1 / (1 - probability), rel=2e-4)


def test_neighbours_are_independent() -> None:
    """Elements that come from one draw of 64 bits are dropped independently."""
    torch.manual_seed(0)
    kept = (drop_out(torch.ones(400_000, 4), 0.3) > 0).float()
    correlations = torch.corrcoef(kept.T)
    assert (correlations - torch.eye(4)).abs().max() < 0.01


def test_follows_the_seed() -> None:
    """The same seed draws the same mask, and the next call another one."""
    torch.manual_seed(3)
    first, second = drop_out(torch.ones(1000), 0.5), drop_out(torch.ones(1000), 0.5)
    torch.manual_seed(3)
    assert torch.equal(first, drop_out(torch.ones(1000), 0.5))
    assert not torch.equal(first, second)


def test_nothing_happens_without_training() -> None:
    """In evaluation, and with probability 0, the input comes back and nothing is drawn."""
    x, state = torch.randn(7, 5), torch.get_rng_state()
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(drop_out(x, 0.0), x)
    assert torch.equal(relu_and_drop_out(x, 0.0), x.relu())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_layouts_and_types(dtype: torch.dtype) -> None:
    """Strided inputs and every type: kept elements are enlarged in place, in their own type."""
    x = torch.randn(64, 33).to(dtype).T
    for found in (drop_out(x, 0.25), relu_and_drop_out(x.clone(), 0.25)):
        assert found.shape == x.shape
        assert found.dtype == dtype
        kept = found != 0
        torch.testing.assert_close(found[kept], (x / 0.75)[kept], rtol=1e-2, atol=0)


def test_nothing_to_drop() -> None:
    """A tensor without elements, as of an image without tokens, passes as through PyTorch's."""
    x = torch.empty(2, 0, 8, requires_grad=True)
    for found in (drop_out(x, 0.5), relu_and_drop_out(x * 1, 0.5)):
        assert found.shape == x.shape
        found.sum().backward()


def test_extreme_probabilities() -> None:
    """Finite, also where nothing is kept or hardly anything is dropped."""
    for probability in (1e-9, 0.999999, 1.0):
        assert drop_out(torch.ones(10_000), probability).isfinite().all()


@pytest.mark.parametrize("shape", [(3, 5), (2, 700, 401)])
def test_relu_and_dropout_is_both_in_turn(shape: tuple[int, ...]) -> None:
    """Values and gradients of the fused form, with the same mask."""
    x = torch.randn(shape)
    x[..., 0] = 0

    def run(fused: bool) -> tuple[Tensor, Tensor]:
        torch.manual_seed(1)
        leaf = x.clone().requires_grad_()
        hidden = leaf * 1
        out = relu_and_drop_out(hidden, 0.3) if fused else drop_out(hidden.relu(), 0.3)
        (out * torch.linspace(-1, 1, out.numel()).view(shape)).sum().backward()
        assert leaf.grad is not None
        return out.detach(), leaf.grad

    for own, written_out in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(own, written_out)


def test_feed_forward_learns_through_it() -> None:
    """A ReLU network and a GELU network get gradients everywhere, and answer as before in evaluation."""
    for activation in ("relu", "gelu"):
        torch.manual_seed(0)
        block = FeedForward(8, 32, 0.2, activation=activation)  # type: ignore[arg-type]
        x = torch.randn(2, 6, 8)
        block(x).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())
        block.eval()
        hidden = block.activation(block.expand(x))
        torch.testing.assert_close(block(x), block.norm(x + block.contract(hidden)))


def test_other_devices_use_pytorch() -> None:
    """On the meta device, as on any other, PyTorch's own dropout runs."""
    x = torch.empty(4, 4, device="meta")
    assert drop_out(x, 0.5).shape == relu_and_drop_out(x, 0.5).shape == (4, 4)
