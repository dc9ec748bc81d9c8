"""Results of a stage: each image once, replaced images again, unreadable ones named."""

import contextlib

import pytest
import torch

from data.datasets import UnreadableSample
from data.registry import Samples
from errors import InputError, SkippedError
from tool import results as results_module
from tool.context import Context
from tool.options import ResultPolicy
from tool.outputs import read_json
from tool.results import Results

SETTINGS = {"map": "is_cam"}
CPU = torch.device("cpu")


class OneOfTwo(Context):
    """One of two processes; the other has two images to do and waits for nobody."""

    def barrier(self) -> None:
        pass

    def all_gather_object(self, value: int) -> list[int]:
        return [value, 2]


def make_results(folder, context: Context, strict: bool = False) -> Results:
    policy = ResultPolicy(overwrite=False, strict=strict)
    return Results(folder, "make_cam", SETTINGS, context, policy)


def test_unfinished_is_this_processs_share_of_what_is_not_done(tmp_path, capsys):
    results = make_results(tmp_path, OneOfTwo(CPU, 0, 2))
    samples = Samples.of((name, str(tmp_path / name), "") for name in "abcdef")
    todo = results.unfinished(samples, lambda sample: sample.name in "bcf", kilobytes=1)
    assert todo == [0, 4]  # of a, c and e
    printed = capsys.readouterr().out
    assert printed.startswith("6 images, 4 of them")  # two are the other process's


def test_an_image_replaced_by_one_that_cannot_be_read_stays_to_do(tmp_path):
    """Its result is the former image's, and newer than it."""
    image = tmp_path / "a.jpg"
    samples = Samples.of([("a", str(image), "")])
    for content, expected in ((b"good", []), (b"damaged", [0]), (b"damaged", [0])):
        image.write_bytes(content)
        context = Context(CPU)
        with context.stack:
            results = make_results(tmp_path / "cam", context)
            todo = results.unfinished(samples, lambda sample: True, kilobytes=1)
            assert todo == expected
            unreadable = []
            for sample in samples.select(todo):
                unreadable.append(UnreadableSample(sample, "a.jpg: is damaged"))
            assert list(results.readable(unreadable)) == []
            with pytest.raises(SkippedError) if todo else contextlib.nullcontext():
                results.finish()


class Recorder(Context):
    """A process that notes whether skipped.json is there when it waits for the others."""

    def barrier(self) -> None:
        self.seen.append((self.folder / "skipped.json").is_file())


def test_all_processes_wait_for_skipped_json_before_one_ends_with_an_error(tmp_path):
    context = Recorder(CPU)
    object.__setattr__(context, "seen", [])
    object.__setattr__(context, "folder", tmp_path)
    with context.stack:
        results = make_results(tmp_path, context)
        results.skipped["a"] = "a.jpg: is damaged"
        with pytest.raises(SkippedError):
            results.finish()
    assert context.seen[-1]
    assert read_json(tmp_path / "skipped.json") == {"a": "a.jpg: is damaged"}


def test_strict_stops_at_the_first_unreadable_image(tmp_path):
    sample = Samples.of([("a", "a.jpg", "")])[0]
    context = Context(CPU)
    with context.stack:
        results = make_results(tmp_path, context, strict=True)
        items = results.readable([1, UnreadableSample(sample, "a.jpg: is damaged"), 2])
        assert next(items) == 1
        with pytest.raises(InputError, match=r"^a\.jpg: is damaged$"):
            next(items)


def test_every_unreadable_header_is_named(tmp_path, capsys):
    rows = []
    for name in ("a", "b"):
        (tmp_path / f"{name}.jpg").write_bytes(b"no image")
        rows.append((name, str(tmp_path / f"{name}.jpg"), ""))
    with pytest.raises(InputError, match=f"^{tmp_path / 'a.jpg'}: .*and 1 others"):
        results_module.check_images(Samples.of(rows), 0, Context(CPU))
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'b.jpg'}: ")
