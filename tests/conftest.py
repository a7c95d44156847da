"""Shared by all tests."""

from __future__ import annotations

import torch

# The suite runs one process per core and most of its problems are tiny: a second thread in each
# process would only fight with the other process (see `eoslib.numerics.limited_threads`).
torch.set_num_threads(1)
