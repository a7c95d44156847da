"""PyTorch's losses, options included, against dense Hessians of PyTorch's own full-batch mean."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from eoslib import GradientDescent, Minibatches, Objective, sharpness, train
from eoslib.measure import as_loss
from eoslib.torch_losses import _KNOWN

N, CLASSES, DOUBLE = 11, 3, torch.float64
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
RANDOM = torch.Generator().manual_seed(1)
NUMBERS = torch.randn(N, CLASSES, generator=RANDOM, dtype=DOUBLE)
SHARES = NUMBERS.softmax(dim=1)
YES_NO = (NUMBERS > 0).double()
# The labels come in order, so that chunks of four have other weights than the whole.
LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2])
WORDS = torch.tensor([[0, -100], [1, 1], [2, -100], [-100, -100], [0, 1], [2, 2]] * 2)[:N]
WEIGHT = torch.tensor([0.2, 1.0, 3.0], dtype=DOUBLE)


class Words(nn.Module):
    """Logits for two positions: (n, classes, 2)."""

    def forward(self, x):
        return x.view(-1, CLASSES, 2)


CASES = {
    "CE": (nn.CrossEntropyLoss(), LABELS),
    "CE smoothed": (nn.CrossEntropyLoss(label_smoothing=0.1), LABELS),
    "CE weights": (nn.CrossEntropyLoss(weight=WEIGHT), LABELS),
    "CE weights, smoothed": (nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.2), LABELS),
    "CE ignoring a class": (nn.CrossEntropyLoss(ignore_index=1), LABELS),
    "CE all three": (nn.CrossEntropyLoss(WEIGHT, ignore_index=1, label_smoothing=0.2), LABELS),
    "CE sum": (nn.CrossEntropyLoss(weight=WEIGHT, reduction="sum"), LABELS),
    "CE probabilities": (nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1), SHARES),
    "CE padding": (nn.CrossEntropyLoss(), WORDS),
    "CE padding, weights": (nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1), WORDS),
    "CE padding, sum": (nn.CrossEntropyLoss(reduction="sum"), WORDS),
    "NLL": (nn.NLLLoss(weight=WEIGHT, ignore_index=0), LABELS),
    "MSE": (nn.MSELoss(), NUMBERS),
    "MSE sum": (nn.MSELoss(reduction="sum"), NUMBERS),
    "L1": (nn.L1Loss(), NUMBERS),
    "Huber": (nn.HuberLoss(delta=0.5), NUMBERS),
    "smooth L1": (nn.SmoothL1Loss(beta=0.5, reduction="sum"), NUMBERS),
    "BCE": (nn.BCELoss(weight=WEIGHT), SHARES),
    "BCE with logits": (nn.BCEWithLogitsLoss(), YES_NO),
    "BCE with logits, weights": (nn.BCEWithLogitsLoss(WEIGHT, pos_weight=WEIGHT + 1), YES_NO),
    "KL": (nn.KLDivLoss(reduction="batchmean"), SHARES),
    "KL mean": (nn.KLDivLoss(log_target=True), SHARES.log()),
    "Poisson": (nn.PoissonNLLLoss(full=True), NUMBERS.exp().round()),
    "soft margin": (nn.SoftMarginLoss(), NUMBERS.sign()),
    "multi-label": (nn.MultiLabelSoftMarginLoss(weight=WEIGHT), YES_NO),
    "hinge embedding": (nn.HingeEmbeddingLoss(margin=2.0), NUMBERS.sign()),
}
LAST = {"BCELoss": nn.Sigmoid(), "NLLLoss": nn.LogSoftmax(1), "KLDivLoss": nn.LogSoftmax(1)}


def network(loss, targets):
    width = 2 * CLASSES if targets.dtype == torch.long and targets.ndim == 2 else CLASSES
    last = Words() if width > CLASSES else LAST.get(type(loss).__name__, nn.Identity())
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, width), last).double()


def dense(model, loss, targets):
    """Value, gradient and Hessian of what a training loop computes, without `eoslib`."""
    names, parameters = zip(*model.named_parameters(), strict=True)

    def value(theta):
        parts = theta.split([p.numel() for p in parameters])
        values = {n: t.view_as(p) for n, t, p in zip(names, parts, parameters, strict=True)}
        return loss(torch.func.functional_call(model, values, (X,)), targets)

    theta = torch.cat([p.detach().reshape(-1) for p in parameters])
    return (
        value(theta),
        torch.autograd.functional.jacobian(value, theta),
        torch.autograd.functional.hessian(value, theta),
    )


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides the total:UserWarning")
@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("name", CASES)
def test_value_gradient_and_sharpness_are_pytorchs_on_the_full_batch(name, chunk_size):
    loss, targets = CASES[name]
    model = network(loss, targets)
    value, gradient, hessian = dense(model, loss, targets)
    task = Objective(model, X, targets, as_loss(loss, targets), chunk_size=chunk_size, dtype=DOUBLE)
    found = task.hessian(task.initial_point)
    products = found.matmat(torch.eye(len(gradient), dtype=DOUBLE))
    close = {"rtol": 1e-9, "atol": 1e-12 * float(hessian.abs().max())}
    torch.testing.assert_close(task.value(task.initial_point), value, **close)
    torch.testing.assert_close(task.gradient(task.initial_point), gradient, **close)
    torch.testing.assert_close(products, hessian, **close)
    top = sharpness(model, (X, targets), loss, chunk_size=chunk_size, rtol=1e-8)
    assert top == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-6)


def test_every_loss_that_is_known_is_tested():
    assert {type(loss) for loss, _ in CASES.values()} == _KNOWN


def test_several_points_at_once():
    loss, targets = CASES["CE all three"]
    task = Objective(
        network(loss, targets), X, targets, as_loss(loss, targets), chunk_size=4, dtype=DOUBLE
    )
    points = task.initial_point + torch.tensor([[0.0], [0.1]], dtype=DOUBLE)
    for row, point in zip(task.hessian(points).matvec(points), points, strict=True):
        torch.testing.assert_close(row, task.hvp(point, point))


def test_gradients_of_mini_batches_average_to_that_of_the_full_batch():
    loss, targets = CASES["CE padding, weights"]
    model = network(loss, targets)
    task = Objective(model, X, targets, as_loss(loss, targets), dtype=DOUBLE)
    each = [task.minibatch_gradient(task.initial_point, torch.tensor([i])) for i in range(N)]
    _, gradient, _ = dense(model, loss, targets)
    torch.testing.assert_close(torch.stack(each).mean(dim=0), gradient)
    run = train(task, GradientDescent(0.1), num_steps=3, batches=Minibatches(4))
    assert run.outcome.status == "completed"


def test_weights_follow_the_objectives_dtype_and_lose_nothing_on_the_way():
    loss, targets = nn.CrossEntropyLoss(weight=WEIGHT / 3), LABELS
    model = network(loss, targets)
    value, *_ = dense(model, loss, targets)
    known = as_loss(loss, targets)
    with torch.no_grad():
        loss.weight.fill_(7)  # the caller's
    single = Objective(model.float(), X, targets, known, dtype="float32")
    assert single.value(single.initial_point).dtype == torch.float32
    double = Objective(model.double(), X, targets, known, dtype=DOUBLE)
    assert float(double.value(double.initial_point)) == pytest.approx(float(value), rel=1e-14)


def test_it_has_the_name_of_its_options():
    for loss, name in (
        (nn.CrossEntropyLoss(), "CrossEntropyLoss"),
        (nn.HuberLoss(delta=0.5), "HuberLoss(delta=0.5)"),
        (nn.BCEWithLogitsLoss(weight=torch.ones(2)), "BCEWithLogitsLoss(weight=[1.0, 1.0])"),
        (nn.NLLLoss(ignore_index=0), "NLLLoss(ignore_index=0)"),
    ):
        assert as_loss(loss, LABELS).name == name
    many = torch.arange(11.0)  # named by a digest, which knows their order
    first, second = (as_loss(nn.BCELoss(weight)).name for weight in (many, many.flip(0)))
    assert first.startswith("BCELoss(weight=11 of digest ")
    assert first != second


@pytest.mark.parametrize(
    ("loss", "seen"),
    [
        (nn.CTCLoss(), r"CTCLoss \(it takes more than outputs and targets\)"),
        (nn.GaussianNLLLoss(), "more than outputs and targets"),
        (nn.MultiMarginLoss(), "no second derivative"),
        (nn.functional.cross_entropy, r"<function cross_entropy .*> \(a function; give the module"),
        (nn.MSELoss, r"MSELoss'> \(a class; make a loss of it: MSELoss\(\)\)"),
        (type("Own", (nn.MSELoss,), {})(), "the loss Own; known are"),
        (None, "the loss None"),
    ],
)
def test_other_losses_are_refused(loss, seen):
    with pytest.raises(ValueError, match=seen + r".*Write any other as Loss\(name"):
        as_loss(loss, LABELS)


@pytest.mark.parametrize(
    ("loss", "targets", "seen"),
    [
        (nn.MSELoss(reduction="none"), NUMBERS, "no training loss; give reduction="),
        (nn.MSELoss(reduction="batchmean"), NUMBERS, "'batchmean', which PyTorch does not know"),
        (nn.MSELoss(reduction="sum"), None, r"depends on all targets .* as_loss\(loss, targets\)"),
        (nn.CrossEntropyLoss(weight=WEIGHT), None, r"weight=\[0\.2, 1\.0, 3\.0\]\) has a factor"),
        (nn.CrossEntropyLoss(ignore_index=2), LABELS * 0 + 2, "total weight of 0: all are ignored"),
        (nn.NLLLoss(weight=WEIGHT[:2]), LABELS, r"0\.\.1 for 2 class weights, .* from 0 to 2"),
        (nn.NLLLoss(weight=WEIGHT), LABELS - 1, r"0\.\.2 for 3 class weights, .* from -1 to 1"),
        (nn.MSELoss(), NUMBERS.numpy(), "must be a tensor, got a ndarray"),
    ],
)
def test_what_has_no_factor(loss, targets, seen):
    with pytest.raises(ValueError, match=seen):
        as_loss(loss, targets)


@pytest.mark.parametrize(
    ("loss", "targets", "seen"),
    [
        (nn.CrossEntropyLoss(), torch.tensor([0, 1, 3] * 4)[:N], "must lie in 0..2 .* from 0 to 3"),
        (nn.CrossEntropyLoss(ignore_index=-1), LABELS - 2, r"0\.\.2 .* from -2 to 0"),
        (nn.CrossEntropyLoss(), LABELS.int(), r"labels\.long\(\)"),
        (nn.NLLLoss(), SHARES, "NLLLoss does not take .*float64 targets"),
        (nn.CrossEntropyLoss(weight=WEIGHT.repeat(2)), LABELS, "does not take outputs of shape"),
        (nn.CrossEntropyLoss(ignore_index=1), SHARES, "does not take .*ignore_index"),
        (nn.HuberLoss(), LABELS, "HuberLoss needs floating targets .*one_hot"),
        (nn.BCEWithLogitsLoss(), YES_NO[:, :1], r"shape \(11, 3\).*one target row per example"),
        (nn.BCEWithLogitsLoss(weight=torch.ones(N, 1)), YES_NO, "a weight for each example"),
        (nn.BCEWithLogitsLoss(pos_weight=torch.ones(N, 1, 1)), YES_NO, "a weight for each example"),
        (nn.BCELoss(), SHARES, r"between 0 and 1"),
    ],
)
def test_targets_that_do_not_fit(loss, targets, seen):
    model = nn.Sequential(nn.Linear(4, CLASSES)).double()
    with torch.no_grad():
        model[0].bias.fill_(20)  # no probabilities
    with pytest.raises(ValueError, match=seen):
        sharpness(model, (X, targets), loss)


def test_a_factor_of_other_targets_is_refused():
    model = network(nn.CrossEntropyLoss(), LABELS)
    with pytest.raises(ValueError, match=r"ignores some of the targets .*ignore_index=1"):
        Objective(model, X, LABELS, as_loss(nn.CrossEntropyLoss(ignore_index=1)))
    ignoring = nn.CrossEntropyLoss(ignore_index=2)  # a label that the first seven do not have
    weighted, summed = nn.CrossEntropyLoss(weight=WEIGHT), nn.CrossEntropyLoss(reduction="sum")
    for loss in (weighted, summed, ignoring):
        known = as_loss(loss, LABELS)
        with pytest.raises(ValueError, match=r"made for other targets.* the 7 here"):
            Objective(model, X[:7], LABELS[:7], known)
