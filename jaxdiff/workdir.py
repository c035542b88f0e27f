"""The folder that a run writes: who may write it, under which configuration, and what it must hold in the
end.

| file          | what                                                  | same after a kill and restart? |
|---------------|-------------------------------------------------------|--------------------------------|
| config.json   | the configuration that decides every result           | yes                            |
| result.json   | what the inputs determine, keys sorted                | yes, byte for byte             |
| probe.csv     | every fitted probe, a long table                      | yes, byte for byte             |
| env.json      | a list of sessions: versions, devices, host, command  | no: one entry per start        |
| metrics.jsonl | durations, one json object a line, appended           | no                             |
| report.html   | the report                                            | no: it quotes env.json         |
| DONE          | written last: sha256 of the files that were finished  | yes                            |

Files appear whole or not at all: they are written beside their place, flushed to the disk and renamed.
"""

import contextlib
import dataclasses
import datetime
import enum
import errno
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import shlex
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxdiff.errors import ConfigError

_PACKAGES = ("jaxdiff", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorstore", "av")


def plain(value: Any, where: str = "") -> Any:
    """`value` as json types: dataclasses and mappings to dict, tuples and arrays to list, paths and enums to
    text.

    Raises
    ------
    ConfigError
        The value, or one inside it, has no json form, or is NaN or infinite (json has no such numbers). The
        message names the key.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v, f"{where}.{k}" if where else str(k)) for k, v in value.items()}
    if isinstance(value, enum.Enum):
        return plain(value.value, where)
    if hasattr(value, "__array__") and not isinstance(value, np.generic):  # numpy and jax arrays alike
        value = np.asarray(value)
        value = list(value) if value.ndim else value[()]
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return [plain(v, f"{where}[{i}]") for i, v in enumerate(items)]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, pathlib.PurePath):
        return str(value)
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        if not math.isfinite(value):
            raise ConfigError(f"{where or 'value'} is {value}, which json cannot hold; use null or leave it out")
        # str() of a float32 is its own shortest form; going through float64 would print 0.10000000149.
        return float(value) if isinstance(value, float) else float(str(value))
    raise ConfigError(f"{where or 'value'} is a {type(value).__name__}, which has no json form")


def dump_json(value: Any) -> bytes:
    """`value` as json text whose bytes depend on nothing but the value: sorted keys, two spaces."""
    return (json.dumps(plain(value), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_atomic(path: str | os.PathLike, data: bytes) -> None:
    """Write `data` to `path` so that a reader, or the next start, sees the old file or the new one, never a
    part.

    The bytes reach the disk before the name does (fsync, rename, fsync of the folder), so this also holds for
    a power cut. On failure, a full disk included, the temporary file is removed and the old file stays.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(scratch, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for key, item in value.items() for k, v in _flatten(item, f"{prefix}{key}.").items()}
    return {prefix[:-1]: value}


def _differences(old: dict, new: dict) -> list[str]:
    old, new = _flatten(old), _flatten(new)
    absent = object()

    def show(value: Any) -> str:
        return "(absent)" if value is absent else json.dumps(value, ensure_ascii=False)

    lines = []
    for key in sorted(old.keys() | new.keys()):
        before, now = old.get(key, absent), new.get(key, absent)
        # 1 and 1.0 are one value to every reader of a config; 1 and True are not, though Python calls them equal.
        if before is absent or now is absent or before != now or isinstance(before, bool) != isinstance(now, bool):
            lines.append(f"  {key}: {show(before)} there, {show(now)} now")
    return lines


class Workdir:
    """Create the folder of a run, or reopen it to go on.

    Parameters
    ----------
    path : folder, made if absent.
    config : frozen dataclass or mapping. Everything in it is taken to decide results: a folder that was started with
        another configuration is refused.
    primary : False on all but the first process of a multi-process run; such a process checks the configuration but
        neither locks nor writes. Start `jax.distributed` before making a Workdir: it asks jax for devices.

    Attributes
    ----------
    path : pathlib.Path
    config : dict, the configuration in json types.
    done : bool, whether an earlier run finished here and its files are still as it left them. A caller
        normally returns at once then.

    Raises
    ------
    ConfigError
        Another configuration (all differing keys are listed with both values), an unfinished run of another kind of
        device, another process at work in the folder, or a path that is no folder.

    Examples
    --------
    >>> with Workdir("runs/demo", {"seed": 0}) as work:            # doctest: +SKIP
    ...     if not work.done:
    ...         with work.stage("invert"):
    ...             ...
    ...         work.write_result({"clips": 12})
    ...         work.finish()
    """

    def __init__(self, path: str | os.PathLike, config: Any, *, primary: bool = True):
        self.path = pathlib.Path(path)
        self.config = plain(config)
        self.primary = primary
        self.done = False
        self._lock: int | None = None
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"--workdir={self.path} is a file; name a folder, or one that can be made")
        if primary:
            self.path.mkdir(parents=True, exist_ok=True)
            locked = self._acquire()
        try:
            self._check_config()
            self._check_done()
            if primary:
                self._add_session(locked)
        except BaseException:
            self.close()
            raise

    # -- entering ---------------------------------------------------------------------------------------------

    def _acquire(self) -> str:
        import fcntl

        lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 200).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            raise ConfigError(
                f"another run is at work in {self.path} ({holder}). Wait for it, stop it, or choose another --workdir"
            ) from None
        except OSError as error:
            os.close(lock)
            if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                return "not offered by this file system"  # some network mounts; env.json says so
            raise
        # flock, not the file's existence, is the lock: the kernel drops it when the process dies, SIGKILL included.
        self._lock = lock
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        return "held"

    def _check_config(self) -> None:
        file = self.path / "config.json"
        try:
            stored = json.loads(file.read_bytes())
        except FileNotFoundError:
            if self.primary:
                write_atomic(file, dump_json(self.config))
            return
        except ValueError as error:
            raise ConfigError(f"{file} is not json ({error}); it was not written by this program") from None
        lines = _differences(stored, self.config)
        if lines:
            raise ConfigError(
                f"{self.path} was started with another configuration:\n"
                + "\n".join(lines)
                + "\nGive the old values to go on with it, or choose another --workdir. Nothing was changed."
            )

    def _check_done(self) -> None:
        file = self.path / "DONE"
        try:
            finished = json.loads(file.read_bytes())
            complete = all(self._digest(name) == digest for name, digest in finished.items())
        except FileNotFoundError:
            return
        except (ValueError, AttributeError):
            complete = False
        self.done = complete
        if not complete and self.primary:
            file.unlink()

    def _digest(self, name: str) -> str | None:
        try:
            return hashlib.sha256((self.path / name).read_bytes()).hexdigest()
        except FileNotFoundError:
            return None

    def _add_session(self, locked: str) -> None:
        file = self.path / "env.json"
        try:
            sessions = json.loads(file.read_bytes())
        except (FileNotFoundError, ValueError):
            sessions = []
        now = environment()
        kinds = [entry["devices"][0].partition(":")[0] for entry in (*sessions[:1], now)]
        if not self.done and kinds[0] != kinds[-1]:
            raise ConfigError(
                f"{self.path} was started on a {kinds[0]}, and this is a {kinds[-1]}: their results differ in the last digits, "
                "and what is there already would not fit what is still to do. Go on with it where it was started, or choose "
                "another --workdir. Nothing was changed."
            )
        write_atomic(file, dump_json([*sessions, {**now, "lock": locked}]))

    # -- working ----------------------------------------------------------------------------------------------

    def write(self, name: str, data: bytes) -> None:
        """Write one file of the workdir, atomically; `name` may hold folders."""
        if self.primary:
            write_atomic(self.path / name, data)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write result.json: sorted keys, equal bytes for equal content. Put no times or hosts in it."""
        self.write("result.json", dump_json(result))

    def log(self, event: str, **fields: Any) -> None:
        """Append one line to metrics.jsonl: `{"event": ..., "time": ..., **fields}`."""
        if not self.primary:
            return
        line = {"event": event, "time": _now(), **plain(fields)}
        with open(self.path / "metrics.jsonl", "a+b") as file:
            # A run killed in the middle of a line leaves half of one; start afresh behind it.
            torn = file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
            file.write(b"\n" * bool(torn) + json.dumps(line, ensure_ascii=False).encode() + b"\n")

    @contextlib.contextmanager
    def stage(self, name: str, **fields: Any) -> Iterator[dict[str, Any]]:
        """Time a part of the run and log `{"event": name, "seconds": ...}`, with what is put in the dict."""
        start = time.monotonic()
        extra: dict[str, Any] = dict(fields)
        yield extra
        self.log(name, seconds=round(time.monotonic() - start, 3), **extra)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl so far, without lines that a killed run left torn."""
        lines = []
        with contextlib.suppress(FileNotFoundError):
            for line in (self.path / "metrics.jsonl").read_bytes().splitlines():
                with contextlib.suppress(ValueError):
                    lines.append(json.loads(line))
        return lines

    def sessions(self) -> list[dict[str, Any]]:
        """The entries of env.json, one per start, this one last."""
        return json.loads((self.path / "env.json").read_bytes())

    def finish(self, files: tuple[str, ...] = ("result.json",)) -> None:
        """Write DONE, last of all: the named files with their digests, so that a later start can trust them.

        Raises
        ------
        FileNotFoundError
            One of `files` is not there; then the run is not done, whatever the caller believes.
        """
        if not self.primary:
            return
        digests = {name: self._digest(name) for name in files}
        absent = sorted(name for name, digest in digests.items() if digest is None)
        if absent:
            raise FileNotFoundError(f"{self.path} cannot be marked done: {', '.join(absent)} is not there")
        write_atomic(self.path / "DONE", dump_json(digests))
        self.done = True

    def close(self) -> None:
        """Release the folder for other processes."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def command_line(session: Mapping[str, Any]) -> str:
    """The command of an entry of env.json as it is typed, without the place of the program."""
    first, *rest = map(str, session["command"])
    program = pathlib.PurePath(first)
    if program.suffix == ".py" and program.parent.name in ("experiments", "ports"):
        first = f"python -m {program.parent.name}.{program.stem}"
    return " ".join([first, *map(shlex.quote, rest)])


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def processor() -> str:
    """The CPU's name: what is fast on one maker's may not be on another's."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def environment() -> dict[str, Any]:
    """What may differ between two runs of one configuration: versions, devices, host, command line, time."""
    import jax

    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "started": _now(),
        "python": platform.python_version(),
        "versions": versions,
        "devices": [f"{d.platform}:{d.id} {d.device_kind}" for d in jax.devices()],
        "processes": jax.process_count(),
        "host": socket.gethostname(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "command": sys.argv,
    }
