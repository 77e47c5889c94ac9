"""The checkpoint file: what is saved comes back or an error says why, whatever is damaged, full or killed.

Full disks and kills are real: subprocesses under RLIMIT_FSIZE, on a small tmpfs, and ended by SIGKILL at each system
call of a save in turn.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import h5py
import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fluxmpi.drivers import checkpoint, checkpoint_format, generations
from fluxmpi.drivers.checkpoint import SavedRoot, list_generations, newest_good, read, write
from fluxmpi.errors import CheckpointError, InvalidRequest, StorageError
from fluxmpi.kvs.wire import Retention, SavedNamespace, ValueRule, encode_settings

REPOSITORY = Path(__file__).parents[2]


ANY_RETENTION = dict.fromkeys(Retention.__struct_fields__[1:])
"""All fields of a Retention but the namespace, each None."""


def save(path, blobs=(b"a root", b"", b"x" * 5000), *, algorithm="sha256", roots=None, **options):
    refs = [hashlib.new(algorithm, blob).digest() for blob in blobs]
    if roots is None:
        roots = [SavedRoot("primary", 7, refs[0], 1.5)] if refs else []
    return write(path, refs, list(blobs), roots, algorithm=algorithm, instance="f00d", **options)


def blobs_of(path):
    return list(read(path).blobs.values())


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def reseal(path):
    """Make the seal fit what a test has changed, as if a faulty writer had made the file so."""
    with h5py.File(path, "r") as file:
        algorithm = file.attrs["hash_algorithm"]
        data = file.get("bytes")
        at, size = (data.id.get_offset(), data.size) if data is not None else (512, 0)
    with open(path, "r+b") as raw:
        checkpoint_format.Seal.of(raw.fileno(), algorithm, at, size).put(raw.fileno())


def check_told(path, *words):
    """Reading fails with a text that names the file and says ``words``; listing shows the same, and does not fail."""
    with pytest.raises(CheckpointError) as caught:
        read(path)
    for word in (str(path), *words):
        assert word in caught.value.text
    return caught.value.text


# What goes in comes out


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    blobs=st.lists(st.binary(max_size=3000) | st.just(b"m" * (1 << 20)), max_size=40, unique=True),
    root_rows=st.lists(
        st.tuples(
            st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30),
            st.integers(0, 2**64 - 1),
            st.integers(0, 10**6),
            st.floats(allow_nan=False),
        ),
        max_size=8,
    ),
    algorithm=st.sampled_from(["sha256", "sha1"]),
)
def test_round_trip(tmp_path, blobs, root_rows, algorithm):
    refs = [hashlib.new(algorithm, blob).digest() for blob in blobs]
    roots = [SavedRoot(name, version, refs[at % len(refs)], when) for name, version, at, when in root_rows if refs]
    path = tmp_path / "run.ckpt"
    made = write(path, refs, blobs, roots, algorithm=algorithm, instance="f00d", keep=1)
    back = read(path)
    assert list(back.blobs.items()) == list(zip(refs, blobs, strict=True))
    assert back.roots == tuple(roots)
    assert (back.algorithm, back.instance, back.created) == (algorithm, "f00d", made.created)
    assert list_generations(path, verify=True) == [made]
    assert made.file_bytes == path.stat().st_size
    assert names(tmp_path) == ["run.ckpt"]


def test_more_blobs_than_one_system_call_takes(tmp_path):
    blobs = [b"%d" % number for number in range(3000)] + [bytes([number]) * 700_001 for number in range(5)]
    save(tmp_path / "run.ckpt", blobs)
    assert blobs_of(tmp_path / "run.ckpt") == blobs


def test_blobs_from_an_iterator_with_their_sizes_told(tmp_path):
    blobs = [b"one", b"", b"three"]
    refs = [hashlib.sha256(blob).digest() for blob in blobs]
    options = {"algorithm": "sha256", "instance": "f00d"}
    write(tmp_path / "run.ckpt", refs, iter(blobs), [], sizes=map(len, blobs), **options)
    assert blobs_of(tmp_path / "run.ckpt") == blobs
    for wrong in ([b"one", b"x", b"hree"], blobs[:2], [*blobs, b"four"]):
        with pytest.raises((AssertionError, ValueError)):
            write(tmp_path / "run.ckpt", refs, iter(wrong), [], sizes=map(len, blobs), **options)
    assert names(tmp_path) == ["run.ckpt"]
    assert blobs_of(tmp_path / "run.ckpt") == blobs


def test_progress_rises_to_the_total(tmp_path):
    steps = []
    save(tmp_path / "run.ckpt", [bytes([n]) * (1 << 19) for n in range(5)], progress=lambda *step: steps.append(step))
    assert steps == [(1 << 20, 5 << 19), (2 << 20, 5 << 19), (5 << 19, 5 << 19)]
    steps.clear()
    read(tmp_path / "run.ckpt", progress=lambda *step: steps.append(step))
    assert steps[-1] == (5 << 19, 5 << 19)
    assert len(steps) == 3


def test_the_reader_in_the_documentation(tmp_path, monkeypatch):
    blobs = [b"a root", b"", "größer".encode() * 1000]
    save(tmp_path / "run.ckpt", blobs)
    monkeypatch.chdir(tmp_path)
    page = (REPOSITORY / "docs" / "checkpoint-format.md").read_text()
    [snippet] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    found: dict = {}
    exec(snippet, found)
    assert list(found["blobs"].values()) == blobs
    assert found["roots"] == [("primary", 7, hashlib.sha256(b"a root").digest(), 1.5)]


def test_the_file_says_what_it_is_and_is_private(tmp_path):
    save(tmp_path / "run.ckpt")
    head = (tmp_path / "run.ckpt").read_bytes()[:512]
    assert head.startswith(b"fluxmpi-checkpoint 2\nan HDF5 file of ")
    assert (tmp_path / "run.ckpt").stat().st_mode & 0o777 == 0o600


def test_arguments_out_of_range(tmp_path):
    for options in ({"keep": 0}, {"keep": 101}):
        with pytest.raises(InvalidRequest, match="keep="):
            save(tmp_path / "run.ckpt", **options)
    with pytest.raises(InvalidRequest, match="md5"):
        save(tmp_path / "run.ckpt", algorithm="md5")
    assert names(tmp_path) == []


# Damage


def test_a_missing_file(tmp_path):
    check_told(tmp_path / "none.ckpt", "no such file")
    check_told(tmp_path / "none" / "none.ckpt", "no such file")
    with pytest.raises(CheckpointError, match="no such file"):
        list_generations(tmp_path / "none" / "none.ckpt")


@pytest.mark.parametrize("content", [b"TITLE,VALUE\n", b"\x89HDF\r\n\x1a\n" + bytes(500)])
def test_a_foreign_file_is_neither_read_nor_replaced(tmp_path, content):
    path = tmp_path / "results.h5"
    path.write_bytes(content)
    check_told(path, "does not begin with 'fluxmpi-checkpoint'", "checkpoint save")
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        save(path)
    assert path.read_bytes() == content
    assert names(tmp_path) == ["results.h5"]


def test_a_real_hdf5_file_that_is_not_ours(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=512) as file:
        file["x"] = [1, 2, 3]
        file.attrs["hash_algorithm"] = "sha256"
    check_told(tmp_path / "a.h5", "does not begin with")
    reseal(tmp_path / "a.h5")
    check_told(tmp_path / "a.h5", "without the attribute format=fluxmpi-checkpoint")


def test_a_folder(tmp_path):
    check_told(tmp_path, "folder")
    with pytest.raises(StorageError, match="folder"):
        save(tmp_path)


def test_what_is_no_file_is_neither_opened_nor_replaced(tmp_path):
    """Nobody writes to this pipe: who opens it waits for ever. And root who replaced /dev/null would break the node."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    check_told(path, "it is a device, a pipe or a socket")
    with pytest.raises(CheckpointError, match="saving would replace it"):
        save(path)
    assert path.is_fifo()
    assert names(tmp_path) == ["pipe"]


