"""Every model type of the matrix by name."""

from __future__ import annotations

from matrix.decoders import DENSE, RECURRENT, SPARSE
from matrix.encoders import ENCODERS, VISION

CASES = {**DENSE, **SPARSE, **RECURRENT, **ENCODERS, **VISION}
