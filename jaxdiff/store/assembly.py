"""Slots that arrive in any order, from any device, become chunks that are written once."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from jaxdiff.errors import ConfigError
from jaxdiff.store.layout import Layout
from jaxdiff.store.writer import Job


class _Clip:
    """One clip in flight: which slots have arrived, and the chunks that are still filling."""

    def __init__(self, layouts: Iterable[Layout]) -> None:
        self.arrived = {layout.name: np.zeros(layout.shape[1], bool) for layout in layouts}
        self.copied = {layout.name: 0 for layout in layouts}
        self.blocks: dict[tuple[str, int], tuple[np.ndarray, list[int]]] = {}  # value, slots it still lacks


class Assembly:
    """Collects captured slots of the clips in flight and hands on every chunk when it is full.

    Memory: at most the chunks of the clips in flight, each of which stays below `layout.CHUNK_BYTES` or one
    slot.
    """

    def __init__(self, layouts: Sequence[Layout], hand_on: Callable[[Job], None]) -> None:
        self._layouts = {layout.name: layout for layout in layouts}
        self._hand_on = hand_on
        self._clips: dict[int, _Clip] = {}
        self._changed = threading.Condition()

    def holds(self, clips: Iterable[int]) -> bool:
        """Whether any of the clips is in flight."""
        return any(clip in self._clips for clip in clips)

    def in_flight(self) -> int:
        """How many clips are."""
        return len(self._clips)

    def begin(self, clips: Iterable[int]) -> None:
        """Expect all slots of these clips, forgetting what came of them before."""
        with self._changed:
            self._clips.update((clip, _Clip(self._layouts.values())) for clip in clips)

    def add(self, clips: Sequence[int], slot: int, values: Mapping[str, np.ndarray]) -> None:
        """Take in one slot of several clips; values ``[rows, len(clips), ...]`` are copied.

        Raises
        ------
        ConfigError : the slot is out of range or arrived before, or the clip is not in flight.
        """
        for column, clip in enumerate(clips):
            if clip >= 0:  # negative ids are padding
                for name, value in values.items():
                    self._add(clip, slot, self._layouts[name], value[:, column])

    def _add(self, clip: int, slot: int, layout: Layout, value: np.ndarray) -> None:
        block, offset = divmod(slot, layout.slots_per_chunk)
        start = block * layout.slots_per_chunk
        length = min(layout.slots_per_chunk, layout.shape[1] - start)
        with self._changed:
            state = self._clips.get(clip)
            if state is None:
                raise ConfigError(f"a state of clip {clip} arrived, but no sink of this store was made for that clip")
            if not 0 <= slot < layout.shape[1]:
                raise ConfigError(f"slot {slot} of {layout.name!r} arrived, but the store has {layout.shape[1]} slots")
            if state.arrived[layout.name][slot]:
                raise ConfigError(
                    f"slot {slot} of {layout.name!r} arrived twice for clip {clip}: make a new sink for every run"
                )
            state.arrived[layout.name][slot] = True
            if (layout.name, block) not in state.blocks:
                buffer = np.empty((length, *layout.slot_shape), layout.numpy_dtype)
                state.blocks[layout.name, block] = buffer, [length]
            buffer, lacking = state.blocks[layout.name, block]
        buffer[offset] = value  # outside the lock: devices copy at the same time, each into its own slot
        with self._changed:
            lacking[0] -= 1
            full = not lacking[0]
            if full:
                del state.blocks[layout.name, block]
        if full:
            self._hand_on(Job(layout.name, clip, start, buffer))
        with self._changed:
            state.copied[layout.name] += 1  # only now: a waiter must find the chunk in the queue
            self._changed.notify_all()

    def missing(self, clips: Iterable[int]) -> dict[int, dict[str, int]]:
        """Clip id -> array name -> how many slots have not been handed on; complete clips are left out."""
        with self._changed:
            return self._missing(clips)

    def wait(self, clips: Sequence[int], timeout: float) -> None:
        """Wait until the clips are complete, or nothing has arrived for `timeout` seconds."""
        with self._changed:
            deadline = time.monotonic() + timeout
            while self._missing(clips) and self._changed.wait(deadline - time.monotonic()):
                deadline = time.monotonic() + timeout

    def _missing(self, clips: Iterable[int]) -> dict[int, dict[str, int]]:
        result = {}
        for clip in clips:
            state = self._clips.get(clip)
            left = {
                name: layout.shape[1] - (state.copied[name] if state else 0) for name, layout in self._layouts.items()
            }
            if left := {name: count for name, count in left.items() if count}:
                result[clip] = left
        return result

    def forget(self, clips: Iterable[int]) -> None:
        """Drop clips that are committed."""
        with self._changed:
            for clip in clips:
                self._clips.pop(clip, None)
