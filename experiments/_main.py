"""What every binary shares: flags from its config, the compilation cache, signals, and the meaning of its
exit code.

| code | meaning                                                                        |
|------|--------------------------------------------------------------------------------|
| 0    | done                                                                           |
| 1    | a flag, a configuration, or an unexpected error                                |
| 3    | done, but a check that was asked for did not hold                              |
| 4    | a state became NaN or infinite                                                 |
| 5    | data or a checkpoint is missing or broken                                      |
| 75   | stopped early (SIGTERM, full disk): the same command goes on where it stopped  |
| 130  | Ctrl-C: the same command goes on where it stopped                              |
"""

import errno
import hashlib
import os
import pathlib
import platform
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from absl import app, flags, logging

from experiments._flags import define, parse, unknown
from jaxdiff.errors import ConfigError, JaxdiffError, MissingDataError, Resumable

flags.disclaim_key_flags()

ONE_DEVICE = (
    "there is no --mesh here: this fits and trains on one device, and samples, where it does, on all of this process. Binaries for "
    "large networks take one: study, invert, fidelity, intervene, generate, encode_latents, finetune, train_motion_field and control"
)
INTERRUPTED = 130
GOES_ON = "Nothing already stored is lost; the same command goes on from there."


def run_binary(
    run: Callable[..., int | None],
    config_class: type,
    *,
    workdir: bool = True,
    positional: str | None = None,
    distributed: bool = False,
) -> NoReturn:
    """Parse the command line into `config_class`, call `run(config, workdir)`, and exit.

    Parameters
    ----------
    run : `run(config, workdir: Path) -> exit code or None`, or `run(config)` where `workdir` is False.
    config_class : frozen dataclass; its fields become the flags (see `experiments._flags`).
    workdir : also declare the required flag `--workdir`. It is not part of the config: a moved folder is still the same run.
    positional : a tuple field of the config that also takes the arguments without a name.
    distributed : also declare the flag `--distributed`: `run` knows how several processes share its work.

    Errors are printed as one block on stderr and without a traceback, which `--debug` or JAXDIFF_DEBUG=1
    adds.
    """
    names = define(config_class)
    if workdir:
        flags.DEFINE_string("workdir", None, "Folder of the run: made, or reopened to go on.", required=True)
    flags.DEFINE_boolean("debug", bool(os.environ.get("JAXDIFF_DEBUG")), "Show the traceback of an error.")
    flags.DEFINE_string(
        "compilation_cache",
        os.environ.get("JAX_COMPILATION_CACHE_DIR", str(default_cache())),
        "Folder where compiled programs are kept for the next start; empty for none.",
    )
    flags.DEFINE_integer(
        "cpu_devices", None, "Take this machine's CPU for so many devices: to try a mesh.", lower_bound=1
    )
    if distributed:
        flags.DEFINE_string(
            "distributed",
            "",
            "This is one of several processes: auto (TPU pods, Slurm, Open MPI), or host:port,processes,index with the address "
            "of process 0.",
        )
    common = ["debug", "compilation_cache", "cpu_devices", "help"]
    common += ["workdir"] * workdir + ["distributed"] * distributed

    def parser(argv: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(argv)
        except flags.UnrecognizedFlagError as error:
            if error.flagname == "mesh":
                _stop(ConfigError(ONE_DEVICE))
            _stop(unknown("flag", f"--{error.flagname}", [f"--{n}" for n in names + common]))
        except flags.Error as error:
            _block(str(error))
            sys.exit(1)
        if len(rest) > 1 and positional is not None:
            flags.FLAGS[positional].value = [*(flags.FLAGS[positional].value or ()), *rest[1:]]
        elif len(rest) > 1:
            _block(f"unexpected argument {rest[1]!r}; every setting is a flag, --name=value")
            sys.exit(1)
        return rest[:1]

    def main(_: list[str]) -> NoReturn:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # jax logs every backend that it does not find
        code = guarded(lambda: _call(run, config_class, workdir), debug=flags.FLAGS.debug)
        if code in (Resumable.exit_code, INTERRUPTED):
            # Threads of the runtime may still be at what was stopped, and crash when the interpreter goes away under them.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        sys.exit(code)

    app.run(main, flags_parser=parser)
    raise AssertionError("absl's app.run returned")


def _call(run: Callable[..., int | None], config_class: type, workdir: bool) -> int | None:
    config: Any = parse(config_class)
    use_cache(flags.FLAGS.compilation_cache)
    if flags.FLAGS.cpu_devices is not None:
        pretend(flags.FLAGS.cpu_devices)
    if "distributed" in flags.FLAGS and flags.FLAGS.distributed:
        from jaxdiff.processes import join

        join(flags.FLAGS.distributed)
    return run(config, pathlib.Path(flags.FLAGS.workdir)) if workdir else run(config)


def pretend(devices: int) -> None:
    """Let jax see so many CPU devices and no other; before it has looked."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)


def guarded(work: Callable[[], int | None], *, debug: bool = False) -> int:
    """Run `work` and return the exit code that says how it ended; see the table in the module's docstring."""
    stopped: list[int] = []

    def stop(number: int, _: Any) -> None:
        stopped.append(number)
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
        raise KeyboardInterrupt  # for both: jax takes an Exception that comes while it reads its cache for the cache's

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return int(work() or 0)
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        code, message = verdict(error, stopped[0] if stopped else None)
        _block(message)
        return code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def verdict(error: BaseException, stopped: int | None = None) -> tuple[int, str]:
    """Exit code and message of an error; `stopped` is the signal that arrived, if one did.

    What is raised inside a callback of a jitted program comes out wrapped in an error of the runtime, so the
    whole chain of causes is searched, and a signal that arrived decides whatever it was turned into on the
    way.
    """
    if stopped == signal.SIGTERM:
        return Resumable.exit_code, "stopped by SIGTERM. " + GOES_ON
    if stopped == signal.SIGINT or isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted. " + GOES_ON
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    for link in chain:
        if isinstance(link, JaxdiffError):
            return link.exit_code, str(link)
    for link in chain:
        if isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" while writing {link.filename}" if link.filename else ""
            return Resumable.exit_code, f"the disk is full{where}. Free some space. {GOES_ON}"
    if isinstance(error, FileNotFoundError):
        return MissingDataError.exit_code, str(error)
    if "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, MemoryError):
        return (
            1,
            f"out of memory: use fewer clips at once, or a smaller size or frame count.\n{str(error)[:600]}",
        )
    place = traceback.extract_tb(error.__traceback__)
    at = f" ({place[-1].filename}:{place[-1].lineno})" if place else ""
    return 1, f"unexpected {type(error).__name__}: {error}{at}\n--debug shows the traceback."


def _stop(error: JaxdiffError) -> NoReturn:
    _block(str(error))
    sys.exit(error.exit_code)


def _block(message: str) -> None:
    print(f"\nerror: {message.strip()}\n", file=sys.stderr, flush=True)


def default_cache() -> pathlib.Path:
    """~/.cache/jaxdiff/xla/<processor>: a program compiled for one processor must not be run on another."""
    base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    text = platform.platform() + platform.processor()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        text += "".join(line for line in cpuinfo.read_text().splitlines() if line.startswith("flags"))
    return base / "jaxdiff" / "xla" / hashlib.sha256(text.encode()).hexdigest()[:12]


def use_cache(folder: str) -> None:
    """Keep every compiled program in `folder`; a folder that cannot be made means keeping none."""
    import jax

    try:
        if not folder:
            raise OSError("no folder asked for")
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