def test_a_newer_format(tmp_path):
    path = tmp_path / "run.ckpt"
    save(path, [b"older"])
    save(path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"checkpoint 2\n", b"checkpoint 3\n", 1))
    text = check_told(path, "format 3", "up to 2", "use the fluxmpi that wrote it")
    assert "mv" not in text, "it is not damaged"


def as_format_1(path):
    """Make the file one that the fluxmpi before wrote: format 1, without settings."""
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 1
        del file["roots/settings"]
    reseal(path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"checkpoint 2\n", b"checkpoint 1\n", 1))


def test_a_file_of_format_1_is_read(tmp_path):
    path = tmp_path / "run.ckpt"
    root = hashlib.sha256(b"a root").digest()
    save(path, roots=[SavedRoot("primary", 7, root, 1.5, '{"owner": 3}')])
    as_format_1(path)
    found = read(path)
    assert found.roots == (SavedRoot("primary", 7, root, 1.5, ""),)
    assert checkpoint.saved_namespaces(found.path, found.roots) == [SavedNamespace("primary", 7, root, 1.5)]


def test_settings_come_back_and_unknown_ones_are_ignored(tmp_path):
    path = tmp_path / "run.ckpt"
    root = hashlib.sha256(b"a root").digest()
    saved = SavedNamespace("work", 7, root, 1.5, 1000, Retention("work", 40, 2.5, values=[ValueRule("job.**", 3)]), 12)
    text = encode_settings(saved)
    assert json.loads(text) == {
        "owner": 1000,
        "retention": ANY_RETENTION | {"count": 40, "age_s": 2.5, "values": [["job.**", 3]]},
        "keys": 12,
    }
    later = json.dumps(json.loads(text) | {"colour": "red", "retention": json.loads(text)["retention"] | {"moon": 1}})
    save(path, roots=[SavedRoot("work", 7, root, 1.5, later)])
    found = read(path)
    assert checkpoint.saved_namespaces(found.path, found.roots) == [saved]


