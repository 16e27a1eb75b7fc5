"""A stand-in for `VectorEnvironment` that steps its environments in the process of the test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sorl.environment_worker import _Slot, slot_type


class LocalEnvironments:
    """The same slots and records, of one worker, without any process."""

    def __init__(self, environment_id: str, *, slots: int, workers: int):
        self.slots = slots
        self.workers = 1
        self._slots: dict[int, _Slot] = {}
        self._id = environment_id
        self.sizes = self._new(environment_id).sizes
        self._records = np.zeros(slots, slot_type(self.sizes))
        self._tickets: list[int] = []

    def _new(self, environment_id: str) -> _Slot:
        return _Slot(environment_id, {}, frames=1)

    def send(
        self,
        worker: int,
        ticket: int,
        *,
        resets: Mapping[int, tuple[str, int]],
        actions: Mapping[int, np.ndarray],
    ) -> None:
        random: Any = np.random
        before = random.get_bit_generator()
        try:
            for slot, (environment_id, seed) in resets.items():
                if slot not in self._slots:
                    self._slots[slot] = self._new(environment_id)
                self._slots[slot].reset(seed, self._records[slot])
            for slot, action in actions.items():
                self._records["action"][slot] = action
                self._slots[slot].step(self._records[slot])
        finally:
            random.set_bit_generator(before)
        self._tickets.append(ticket)

    def receive(self) -> list[int]:
        tickets, self._tickets = self._tickets, []
        return tickets

    def records(self, slots: Sequence[int]) -> np.ndarray:
        return self._records[list(slots)]

    def close(self) -> None:
        pass
