"""The commands; see ``make help`` and the README."""

import logging

# transformers imports torchao wherever it is, which warns of kernels for other machines.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