@pytest.mark.parametrize("text", ["{", "[]", '{"owner": "me"}', '{"retention": {"count": "many"}}'])
def test_settings_that_do_not_decode(tmp_path, text):
    path = tmp_path / "run.ckpt"
    root = hashlib.sha256(b"a root").digest()
    save(path, roots=[SavedRoot("primary", 7, root, 1.5, text)])
    found = read(path)
    with pytest.raises(CheckpointError, match="settings of a namespace do not decode"):
        checkpoint.saved_namespaces(found.path, found.roots)


@pytest.mark.parametrize("keep", [0, 1, 300, 511, 512, 3000, 0.5, -5000, -1])
def test_a_truncated_file(tmp_path, keep):
    path = tmp_path / "run.ckpt"
    save(path)
    size = path.stat().st_size
    os.truncate(path, int(size * keep) if isinstance(keep, float) else keep if keep >= 0 else size + keep)
    with pytest.raises(CheckpointError):
        read(path)
    if keep != 1 and keep != 300:
        check_told(path, {0: "empty"}.get(keep, f"{size:,}" if keep != 511 else ""))


def test_a_file_with_something_appended(tmp_path):
    save(tmp_path / "run.ckpt")
    with open(tmp_path / "run.ckpt", "ab") as file:
        file.write(b"x")
    check_told(tmp_path / "run.ckpt", "should have")


