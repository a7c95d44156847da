"""Peak memory of one sharpness measurement: VGG-11 on 5,000 images of CIFAR-10's size.

    python benchmarks/memory.py [--examples 5000] [--chunk-size 100] [--max-products 40]

The images are random: memory does not depend on what they show. Prints JSON with the peak resident
memory of this process, what it was before the measurement, and the parts of the memory model in
`eoslib.objective.Objective`.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import torch

from eoslib import Objective, build, lanczos
from eoslib.numerics import hardware_stamp


def peak_gib() -> float:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=5000)
    parser.add_argument("--chunk-size", type=int, default=100)
    parser.add_argument("--max-products", type=int, default=40)
    options = parser.parse_args()
    torch.manual_seed(0)
    inputs = torch.randn(options.examples, 3, 32, 32)
    labels = torch.randint(0, 10, (options.examples,))
    model = build("vgg11", 3, 10)
    before = peak_gib()
    started = time.perf_counter()
    objective = Objective(model, inputs, labels, "cross_entropy", chunk_size=options.chunk_size)
    result = lanczos(
        objective.hessian(objective.initial_point),
        rtol=1e-2,
        accuracy=1e-2,
        max_products=options.max_products,
    )
    vector = 4 * objective.num_parameters / 2**30
    report = {
        "examples": options.examples,
        "chunk_size": options.chunk_size,
        "num_parameters": objective.num_parameters,
        "sharpness": result.eigenvalue(allow_unconverged=True),
        "status": result.status.name,
        "num_products": result.num_products,
        "seconds": round(time.perf_counter() - started, 1),
        "peak_gib": round(peak_gib(), 2),
        "peak_gib_before": round(before, 2),
        "images_gib": round(4 * inputs.numel() / 2**30, 2),
        "basis_gib": round(2 * result.num_products * vector, 2),
        "provenance": hardware_stamp(objective.device),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
