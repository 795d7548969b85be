"""What a user writes: never run, but checked by mypy as strictly as theirs may be."""

from __future__ import annotations

import torch

import deepl0_kernels as dk
from deepl0_kernels import sae, training
from deepl0_kernels.sklearn import DeepL0Classifier, IHTSparseCoder, load


def encode(x: torch.Tensor) -> dk.SparseCode:
    encoder = dk.nn.DeepMSparseEncoder(256, 512, m=32)
    code: dk.SparseCode = encoder.encode(x)
    dense: torch.Tensor = encoder(x)
    values, indices = dk.top_m(dense, 3)
    offsets, v, i = dk.batch_top_m(dense, 3)
    z: torch.Tensor = dk.helu(values, 0.5, sigma=0.1)
    kept = dk.keep_top_m(z, 2, positive=True)
    D = torch.randn(256, 512)
    x_hat = dk.decode(code, D)
    result = dk.solvers.iht_m(x_hat, D, 32, init="l1")
    objective: torch.Tensor = result.objective
    again: torch.Tensor = dk.decode(result.code, D)
    penalised: torch.Tensor = dk.solvers.iht(again, D, lam=0.1).code
    with dk.use_backend("reference") as forced:
        print(
            forced,
            dk.backends()["top_m"]["cpu"],
            dk.build_info()["isa_active"],
            kept,
            objective,
            penalised,
        )
    if (call := dk.last_call()) is not None:
        print(call.backend.upper())
    w = dk.encode_top_m(x, D.t(), None, 32, num_stages=1)
    learned = dk.solvers.learn_dictionary(x, 512, m=32)
    print(w.to_csr(), learned.D.shape, offsets, v, i, indices)
    digits = dk.datasets.mnist_subset()
    patches = dk.datasets.preprocess(digits.x)
    print(patches.x, dk.__version__)
    return code


def train(x: torch.Tensor) -> float:
    model = sae.SparseAutoencoder(256, 4096, m=32)
    history = sae.fit(model, sae.Activations(x), steps=10)
    optimizer = sae.SparseAdam(model.parameters(), lr=1e-3)
    optimizer.step()
    out = model.loss(x)
    out.loss.backward()  # type: ignore[no-untyped-call]  # torch's own
    predicted: dk.SparseCode = training.MSparse(m=3).encoder(torch.randn(256, 512)).encode(x)
    print(predicted)
    network = training.Classifier(dk.nn.DeepL0Encoder(256, 512), 512, 10)
    y = x[:, 0].long()
    training.fit_to_classes(network, x, y, epochs=1, batch_size=2, lr=0.1, clip=1.0, seed=0)
    return float(history[-1, 0]) + sae.evaluate(model, sae.Activations(x)).fvu


def estimate(x: list[list[float]], y: list[int]) -> object:
    model = DeepL0Classifier(m=3).fit(x, y)
    return model.predict(x), IHTSparseCoder(m=2).fit(x).transform(x), load("file")