def test_any_changed_byte_is_found_or_harmless(tmp_path):
    """Also that HDF5 never sees a damaged structure: it would crash or hang at some of these."""
    path = tmp_path / "run.ckpt"
    blobs = [b"a root", b"", b"x" * 300]
    save(path, blobs)
    good = path.read_bytes()
    harmless = 0
    for at in [*range(0, 512, 3), *range(512, len(good), 29), *range(len(good) - 310, len(good), 7)]:
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        try:
            back = read(path)
        except CheckpointError:
            continue
        assert list(back.blobs.values()) == blobs
        assert back.roots == (SavedRoot("primary", 7, hashlib.sha256(b"a root").digest(), 1.5),)
        assert at < 512, "only the text at the end of the seal guards nothing"
        harmless += 1
    assert harmless < 512 / 3


def test_a_wrong_blob_is_named(tmp_path):
    path = tmp_path / "run.ckpt"
    save(path, [b"a root", b"second" * 100])
    content = path.read_bytes()
    path.write_bytes(content.replace(b"secondsecond", b"secondSecond", 1))
    digest = hashlib.sha256(b"second" * 100).hexdigest()
    check_told(path, "blob 1", f"sha256-{digest}", "damaged")
    assert read(path, verify=False).roots, "when asked not to look"
    assert [item.state for item in list_generations(path)] == ["ok"], "it was not asked to read all"
    [item] = list_generations(path, verify=True)
    assert item.state == "damaged"
    assert "blob 1" in item.damage


def offsets_fall(file):
    file["offsets"][1] = 10**6


def offsets_end_early(file):
    file["offsets"][-1] -= 1


def offsets_start_late(file):
    file["offsets"][0] = 1


def narrow_digests(file):
    digests = file["digests"][:, :20]
    del file["digests"]
    file["digests"] = digests


def signed_offsets(file):
    offsets = file["offsets"][:].astype("i8")
    del file["offsets"]
    file["offsets"] = offsets


def foreign_hash(file):
    file.attrs["hash_algorithm"] = "sha1"


def lost_root(file):
    file["roots/ref"][0, 0] ^= 1


def no_attribute(file):
    del file.attrs["blob_count"]


def roots_of_two_lengths(file):
    del file["roots/time"]
    file["roots/time"] = numpy.zeros(3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (offsets_fall, "offsets do not rise"),
        (offsets_end_early, "offsets do not rise"),
        (offsets_start_late, "offsets do not rise"),
        (narrow_digests, "'digests' is (3, 20)"),
        (signed_offsets, "'offsets' is (4,) of int64"),
        (foreign_hash, "'digests' is (3, 32) of uint8, not (3, 20)"),
        (lost_root, "the root of primary version 7"),
        (no_attribute, "blob_count"),
        (roots_of_two_lengths, "'roots/time'"),
    ],
)
def test_a_wrong_content_under_a_right_seal(tmp_path, change, words):
    path = tmp_path / "run.ckpt"
    save(path)
    with h5py.File(path, "r+") as file:
        change(file)
    check_told(path, "the file is damaged")
    reseal(path)
    check_told(path, words)
    [item] = list_generations(path)
    assert words in item.damage


@pytest.mark.parametrize("name", ["bytes", "offsets", "digests", "roots", "roots/ref", "roots/namespace"])
def test_a_missing_dataset(tmp_path, name):
    path = tmp_path / "run.ckpt"
    save(path)
    with h5py.File(path, "r+") as file:
        del file[name]
    reseal(path)
    check_told(path, name, "missing" if name != "roots" else "")


def test_damage_names_the_good_generation_and_the_way_to_it(tmp_path):
    path = tmp_path / "run ckpt"
    for blob in (b"first", b"second", b"third"):
        save(path, [blob])
    for name in (path, tmp_path / "run ckpt.1"):
        os.truncate(name, 600)
    text = check_told(path, f"'{path}.2'", "is good", f"fluxmpi checkpoint list '{path}'")
    assert [item.state for item in list_generations(path)] == ["damaged", "damaged", "ok"]
    assert newest_good(path).path == f"{path}.2"
    [command] = re.findall(r"`(mv .*?)`", text)
    subprocess.run(["sh", "-ec", command], check=True)
    assert blobs_of(path) == [b"first"]
    save(path, [b"fourth"])
    assert blobs_of(f"{path}.1") == [b"first"]


