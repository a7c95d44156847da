r"""The training objective of data spread over several processes: GPUs of one machine, or machines.

.. math:: L(\theta) = \sum_r \frac{n_r}{n} L_r(\theta)

Rank r holds n_r of the n examples and an ordinary `Objective` of them, L_r. Value, gradient and
Hessian-vector products are sums over ranks (one all-reduce of a number, or of a vector of length
P), so update rules, eigensolvers and the training loop run unchanged, the same on every rank::

    torchrun --nproc-per-node 4 script.py       # script.py:

    torch.distributed.init_process_group("nccl")
    objective = DistributedObjective.from_dataset(network, data, "square", device=device)
    run = eoslib.train(objective, eoslib.GradientDescent(0.01), num_steps=1000)
    if torch.distributed.get_rank() == 0:
        run.save("run.npz")

Every rank has to call the same functions with the same arguments in the same order, as always with
collective communication. θ and the vectors are compared in every call: ranks that have gone
different ways get an error and not a gradient of nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from eoslib.data import Dataset
from eoslib.linops import SymmetricOperator
from eoslib.losses import LOSSES, Loss, get_loss, share_correct, tally
from eoslib.objective import Objective

__all__ = ["DistributedHessian", "DistributedObjective", "shard_of"]


def shard_of(num_examples: int, rank: int, num_ranks: int, chunk_size: int | None = None) -> slice:
    """The examples that a rank holds: contiguous parts, as equal as whole chunks allow.

    Chunks are not divided, so that ghost batches are the same on any number of ranks.

    Raises:
        ValueError: there are fewer chunks (or examples) than ranks.
    """
    size = chunk_size or 1
    num_chunks = -(-num_examples // size)
    if num_chunks < num_ranks:
        unit = f"chunks of {size} examples" if chunk_size else "examples"
        raise ValueError(
            f"{num_chunks} {unit} cannot be spread over {num_ranks} ranks; use fewer ranks"
            + (" or a smaller chunk_size" if chunk_size else "")
        )
    bounds = [num_chunks * r // num_ranks * size for r in (rank, rank + 1)]
    return slice(bounds[0], min(bounds[1], num_examples))


class DistributedObjective:
    """L(θ) and its derivatives, with the interface of an `Objective` that training needs.

    Attributes:
        local: the `Objective` of this rank's examples.
        initial_point: the model's parameters as one vector, ``(P,)``; the same on every rank.
        num_parameters: P.
        num_examples: n, of all ranks.
        loss: the `eoslib.losses.Loss`.
        device: where this rank computes.
        dtype: of θ, gradients and products.

    The sums over ranks are rounded differently from those of one process, so results agree with it
    to rounding; among the ranks they are the same to the last bit.

    Cost: an all-reduce of P numbers for each gradient and product, and of two integers to compare
    the arguments.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        loss: str | Loss = "square",
        *,
        group: dist.ProcessGroup | None = None,
        **options: Any,
    ) -> None:
        """Keep this rank's examples.

        Args:
            model: as for `Objective`; with the same weights on every rank (the same seed).
            inputs: all n examples, the same on every rank.
            targets: likewise.
            loss: as for `Objective`.
            group: the processes; default all.
            **options: further options of `Objective`. Chunks are not divided among ranks.

        Raises:
            ValueError: as `Objective`; ranks that disagree on the data or the weights; fewer
                chunks than ranks; ``batch_norm="full_batch"`` on several ranks.
            RuntimeError: ``torch.distributed`` has not been initialised.
        """
        if not dist.is_initialized():
            raise RuntimeError(
                "no process group: start the script with torchrun and call "
                "torch.distributed.init_process_group first"
            )
        self._group = group
        rank, num_ranks = dist.get_rank(group), dist.get_world_size(group)
        if options.get("batch_norm") == "full_batch" and num_ranks > 1:
            raise ValueError(
                f'batch_norm="full_batch" needs all examples in one pass, but they are spread over '
                f'{num_ranks} ranks; use batch_norm="ghost" with a chunk_size'
            )
        part = shard_of(len(inputs), rank, num_ranks, options.get("chunk_size"))
        loss = _checked_against_all(get_loss(loss), targets)
        self.local = Objective(model, inputs[part], targets[part], loss, **options)
        self.device, self.dtype, self.loss = self.local.device, self.local.dtype, self.local.loss
        self.num_examples = len(inputs)
        self.num_parameters = self.local.num_parameters
        self.initial_point = self.local.initial_point
        self._weight = self.local.num_examples / self.num_examples
        self._digests = {  # of all examples, which are not kept
            name: f"{self._compare(tensor.detach(), f'the {name}'):x}"
            for name, tensor in (("inputs", inputs), ("targets", targets))
        }
        self._compare(self.initial_point, "the initial parameters")

    @classmethod
    def from_dataset(
        cls, model: nn.Module, data: Dataset, loss: str | Loss = "square", **options: Any
    ) -> DistributedObjective:
        """The objective of a model on a `Dataset`; further options as for the constructor."""
        return cls(model, data.inputs, data.targets, loss, **options)

    @property
    def num_gradients(self) -> float:
        """Gradients of the whole loss computed so far."""
        return self.local.num_gradients

    @property
    def num_products(self) -> int:
        """Hessian-vector products computed so far."""
        return self.local.num_products

    def value(self, theta: Tensor) -> Tensor:
        """L(θ), 0-d, or ``(R,)``.

        Raises:
            ValueError: θ has the wrong shape, or is not the same on every rank.
        """
        self._compare(theta, "theta")
        return self._sum(self.local.value(theta))

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """L(θ), 0-d or ``(R,)``, and ∇L(θ), of θ's shape.

        Raises:
            ValueError: as `value`.
        """
        self._compare(theta, "theta")
        value, gradient = self.local.value_and_gradient(theta)
        return self._sum(value), self._sum(gradient)

    def gradient(self, theta: Tensor) -> Tensor:
        """∇L(θ), of θ's shape."""
        return self.value_and_gradient(theta)[1]

    def hvp(self, theta: Tensor, vector: Tensor) -> Tensor:
        """The Hessian-vector product ∇²L(θ) v, ``(P,)``. For several v at one θ use `hessian`."""
        return self.hessian(theta).matvec(vector)

    def hessian(self, theta: Tensor) -> DistributedHessian:
        """The Hessian ∇²L(θ) as an operator, with L(θ) and ∇L(θ); see `eoslib.objective.Hessian`.

        Raises:
            ValueError: as `value`; a vector that is not the same on every rank.
        """
        self._compare(theta, "theta")
        return DistributedHessian(self, theta)

    def third_derivative(self, theta: Tensor, u: Tensor, v: Tensor | None = None) -> Tensor:
        """∇_θ (uᵀ ∇²L(θ) v), ``(P,)``; see `Objective.third_derivative`."""
        for name, tensor in (("theta", theta), ("u", u), ("v", u if v is None else v)):
            self._compare(tensor, name)
        return self._sum(self.local.third_derivative(theta, u, v))

    def outputs(self, theta: Tensor) -> Tensor:
        """The network's outputs on all examples, ``(n, ...)``, on every rank."""
        self._compare(theta, "theta")
        own = self.local.outputs(theta)
        # Gathered in parts of one size, as gloo wants them.
        counts = [torch.zeros((), dtype=torch.int64, device=self.device) for _ in self._ranks]
        dist.all_gather(counts, torch.tensor(len(own), device=self.device), group=self._group)
        padded = own.new_zeros(max(int(count) for count in counts), *own.shape[1:])
        padded[: len(own)] = own
        gathered = [torch.empty_like(padded) for _ in self._ranks]
        dist.all_gather(gathered, padded, group=self._group)
        return torch.cat([p[: int(count)] for p, count in zip(gathered, counts, strict=True)])

    def accuracy(self, theta: Tensor) -> float:
        """Share of all training examples classified correctly; see `Objective.accuracy`."""
        self._compare(theta, "theta")
        total = tally(self.local.outputs(theta), self.local.targets, self.loss.ignored)
        dist.all_reduce(total, group=self._group)
        return share_correct(total)

    def module_at(self, theta: Tensor) -> nn.Module:
        """A fresh copy of the network whose parameters are θ."""
        return self.local.module_at(theta)

    def digests(self) -> dict[str, str]:
        """Short hashes of what L is made of; the same on any number of ranks."""
        return self.local.digests() | self._digests

    @property
    def _ranks(self) -> range:
        return range(dist.get_world_size(self._group))

    def _sum(self, share: Tensor) -> Tensor:
        """This rank's mean over its examples, in; the mean over all examples, out."""
        total = (share.detach() * self._weight).contiguous()
        dist.all_reduce(total, group=self._group)
        return total

    def _compare(self, tensor: Tensor, name: str) -> int:
        """The fingerprint; refuse, on every rank, what is not the same on all."""
        mark = _fingerprint(tensor.detach()).to(self.device)
        ends = torch.stack([mark, -mark])
        dist.all_reduce(ends, op=dist.ReduceOp.MIN, group=self._group)
        if int(ends[0]) != -int(ends[1]):
            raise ValueError(
                f"{name}: not the same on all {len(self._ranks)} ranks. Every rank has to make the "
                "same choices: one seed, the same arguments in the same order"
            )
        return int(mark)


