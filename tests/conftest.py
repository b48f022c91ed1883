"""What has to be decided before any test imports a package."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    # Triton reads it when it is first imported, which transformers may do in any test.
    os.environ["TRITON_INTERPRET"] = "1"