def test_a_vanished_newest_file_names_the_way_to_the_one_before(tmp_path):
    path = tmp_path / "run.ckpt"
    save(path, [b"first"])
    save(path, [b"second"])
    path.unlink()
    text = check_told(path, f"'{path}.1'")
    subprocess.run(["sh", "-ec", re.findall(r"`(mv .*?)`", text)[0]], check=True)
    assert blobs_of(path) == [b"first"]


def test_no_good_generation(tmp_path):
    path = tmp_path / "run.ckpt"
    save(path)
    save(path)
    os.truncate(path, 0)
    os.truncate(f"{path}.1", 700)
    with pytest.raises(CheckpointError, match=r"run\.ckpt': it is empty; .*run\.ckpt\.1': it has 700 bytes"):
        newest_good(path)
    save(path, [b"third"])
    assert newest_good(path).path == str(path)


# Generations


def test_the_newest_is_the_plain_name_and_keep_are_kept(tmp_path):
    path = tmp_path / "run.ckpt"
    for number in range(6):
        save(path, [b"%d" % number], keep=3)
    assert names(tmp_path) == ["run.ckpt", "run.ckpt.1", "run.ckpt.2"]
    assert [blobs_of(item.path) for item in list_generations(path)] == [[b"5"], [b"4"], [b"3"]]
    save(path, [b"6"], keep=5)
    save(path, [b"7"], keep=5)
    assert [blobs_of(item.path)[0] for item in list_generations(path)] == [b"7", b"6", b"5", b"4", b"3"]
    save(path, [b"8"], keep=1)
    assert names(tmp_path) == ["run.ckpt"]


def test_strangers_beside_it_are_left_alone(tmp_path):
    strangers = ["run.ckpt.100", "run.ckpt.2024", "run.ckpt.01", "run.ckpt.bak", "run.ckpt.1.bak", "my-run.ckpt.1"]
    for name in strangers:
        (tmp_path / name).write_text("mine")
    for _ in range(4):
        save(tmp_path / "run.ckpt", keep=2)
    assert names(tmp_path) == sorted([*strangers, "run.ckpt", "run.ckpt.1"])
    assert all((tmp_path / name).read_text() == "mine" for name in strangers)


def test_a_symbolic_link_stays_one(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "run.ckpt").symlink_to(tmp_path / "scratch" / "real.ckpt")
    save(tmp_path / "run.ckpt", [b"first"])
    save(tmp_path / "run.ckpt", [b"second"])
    assert names(tmp_path / "scratch") == ["real.ckpt", "real.ckpt.1"]
    assert (tmp_path / "run.ckpt").is_symlink()
    assert blobs_of(tmp_path / "run.ckpt") == [b"second"]


def test_what_a_killed_writer_left_is_taken_over(tmp_path):
    path = tmp_path / "run.ckpt"
    (tmp_path / "run.ckpt.fluxmpi-tmp").write_bytes(b"half of something" * 10_000)
    (tmp_path / "run.ckpt.1.fluxmpi-tmp").write_bytes(b"half of a copy")
    save(path)
    assert names(tmp_path) == ["run.ckpt"]
    assert list_generations(path, verify=True)[0].state == "ok"


def test_a_second_writer_is_refused_while_the_first_is_at_it(tmp_path):
    path = tmp_path / "run.ckpt"
    tried: list[str] = []

    def meddle(done, total):
        with pytest.raises(StorageError, match="another process is saving to it") as caught:
            save(path, [b"second"])
        tried.append(caught.value.text)

    save(path, [b"first"], progress=meddle)
    assert tried
    assert blobs_of(path) == [b"first"]
    assert names(tmp_path) == ["run.ckpt"]


def test_a_reader_keeps_the_file_that_it_opened(tmp_path):
    path = tmp_path / "run.ckpt"
    save(path, [b"first"])
    with checkpoint.reading(path) as reader:
        save(path, [b"second"], keep=1)
        assert [blobs for _, blobs in reader.batches()] == [[b"first"]]