class DistributedHessian(SymmetricOperator):
    """∇²L(θ) at one θ ``(P,)``, or at R of them ``(R, P)``: the sum of the ranks' Hessians.

    Attributes:
        value: L(θ), 0-d or ``(R,)``.
        gradient: ∇L(θ), of θ's shape.
    """

    def __init__(self, objective: DistributedObjective, theta: Tensor) -> None:
        """Prepare products at θ; one gradient with its graph."""
        self._objective = objective
        self._local = objective.local.hessian(theta)
        self.value = objective._sum(self._local.value)
        self.gradient = objective._sum(self._local.gradient)
        super().__init__(
            None,
            objective.num_parameters,
            dtype=objective.dtype,
            device=objective.device,
            num_runs=self._local.num_runs,
        )

    def _multiply(self, vector: Tensor) -> Tensor:
        self._objective._compare(vector, "the vector")
        return self._objective._sum(self._local.matvec(vector))

    def _multiply_rows(self, rows: Tensor) -> Tensor:
        self._objective._compare(rows, "the block of vectors")
        return self._objective._sum(self._local.matmat(rows.T).T)


def _checked_against_all(loss: Loss, targets: Tensor) -> Loss:
    """A loss whose factor belongs to all targets (`as_loss`) is checked against all of them."""
    if loss in LOSSES.values():
        return loss

    def check(outputs: Tensor, own: Tensor) -> None:
        loss.check(outputs[:1].expand(len(targets), *outputs.shape[1:]), targets)

    return replace(loss, check=check)


def _fingerprint(tensor: Tensor) -> Tensor:
    """An integer that changes when a bit of the tensor does, and when two entries change places."""
    flat = tensor.contiguous().view(-1)
    if flat.is_floating_point():
        flat = flat.view({8: torch.int64, 4: torch.int32, 2: torch.int16}[flat.element_size()])
    place = torch.arange(1, 2 * len(flat) + 1, 2, device=flat.device)  # odd: no bit is lost
    mixed = flat.long() * place  # modulo 2⁶⁴
    # Without the shift, flipping two signs would change nothing; with the sign's copies that it
    # brings in from the left, flipping all bits of an entry.
    return (mixed ^ ((mixed >> 32) & 0xFFFFFFFF)).sum() + len(flat)
