"""The activation store: create or resume, write or stream, commit."""

import contextlib
import errno
import functools
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxdiff.errors import ConfigError, StoreWriteError
from jaxdiff.mesh import clip_spec, data_mesh, data_size
from jaxdiff.store.assembly import Assembly
from jaxdiff.store.header import HEADER, as_json, create_folder, differences, make_header, read_header
from jaxdiff.store.index import Shard
from jaxdiff.store.reader import StoreReader
from jaxdiff.store.sink import Receiver, StoreSink
from jaxdiff.store.writer import Commit, Job, QueueUse, Writer, describe


class ActivationStore(StoreReader):
    """Captured activations of a set of clips, as zarr 3 arrays ``[clips, slots, rows, ...]`` in one folder.

    A slot is one captured (sigma, label) pair, a row one captured block. Writing is resumable by clip:
    `finish` makes the arrays of its clips durable first and only then appends one line a clip to
    ``index.jsonl``. What a killed process leaves half-written is in no line, and is computed again.

    Two ways in, with bit-identical results::

        with ActivationStore.create(path, clips=n, slots=k, specs=specs, metadata=config) as store:
            todo = [clip for clip in range(store.clips) if clip not in store.finished()]
            ...
            store.write(clip_ids, trajectory.captured)          # captures that the program returned, or
            invert(..., sink=store.sink(clip_ids, mesh))        # streamed out of it while it runs
            store.finish(clip_ids, records)

    The folder reads without this package. Clips that are not finished are absent chunks or junk: take the
    clip ids from ``index.jsonl``. bfloat16 arrays need TensorStore; the others open in any zarr 3 library::

        import tensorstore as ts
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": "store/block_out.mean/"}}
        states = ts.open(spec).result()[7].read().result()      # clip 7: [slots, rows, D]

        import zarr                                             # zarr-python 3
        group = zarr.open_group("store", mode="r")
        group.attrs["metadata"], group["block_out.mean"][7]

    Use `create` and `open`. After a failed write every call that writes raises the failure: close the store,
    mend the cause, and create it again to continue.
    """

    def __init__(
        self, path: Path, header: dict[str, Any], *, write: bool = False, shard: Shard | None = None, **writer: Any
    ) -> None:
        super().__init__(path, header, write=write, shard=shard)
        self._writer = Writer(self._write_job, **writer)
        self._assembly = Assembly(list(self._layouts.values()), self._writer.put)
        self._receiver = Receiver(self._layouts, self._take)
        self._committing: Commit | None = None
        self._streaming = False  # whether a sink was ever made

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        clips: int,
        slots: int,
        specs: Mapping[str, jax.ShapeDtypeStruct],
        names: Sequence[str] | None = None,
        rows: Mapping[str, Sequence[int]] | None = None,
        metadata: Mapping[str, Any] | None = None,
        shard: Shard | None = None,
        threads: int = 4,
        queue_bytes: int = 256 << 20,
        timeout: float = 120.0,
    ) -> "ActivationStore":
        """Create a store for writing, or reopen one of the same configuration to continue it.

        Parameters
        ----------
        path : folder of the store; absent, empty, or a store.
        clips : number of clips; their ids are ``0 .. clips - 1``.
        slots : number of captured steps.
        specs : array name -> shape ``[rows, ...]`` and dtype of one slot of one clip.
        names : name of each clip.
        rows : array name -> block index of each row; default ``0, 1, ...``.
        metadata : what else determines or explains the arrays (sigmas, labels, the run's configuration): anything that
            JSON can hold, NumPy arrays included. It is part of the configuration.
        shard : (k, n) for the k-th of n processes that write this store at once, each clips of its own; None where
            one process writes alone. Not part of the configuration: any other number of them may go on.
        threads, queue_bytes, timeout : see `jaxdiff.store.writer.Writer`; not part of the configuration.

        Raises
        ------
        ConfigError : the folder holds a store of another configuration (the differing keys are listed) or something
            else, or another process is writing to it; or an argument is not valid.
        MissingDataError : the existing store's header or index is damaged.
        StoreWriteError : the folder cannot be written, or the disk is too small for what is not finished.
        """
        path = Path(path)
        header = make_header(clips, slots, specs, names, rows, metadata)
        if not (path / HEADER).exists():
            create_folder(path, header, shard)
        stored = read_header(path)
        if different := list(differences(stored, header)):
            more = f"\n  and {len(different) - 20} more" if len(different) > 20 else ""
            raise ConfigError(
                f"{path} was written with another configuration; choose another folder, or go back to it:\n  "
                + "\n  ".join(different[:20])
                + more
            )
        try:
            store = cls(
                path, stored, write=True, shard=shard, threads=threads, queue_bytes=queue_bytes, timeout=timeout
            )
        except OSError as error:
            raise describe(error, "the index", path, 0) from error
        try:
            store._check_space()
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "ActivationStore":
        """Open a store for reading; it may be unfinished, and still being written by another process.

        Raises
        ------
        MissingDataError : there is no store, or its header or index is damaged.
        """
        return cls(Path(path), read_header(Path(path)))

    def sink(self, clip_ids: Any, mesh: Mesh | None = None) -> StoreSink:
        """A sink for one run over the clips ``clip_ids [B]`` (-1: padding).

        Parameters
        ----------
        clip_ids : integers ``[B]``; B divides over the axes that clips are spread over.
        mesh : where the run's batch is sharded; None is the first device alone.

        Raises
        ------
        ConfigError : an id is out of range, repeated or finished, or B does not divide.
        StoreWriteError : a write failed before.
        """
        mesh = data_mesh(jax.devices()[:1]) if mesh is None else mesh
        ids = self._valid_ids(clip_ids)
        if len(ids) % data_size(mesh):
            raise ConfigError(f"{len(ids)} clips do not divide over {data_size(mesh)} devices: pad with -1")
        self._begin(ids)
        self._streaming = True
        sharding = NamedSharding(mesh, clip_spec(mesh))
        return StoreSink(jax.make_array_from_callback(ids.shape, sharding, lambda i: ids[i]), self._receiver, mesh)

    def write(self, clip_ids: Any, arrays: Mapping[str, Any]) -> None:
        """Queue all slots of the clips ``clip_ids [B]`` (-1: padding).

        Returns when the arrays are copied; `finish` waits for the disk.

        Parameters
        ----------
        clip_ids : integers ``[B]``.
        arrays : all arrays of the store, name -> ``[slots, rows, B, ...]``.

        Raises
        ------
        ConfigError : names, shapes, dtypes or ids do not fit the store.
        StoreWriteError : a write failed.
        """
        ids = self._valid_ids(clip_ids)
        if arrays.keys() != self._layouts.keys():
            raise ConfigError(f"write got {sorted(arrays)}, but the store holds {sorted(self._layouts)}")
        for name, value in arrays.items():
            layout = self._layouts[name]
            expected = (self.slots, layout.slot_shape[0], len(ids), *layout.slot_shape[1:])
            if value.shape != expected or value.dtype != layout.numpy_dtype:
                raise ConfigError(
                    f"{name!r} is {value.dtype}{list(value.shape)}, but the store expects "
                    f"{layout.dtype}{list(expected)} ([slots, rows, B, ...])"
                )
        self._begin(ids)
        for name, value in arrays.items():
            value = np.asarray(value)
            for slot in range(self.slots):
                self._assembly.add(ids.tolist(), slot, {name: value[slot]})

    def finish(self, clip_ids: Any, records: Sequence[Mapping[str, Any]] | None = None, *, wait: bool = True) -> None:
        """Commit clips: wait until all their slots are durable, then append them to the index.

        Waits for the programs that feed a sink (`jax.effects_barrier`). JAX knows them only in the thread
        that started them: call it there.

        Parameters
        ----------
        clip_ids : integers ``[B]``; -1 is ignored.
        records : one dict an id, kept beside the clip (its fidelity, for example); finite numbers only.
        wait : False: return when the slots are all here, and let a thread wait for the disk, so that devices go on meanwhile.
            The next call waits for it, as `close` does, and raises what it failed with: two batches are in flight at most.

        Raises
        ------
        ConfigError : an id was never written or is finished, a slot is missing, or a record is not JSON.
        StoreWriteError : a write failed; none of these clips is committed.
        """
        ids = self._valid_ids(clip_ids).tolist()
        records = [{}] * len(ids) if records is None else records
        if len(records) != len(ids):
            raise ConfigError(f"{len(records)} records were given for {len(ids)} clip ids")
        entries = [self._entry(clip, record) for clip, record in zip(ids, records, strict=True) if clip >= 0]
        clips = [entry["clip"] for entry in entries]
        self._wait_for_programs(clips)
        self._settle()
        if missing := self._assembly.missing(clips):
            clip, arrays = next(iter(missing.items()))
            raise ConfigError(
                f"{len(missing)} clips cannot be finished: clip {clip} lacks "
                + ", ".join(f"{count} of {self.slots} slots of {name!r}" for name, count in arrays.items())
            )
        if wait:
            self._commit_durable(entries)
        else:
            self._committing = Commit(functools.partial(self._commit_durable, entries))

    def leave_out(self, clip: int, record: Mapping[str, Any]) -> None:
        """Commit a clip that has no arrays and never will, with a record that says why.

        Raises
        ------
        ConfigError : the id is out of range or finished, or the record is not JSON.
        StoreWriteError : the index cannot be written.
        """
        (clip,) = self._valid_ids([clip]).tolist()
        self._settle()
        self._commit([self._entry(clip, record)])

    @property
    def queue(self) -> QueueUse:
        """How far the disk has lagged behind what was handed over."""
        return self._writer.use

    def check(self) -> None:
        """Raise the writers' failure, if there was one: the reason behind a `jax.errors.JaxRuntimeError`."""
        self._writer.check()

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Around a program that feeds a sink: the writer's own error leaves, not the runtime's.

        ``with store:`` does the same, and closes.
        """
        try:
            yield
        except Exception as error:
            if error is not self._writer.failure:
                self.check()
            raise

    def close(self) -> None:
        """End the writer threads and release the folder. What was not finished stays uncommitted."""
        try:
            self._settle()
        finally:
            self._writer.close()
            self._index.close()
            self._handles.clear()
            self._writable = False

    def __enter__(self) -> "ActivationStore":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        with contextlib.nullcontext() if error is None else contextlib.suppress(StoreWriteError):
            self.close()
        if isinstance(error, Exception) and error is not self._writer.failure:
            self.check()

    # ------------------------------------------------------------------------------ inside

    def _valid_ids(self, clip_ids: Any) -> np.ndarray:
        if not self._writable:
            raise ConfigError(f"{self._path} is not open for writing: use ActivationStore.create")
        self.check()
        ids = np.asarray(clip_ids)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise ConfigError(f"clip ids must be integers [B], got {ids.dtype}{list(ids.shape)}")
        ids = ids.astype(np.int32)
        real = ids[ids >= 0].tolist()
        if wrong := [clip for clip in real if clip >= self.clips]:
            raise ConfigError(f"clip ids {wrong} are out of range: the store has {self.clips} clips")
        if len(set(real)) != len(real):
            raise ConfigError(f"a clip id is repeated in {ids.tolist()}")
        if done := sorted(self.finished() & set(real)):
            raise ConfigError(f"clips {done} of {self._path} are finished already: leave out finished()")
        return ids

    def _entry(self, clip: int, record: Mapping[str, Any]) -> dict[str, Any]:
        return {"clip": clip, "name": self._name(clip), "record": as_json(record, f"the record of clip {clip}")}

    def _commit_durable(self, entries: list[dict[str, Any]]) -> None:
        clips = [entry["clip"] for entry in entries]
        self._writer.drain(clips)
        self._commit(entries)
        self._assembly.forget(clips)

    def _settle(self) -> None:
        """Wait for the commit that runs behind, if there is one; raises what it failed with."""
        if self._committing is not None:
            self._committing.join()  # what interrupts this leaves it in its place, for `close`
            commit, self._committing = self._committing, None
            commit.check()

    def _commit(self, entries: list[dict[str, Any]]) -> None:
        try:
            self._index.append(entries)
        except OSError as error:
            self._writer.fail(self._failure(error, f"the index entries of clips {[e['clip'] for e in entries]}"))
            self.check()

    def _name(self, clip: int) -> str:
        return self._header["names"][clip]

    def _failure(self, error: BaseException, what: str) -> StoreWriteError:
        return describe(error, what, self._path, len(self.finished()))

    def _begin(self, ids: np.ndarray) -> None:
        real = ids[ids >= 0].tolist()
        if self._assembly.holds(real):
            # An earlier run over these clips was given up: nothing of it may arrive among the new states.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                jax.effects_barrier()
            self._writer.drain()
        self._assembly.begin(real)
        # Clips that run side by side fill their chunks at about the same time: the queue has room for one of each.
        self._writer.allow(self._assembly.in_flight() * sum(layout.chunk_bytes for layout in self._layouts.values()))

    def _take(self, clip_ids: np.ndarray, slot: int, values: dict[str, np.ndarray]) -> None:
        """Body of the host callback."""
        self.check()
        try:
            self._assembly.add(clip_ids.tolist(), slot, values)
        except Exception as error:
            self._writer.fail(error)
            raise

    def _write_job(self, job: Job) -> None:
        """Body of a writer thread."""
        try:
            target = self.array(job.name)[job.clip, job.start : job.start + len(job.value)]
            # The block is ours alone and no longer changes, so TensorStore need not copy it.
            target.write(job.value, can_reference_source_data_indefinitely=True).result()
        except Exception as error:
            raise self._failure(error, f"{job.name!r} of clip {job.clip} ({self._name(job.clip)})") from error

    def _wait_for_programs(self, clips: Sequence[int]) -> None:
        if not self._streaming:
            return
        try:
            jax.effects_barrier()
        except jax.errors.JaxRuntimeError:
            self.check()
            # JAX keeps the error of any earlier program and raises it here again. It concerns these clips
            # only if it keeps their states from arriving.
            self._assembly.wait(clips, self._writer.timeout)
            self.check()
            if self._assembly.missing(clips):
                raise
        self.check()

    def _check_space(self) -> None:
        todo = self.clips - len(self.finished())
        needed, free = todo * self.clip_bytes, shutil.disk_usage(self._path).free
        if needed > free:
            raise StoreWriteError(
                errno.ENOSPC,
                f"{self._path} needs {needed / 1e9:.3g} GB for the {todo} clips that are not finished, but "
                f"only {free / 1e9:.3g} GB are free there: free some space, choose another folder, or "
                "capture fewer steps, blocks or clips",
            )
