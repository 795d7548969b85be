"""Heads that start a clustering: the minimum of what they say they minimise."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

pytest.importorskip("sklearn")
from sklearn import cluster

from deepl0_kernels.training import logistic_head, start_head


def blobs():
    g = torch.Generator().manual_seed(4)
    centres = 3 * torch.eye(3, 5, dtype=torch.float64)
    labels = torch.arange(60) % 3
    return centres[labels] + torch.randn(60, 5, generator=g, dtype=torch.float64), labels


def slope(head, codes, labels, ridge):
    """Largest entry of the gradient at the head's weights, by the formula."""
    w = head.weight.detach().requires_grad_()
    loss = cross_entropy(-(codes @ w.T), labels) + ridge / 2 * w.square().sum()
    return torch.autograd.grad(loss, w)[0].abs().max()


@pytest.mark.parametrize(("given", "ridge"), [({}, 1e-3), ({"ridge": 0.1}, 0.1)])
def test_a_head_is_the_ridge_regression_of_its_labels(given, ridge):
    codes, labels = blobs()
    head = logistic_head(codes, labels, 3, **given)
    assert slope(head, codes, labels, ridge) < 1e-4 < slope(head, codes, labels, 2 * ridge)
    assert head.weight.requires_grad
    means = cluster.KMeans(3, n_init=10, random_state=1).fit_predict(codes.numpy())
    found = torch.from_numpy(means).long()
    assert not torch.equal(found, labels)
    start = start_head(codes, 3, 1, **given)
    assert slope(start, codes, found, ridge) < 1e-4
