"""The same numbers on a CUDA device; skipped where there is none."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from eoslib import (
    Dataset,
    GradientDescent,
    Objective,
    build,
    build_for,
    digits,
    every,
    lanczos,
    sharpness,
    train,
)
from eoslib.numerics import inner_products

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def objective(device: str, dtype: str, **options) -> Objective:
    model = build("fc-tanh", 64, 10, widths=(32, 32), seed=0)
    return Objective.from_dataset(model, digits(), device=device, dtype=dtype, **options)


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-9), ("float32", 1e-4)])
@pytest.mark.parametrize("chunk_size", [None, 300])
def test_loss_gradient_products_and_sharpness_agree_with_the_cpu(dtype, rtol, chunk_size):
    here, there = (objective(d, dtype, chunk_size=chunk_size) for d in ("cpu", "cuda"))
    theta = here.initial_point
    v = torch.linspace(-1, 1, here.num_parameters, dtype=theta.dtype)
    for want, got in (
        (here.value(theta), there.value(theta)),
        (here.gradient(theta), there.gradient(theta)),
        (here.hvp(theta, v), there.hvp(theta, v)),
    ):
        assert got.device.type == "cuda"
        assert float((got.cpu() - want).norm() / want.norm()) < rtol
    sharpness = [lanczos(o.hessian(theta.to(o.device))).eigenvalue() for o in (here, there)]
    assert sharpness[0] == pytest.approx(sharpness[1], rel=10 * rtol)


def test_training_agrees_with_the_cpu_before_the_edge(tmp_path):
    runs = [
        train(objective(d, "float32"), GradientDescent(0.05), num_steps=100,
              sharpness_schedule=every(15))
        for d in ("cpu", "cuda")
    ]  # fmt: skip
    for name in ("loss", "sharpness"):
        np.testing.assert_allclose(runs[1][name].values, runs[0][name].values, rtol=1e-3)
    assert "gpu" in runs[1].provenance
    runs[1].save(tmp_path / "run.npz")


def test_tf32_is_off_where_curvature_is_measured_and_the_switch_acts():
    switch = torch.backends.cuda.matmul
    before = switch.fp32_precision
    a = torch.randn(1024, 1024, device="cuda")
    exact = a.double() @ a.double()
    try:
        switch.fp32_precision = "tf32"
        coarse = float(((a @ a).double() - exact).norm() / exact.norm())
        reference = objective("cpu", "float64")
        theta = reference.initial_point
        there = objective("cuda", "float32")
        want = reference.hvp(theta, theta)
        error = float((there.hvp(theta, theta).cpu().double() - want).norm() / want.norm())
        assert switch.fp32_precision == "tf32"
    finally:
        switch.fp32_precision = before
    if torch.cuda.get_device_capability() >= (8, 0):
        assert coarse > 1e-4  # so the switch does something on this device
    assert error < 1e-5


@pytest.mark.parametrize("num_runs", [1, 2])
def test_inner_products_of_long_float32_vectors(num_runs):
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(num_runs, 4, 3_270_000, generator=generator)
    vectors = torch.rand(num_runs, 3_270_000, generator=generator)
    exact = torch.stack([r.double() @ v.double() for r, v in zip(rows, vectors, strict=True)])
    found = inner_products(rows.cuda(), vectors.cuda()).cpu()
    assert float((found / exact - 1).abs().max()) < 3e-6


def test_lanczos_waits_for_the_device_a_few_times_a_product():
    there = objective("cuda", "float32")
    hessian = there.hessian(there.initial_point)
    lanczos(hessian)  # what is set up once is not counted
    before = hessian.num_products
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            result = lanczos(hessian)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    products = hessian.num_products - before
    assert result.converged and products > 10
    waits = [wait for wait in waits if "called a synchronizing" in str(wait.message)]
    # One per product is the least: the host needs the inner products for its small matrix.
    assert products <= len(waits) <= 3 * products


def test_sharpness_of_vgg_11_on_5000_images_fits_in_4_gib():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(5_000, 3, 32, 32, generator=generator)
    labels = torch.randint(10, (5_000,), generator=generator)
    data = Dataset("noise", images, torch.eye(10)[labels], labels, "drawn here")
    model = build_for("vgg11", data, seed=0)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    found = sharpness(model, data, "cross_entropy", chunk_size=100, rtol=1e-2, device="cuda")
    assert found > 0
    assert torch.cuda.max_memory_allocated() < 4 * 2**30
