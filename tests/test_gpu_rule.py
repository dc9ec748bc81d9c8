"""The rule that the tests of -m gpu fail without a GPU."""

from pathlib import Path

import pytest
import torch

pytest_plugins = ["pytester"]
CONFTEST = Path(__file__).with_name("conftest.py")
TESTS = """
import pytest

@pytest.mark.gpu
def test_on_a_gpu(device):
    pass

def test_anywhere(device):
    assert device.type == "cpu"
"""
MARKERS = "[pytest]\nmarkers = gpu\n"


@pytest.fixture
def run_tests(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    """Run two tests by the rules of these, one of them for GPUs, on a machine without one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("SIPE_TEST_DEVICE", raising=False)
    pytester.makeini(MARKERS)
    pytester.makeconftest(CONFTEST.read_text())
    pytester.makepyfile(TESTS)
    return lambda *flags: pytester.runpytest_inprocess(*flags)


def test_without_a_gpu_its_tests_fail_and_say_what_to_do(run_tests):
    result = run_tests("-m", "gpu")
    result.assert_outcomes(errors=3)
    result.stdout.fnmatch_lines(["*there is no CUDA GPU*SIPE_TEST_DEVICE=cpu*"])


def test_a_selection_by_other_marks_skips_them(run_tests):
    run_tests().assert_outcomes(passed=1, skipped=3)


def test_other_tests_need_no_gpu(run_tests):
    run_tests("-m", "not gpu").assert_outcomes(passed=1, deselected=3)


def test_the_variable_names_another_device(run_tests, monkeypatch):
    monkeypatch.setenv("SIPE_TEST_DEVICE", "cpu")
    run_tests("-m", "gpu").assert_outcomes(passed=3, deselected=1)


def test_the_variable_does_not_make_a_gpu(run_tests, monkeypatch):
    monkeypatch.setenv("SIPE_TEST_DEVICE", "cuda")
    run_tests("-m", "gpu").assert_outcomes(errors=3, deselected=1)
