"""CUDA's streams beside emulated devices: what each is asked for, in order."""

from contextlib import contextmanager

import torch


class Queues:
    """Notes what the stream that computes and the one that copies are asked for."""

    def __init__(self, monkeypatch):
        self.asked = []
        self._copied = 0
        self._current = running = _Queue(self, "running")
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: running)
        monkeypatch.setattr(torch.cuda, "Stream", lambda _device: _Queue(self, "copying"))
        monkeypatch.setattr(torch.cuda, "stream", self._on)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_given: None)

    @contextmanager
    def _on(self, queue):
        before, self._current = self._current, queue
        yield
        self._current = before


class _Queue:
    def __init__(self, queues, name):
        self._queues, self.name = queues, name

    def wait_stream(self, other):
        self._queues.asked.append(f"{self.name} waits for {other.name}")

    def record_event(self):
        assert self._queues._current is self
        event = f"copied {self._queues._copied}"
        self._queues._copied += 1
        self._queues.asked.append(event)
        return event

    def wait_event(self, event):
        self._queues.asked.append(f"{self.name} waits for {event}")
