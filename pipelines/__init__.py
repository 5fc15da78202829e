"""The commands; see ``make help`` and the README."""

import logging
import os
import warnings

# Before torch and numpy are imported. Threads that spin while they wait are ten times slower on a
# machine that others use too, and pycma's matrices are too small for more than one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# transformers imports torchao wherever it is, which warns of kernels for other machines.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)

# PEFT asks transformers 5 for what that is about to rename.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
