from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sgdm.annotate.selfsup.views import far_views, near_views, random_crops, recoloured


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def maps(count: int, size: int = 256) -> Tensor:
    """Two channels that say where in the image a pixel lies, x and y, from 0 to 1."""
    line = (torch.arange(size) + 0.5) / size
    return torch.stack([line.expand(size, size), line[:, None].expand(size, size)]).repeat(count, 1, 1, 1)


def test_near_views_are_shifted_scaled_and_partly_hidden_but_repeatable() -> None:
    image = torch.rand(16, 3, 32, 32, generator=seeded(1)) * 2 - 1
    view = near_views(image, seeded(0))
    assert view.shape == image.shape
    assert (view - image).abs().mean() > 0.05
    assert torch.equal(view, near_views(image, seeded(0)))
    assert ((view == 0).all(dim=1).flatten(1).any(dim=1)).float().mean() > 0.5


def test_far_views_of_one_image_differ_and_the_seed_decides() -> None:
    images = (torch.rand(1, 3, 32, 32, generator=seeded(1)) * 2 - 1).repeat(8, 1, 1, 1)
    views = far_views(images, seeded(0), size=16, area=(0.2, 1.0))
    assert views.shape == (8, 3, 16, 16) and bool(torch.isfinite(views).all())
    assert torch.nn.functional.pdist(views.flatten(1)).min() > 1
    assert torch.equal(views, far_views(images, seeded(0), size=16, area=(0.2, 1.0)))
    assert not torch.equal(views, far_views(images, seeded(1), size=16, area=(0.2, 1.0)))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), least=st.floats(0.05, 1), more=st.floats(0, 1), size=st.integers(8, 40))
def test_crops_show_their_share_of_the_image_unmirrored(seed: int, least: float, more: float, size: int) -> None:
    most = min(1.0, least + more)
    x, y = random_crops(maps(16), seeded(seed), size=size, area=(least, most)).unbind(1)
    inner = size / (size - 1)  # from between the middles of the outermost pixels to between their sides
    width = (x[:, 0, -1] - x[:, 0, 0]) * inner
    height = (y[:, -1, 0] - y[:, 0, 0]) * inner
    share, aspect = width * height, width / height
    assert share.min() > least - 0.02 and share.max() < most + 0.02
    assert aspect.min() > 0.73 and aspect.max() < 1.36, "never mirrored: both are positive"
    corners = torch.stack([x[:, 0, 0] - width / size / 2, y[:, 0, 0] - height / size / 2], dim=1)
    assert corners.min() > -0.02 and (corners + torch.stack([width, height], dim=1)).max() < 1.02


def test_crops_lie_anywhere_in_the_image() -> None:
    centres = random_crops(maps(500, 64), seeded(0), size=9, area=(0.1, 0.1))[:, :, 4, 4]
    assert torch.all(centres.amin(dim=0) < 0.22) and torch.all(centres.amax(dim=0) > 0.78)
    assert centres.mean(dim=0) == pytest.approx(0.5, abs=0.03)


def test_colours_turn_but_greys_stay_grey() -> None:
    greys = torch.linspace(-1, 1, 50)[:, None, None, None].expand(50, 3, 2, 2)
    seen = recoloured(greys, seeded(0))
    torch.testing.assert_close(seen[:, :1].expand_as(seen), seen, atol=1e-5, rtol=0)
    red = torch.tensor([0.5, -0.5, -0.5]).view(1, 3, 1, 1).expand(2000, 3, 1, 1)
    seen = recoloured(red, seeded(0)).flatten(1).double()
    grey = (seen.amax(dim=1) - seen.amin(dim=1)) < 1e-5
    assert grey.double().mean() == pytest.approx(0.2, abs=0.03)
    hues = np.array([colorsys.rgb_to_hsv(*colour)[0] for colour in (seen[~grey] + 3).tolist()])
    hues = (hues + 0.5) % 1 - 0.5  # red is 0
    assert -0.13 < hues.min() < -0.05 and 0.05 < hues.max() < 0.13
