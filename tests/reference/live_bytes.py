"""Bytes of all tensors that are alive, counted as operations make them and Python drops them."""

import weakref

from torch.utils._python_dispatch import TorchDispatchMode

from tests.leaves import tensors


class LiveBytes(TorchDispatchMode):
    """Inside, ``now`` and ``peak`` count what was made inside and is still held by anyone.

    What an operation takes and gives back while it runs is not seen.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for storage in _storages(made):
            if id(storage) not in self._known:
                given = any(storage is other for other in _storages(args, kwargs))
                self._hold(storage, 0 if given else storage.nbytes())  # given: a view of a weight
        return made

    def _hold(self, storage, size):
        key = id(storage)

        def drop(_reference):
            del self._known[key]
            self.now -= size

        self._known[key] = weakref.ref(storage, drop)
        self.now += size
        self.peak = max(self.peak, self.now)


def _storages(*values):
    return [tensor.untyped_storage() for tensor in tensors(*values)]
