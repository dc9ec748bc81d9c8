"""Time and peak memory of several versions of the same work, and how far their results differ."""

import contextlib
import ctypes
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch

from errors import InputError
from tool import cam_file
from tool.context import Context, check_precision

PEAK_SIDE_ON_GPU = 8192  # of the matrices that a processor's peak is measured with
PEAK_TRIES = 5
MEBIBYTE = 2**20

Outcome = Callable[[], dict[str, Any]]  # gives the results of a call, outside of its time
Work = Callable[[Context], Outcome]  # may count its operations, as `sections.Step` does


@dataclass(frozen=True)
class Section:
    """Versions of the same work, the project's first.

    Attributes:
        images: how many of them a call of each version handles.
        tolerances: name of a result -> by how much versions may differ in it; empty: not compared.
    """

    versions: dict[str, Work]
    images: dict[str, int]
    tolerances: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """How often each version is called: so many times, unless the section has taken too long."""

    repeats: int
    seconds: float


class Peak(NamedTuple):
    """What a processor reaches in one large matrix product."""

    tflops: float
    precision: str  # of torch's dtypes


class Call(NamedTuple):
    """One timed call."""

    outcome: Outcome
    seconds: float
    megabytes: float = 0  # that it added to the memory held before it, at its peak, if measured


@dataclass
class Measurement:
    """All timed calls of a version."""

    operations: int  # floating-point, of one call; 0 if they are not counted
    calls: list[Call] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return float(np.median([call.seconds for call in self.calls]))


class Problems:
    """What goes wrong in a section: the other versions may well work."""

    def __init__(self):
        self.lines: list[str] = []

    @contextlib.contextmanager
    def noted(self, version: str) -> Iterator[None]:
        """Note an error of a version instead of raising it."""
        try:
            yield
        except Exception as error:
            self.lines.append(f"{version}: {error!r:.200}")


def measure(
    build: Callable[[], Section], context: Context, limits: Limits, peak: Peak
) -> dict[str, Any]:
    """Build and measure a section.

    Returns its rows, the differences of the results, and an error: which differences are too large
    and which versions failed; None if all is well.
    """
    start = time.perf_counter()
    section = build()
    problems = Problems()
    differences = {}
    if section.tolerances:
        differences = largest_differences(section, context.device)
    for name, value in differences.items():
        if not value <= section.tolerances[name]:  # NaN is too large, too
            problems.lines.append(f"{name} differs by {value:.1e}")
    measurements = prepare(section, context, problems)
    for repeat in range(limits.repeats):
        is_late = time.perf_counter() - start > limits.seconds
        if repeat and is_late:
            break
        time_versions(section, measurements, context, problems)
    return {
        "rows": make_rows(section, measurements, peak),
        "differences": differences,
        "error": ", ".join(problems.lines) or None,
    }


def prepare(section: Section, context: Context, problems: Problems) -> dict[str, Measurement]:
    """Count the operations of each version, and let it choose its kernels.

    Failing versions are left out.
    """
    was_called = bool(section.tolerances) and not context.is_cuda and not context.amp
    measurements = {}
    for name, work in section.versions.items():
        with problems.noted(name):
            operations = 0
            if hasattr(work, "count_operations"):
                operations = section.images[name] * work.count_operations(context)
            if not was_called:  # with this device and precision
                call(work, context)
            measurements[name] = Measurement(operations)
    return measurements


def time_versions(
    section: Section,
    measurements: dict[str, Measurement],
    context: Context,
    problems: Problems,
) -> None:
    """Call each version once; a failing one is left out from now on."""
    for name, measurement in list(measurements.items()):
        make_call = call
        if not measurement.calls:
            make_call = call_with_memory
        del measurements[name]
        with problems.noted(name):
            timed = make_call(section.versions[name], context)
            measurement.calls.append(timed)
            measurements[name] = measurement