def test_a_save_after_a_kill_between_two_steps_loses_no_older_one(tmp_path):
    path = tmp_path / "run.ckpt"
    save(path, [b"older"])
    save(path, [b"newer"])
    os.rename(f"{path}.1", f"{path}.2")  # killed after this step of the rotation …
    save(path, [b"first after"])
    assert [blobs_of(item.path)[0] for item in list_generations(path)] == [b"first after", b"newer", b"older"]
    os.unlink(f"{path}.2")
    os.rename(f"{path}.1", f"{path}.2")
    os.link(path, f"{path}.1")  # … or after this one
    save(path, [b"second after"])
    assert [blobs_of(item.path)[0] for item in list_generations(path)] == [b"second after", b"first after", b"newer"]


def test_a_listing_between_two_steps_shows_no_file_twice(tmp_path):
    path = tmp_path / "run.ckpt"
    save(path)
    os.link(path, f"{path}.1")
    assert [item.path for item in list_generations(path)] == [str(path)]


def test_saves_from_threads_do_not_mix(tmp_path):
    threads = [threading.Thread(target=save, args=(tmp_path / f"{n}.ckpt", [b"%d" % n])) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [blobs_of(tmp_path / f"{n}.ckpt") for n in range(4)] == [[b"%d" % n] for n in range(4)]


# Disks that refuse


def test_folders_that_cannot_be(tmp_path):
    with pytest.raises(StorageError, match="No such file or directory; the folder does not exist: make it first"):
        save(tmp_path / "none" / "run.ckpt")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="a part of the path is a file"):
        save(tmp_path / "file" / "run.ckpt")


SAVE = """
import hashlib, os, resource, sys
from fluxmpi.drivers.checkpoint import SavedRoot, write
from fluxmpi.errors import StorageError
def save(path, size, **options):
    blobs = [b"a root", *(bytes([number]) * (size // 50) for number in range(50))]
    refs = [hashlib.sha256(blob).digest() for blob in blobs]
    write(path, refs, blobs, [SavedRoot("primary", 7, refs[0], 1.5)], algorithm="sha256", instance="f00d", **options)
"""

LIMITED = (
    SAVE
    + """
path = sys.argv[1]
save(path, 1000)
save(path, 2000)
for limit in (0, 1, 511, 4000, 9000, 20_000, 500_000, 1_100_000, 3_000_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        save(path, 3_000_000)
    except StorageError as error:
        print(limit, error.text)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print("alive")
"""
)


def test_a_limit_on_the_size_of_files_wherever_it_strikes(tmp_path):
    path = tmp_path / "run.ckpt"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, path], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    lines = done.stdout.splitlines()
    assert lines.pop() == "alive", done.stderr
    assert [int(line.split()[0]) for line in lines] == [0, 1, 511, 4000, 9000, 20_000, 500_000, 1_100_000, 3_000_000]
    for line in lines:
        assert f"'{path}'" in line
        assert os.strerror(errno.EFBIG) in line
        assert "ulimit -f" in line
    assert done.stderr == ""
    assert names(tmp_path) == ["run.ckpt", "run.ckpt.1"]
    assert [item.byte_count for item in list_generations(path, verify=True)] == [2006, 1006]