def make_rows(
    section: Section, measurements: dict[str, Measurement], peak: Peak
) -> list[dict[str, Any]]:
    """A row of figures for each version that was measured."""
    rates = {}
    for name, measurement in measurements.items():
        rates[name] = section.images[name] / measurement.seconds
    first_rate = rates.get(next(iter(section.versions)))
    rows = []
    for name, measurement in measurements.items():
        row = {
            "version": name,
            "seconds": measurement.seconds,
            "ratio": first_rate and first_rate / rates[name],
            "megabytes": measurement.calls[0].megabytes,
            "images": section.images[name],
            "images_per_second": rates[name],
            "runs": len(measurement.calls),
        }
        if measurement.operations:
            row["tflops"] = measurement.operations / measurement.seconds / 1e12
            row["share_of_peak"] = row["tflops"] / peak.tflops
        rows.append(row)
    return rows


def largest_differences(section: Section, device: torch.device) -> dict[str, float]:
    """How far the results of all versions lie from the first one's, in float32.

    CAM files are written without rounding for it.
    """
    found: list[dict[str, torch.Tensor]] = []
    exact = partial(cam_file.save, dtype=np.float32)
    with (
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        mock.patch.object(cam_file, "save", exact),
    ):
        for work in section.versions.values():
            results = call(work, Context(device)).outcome()
            found.append(to_float64(results, section.tolerances))
    first, *others = found
    differences = {}
    for name, value in first.items():
        distances = [(value - other[name]).abs().max() for other in others if name in other]
        differences[name] = max(distances).item()
    return differences


def to_float64(results: dict[str, Any], names: dict[str, float]) -> dict[str, torch.Tensor]:
    """The results with these names, on the CPU; a version need not have all."""
    converted = {}
    for name in names:
        if name in results:
            converted[name] = torch.as_tensor(results[name]).detach().double().cpu()
    return converted


def call(work: Work, context: Context) -> Call:
    """Call a version once, and measure its time."""
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars would run through the table
        synchronize(context)
        start = time.perf_counter()
        outcome = work(context)
        synchronize(context)
        seconds = time.perf_counter() - start
    return Call(outcome, seconds)


def call_with_memory(work: Work, context: Context) -> Call:
    """Call a version once, and measure its time and memory."""
    synchronize(context)
    before = held_memory(context)
    timed = call(work, context)
    return timed._replace(megabytes=peak_memory(context) - before)


def synchronize(context: Context) -> None:
    if context.is_cuda:
        torch.cuda.synchronize()


def held_memory(context: Context) -> float:
    """Megabytes that are held now, from which `peak_memory` then counts."""
    if context.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError, AttributeError):  # not Linux
            # freed memory that a call could take would hide what it takes
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
    return peak_memory(context)


def peak_memory(context: Context) -> float:
    """Megabytes that were held at the peak since `held_memory`; 0 if the system does not say.

    They are torch's own on a GPU, else the process's, without its workers.
    """
    if context.is_cuda:
        return torch.cuda.max_memory_allocated() / MEBIBYTE
    with contextlib.suppress(OSError, IndexError):
        status = Path("/proc/self/status").read_text()
        kibibytes = status.split("VmHWM:")[1].split()[0]
        return int(kibibytes) / 1024
    return 0


def measure_peak(context: Context, side_on_cpu: int) -> Peak:
    """The best rate of several large matrix products, in bf16 if the processor has it."""
    side = side_on_cpu
    if context.is_cuda:
        side = PEAK_SIDE_ON_GPU
    precision = torch.float32
    with contextlib.suppress(InputError):
        check_precision("bf16", context.device)
        precision = torch.bfloat16
    matrix = torch.randn(side, side, device=context.device).to(precision)

    def multiply(context: Context) -> Outcome:
        product = matrix @ matrix
        return lambda: {"product": product}

    seconds = min(call(multiply, context).seconds for _ in range(PEAK_TRIES))
    return Peak(2 * side**3 / seconds / 1e12, str(precision).removeprefix("torch."))