FULL = (
    SAVE
    + """
path = sys.argv[1]
save(path, 100_000)
failures = 0
for size in (150_000, 200_000, 500_000, 2_000_000):
    try:
        save(path, size)
    except StorageError as error:
        failures += 1
        print(error.text)
from fluxmpi.drivers.checkpoint import list_generations
print(failures, os.listdir(os.path.dirname(path)), [item.damage for item in list_generations(path, verify=True)])
"""
)


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare(1)")
def test_a_full_disk(tmp_path):
    in_tmpfs = 'mount -t tmpfs -o size=256k none "$1" && exec "$2" -c "$3" "$1/run.ckpt"'
    space = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*space, "mount", "-t", "tmpfs", "none", tmp_path], capture_output=True).returncode:
        pytest.skip("may not mount in a user namespace here")
    done = subprocess.run(
        [*space, "sh", "-c", in_tmpfs, "sh", tmp_path, sys.executable, FULL],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    *told, last = done.stdout.splitlines()
    assert len(told) == 4, done.stderr
    for line in told:
        assert "No space left on device; free some space there" in line
    assert last == "4 ['run.ckpt'] [None]"
    assert done.stderr == ""


# Kills

KILLED = (
    SAVE
    + """
import h5py, importlib.metadata
path, hard_links = sys.argv[1], sys.argv[2] == "link"
CALLS = ["open", "ftruncate", "pwrite", "pwritev", "fsync", "replace", "link", "unlink", "close"]
if not hard_links:  # as on a file system that has none
    def link(*names):
        raise PermissionError(1, "no hard links")
    os.link = link
def arm(fatal):
    calls = 0
    def deadly(call):
        def wrapped(*args, **options):
            nonlocal calls
            calls += 1
            if calls == fatal:
                os.kill(os.getpid(), 9)
            return call(*args, **options)
        return wrapped
    for name in CALLS:
        setattr(os, name, deadly(getattr(os, name)))
fatal = status = 1
while status:  # one child a step: it saves over what the last one left, and dies one call later than that did
    size = 1000 * (1 + fatal)
    child = os.fork()
    if child == 0:
        arm(fatal)
        save(path, size)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(6 + size, status, flush=True)
    sys.stdin.readline()
    fatal += 1
"""
)


@pytest.mark.parametrize("links", ["link", "copy"])
def test_a_kill_at_any_system_call_leaves_a_good_newest_file(tmp_path, links):
    path = tmp_path / "run.ckpt"
    for number in range(3):
        save(path, [b"%d" % number])
    newest, kills, moved = 1, 0, 0
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, path, links], cwd=REPOSITORY, text=True, stdin=-1, stdout=-1, bufsize=1
    ) as harness:
        assert harness.stdin
        assert harness.stdout
        for line in harness.stdout:
            attempted, status = map(int, line.split())
            found = list_generations(path, verify=True)
            assert found[0].path == str(path), "FILE is always there"
            assert [item.damage for item in found] == [None] * len(found)
            assert found[0].byte_count in (newest, attempted), "either the save happened or it did not"
            if found[0].byte_count != newest:
                assert found[1].byte_count == newest, "and what it replaced is the one before"
                moved += 1
            newest = found[0].byte_count
            kills += status == 9
            if kills % 3 == 0:  # so that kills meet what up to two earlier ones left, and not ever more of it
                newest = save(path, [b"whole"]).byte_count
                assert names(tmp_path) == ["run.ckpt", "run.ckpt.1", "run.ckpt.2"], "nothing is left over"
            harness.stdin.write("\n")
        assert harness.wait(timeout=30) == 0
    assert kills > 15
    assert moved > 3, "some kills came after the commit point"
    assert blobs_of(path), "the last one was let live"


def test_hdf5_loads_at_the_first_use_only():
    """An idle broker stays small: importing the module loads neither h5py nor numpy."""
    code = "import sys, fluxmpi.drivers.checkpoint; print(sorted({'h5py', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_failure_after_the_renaming_is_indefinite(tmp_path, monkeypatch):
    """The folder cannot be synced: the new file is there, and may be gone after a crash of the host."""
    path = tmp_path / "run.ckpt"
    save(path)
    with pytest.raises(StorageError) as raised:
        save(tmp_path / "none" / "run.ckpt")
    assert raised.value.definite

    def fail(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(generations, "sync_folder", fail)
    with pytest.raises(StorageError, match="Input/output error") as raised:
        save(path, [b"a newer root"])
    assert not raised.value.definite
    assert blobs_of(path) == [b"a newer root"]
    assert blobs_of(f"{path}.1") == [b"a root", b"", b"x" * 5000]
