"""Compare the project's code with plain versions of the same formulas: time and peak memory.

    python -m benchmarks.speed [--section NAME ...] [--size small|published] [--minutes M]
        [--device auto|cpu|cuda] [--json FILE]

Versions of the same work run once in float32, and their results must agree. Then they take turns,
and the median of their times counts. The ratio is a version's time for an image divided by the
first version's. MB is what a call adds, at its peak, to the memory held before it: torch's own on
a GPU, else the process's, without its workers, on Linux. TFLOP/s count a training step's
convolutions and matrix products; "of peak" divides them by those of one large bf16 matrix product
in the same run. What fails is reported, and the rest runs.

Images are drawn, and networks have random weights, so no data is needed. "published" takes the
sizes of VOC and COCO: many minutes on a CPU, and 9 GB. --minutes only limits the repeats: each
version runs at least once, and torch.compile may take minutes before that.
"""

import gc
import math
import sys
import tempfile
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tool import outputs
from tool.context import AMP, Context, choose_device, cli_main
from tool.flags import add_device, add_workers, command_parser, positive_int

from .measuring import Limits, Peak, measure, measure_peak
from .sections import SECTIONS, SIZES, Setup

# of the table, with their widths
COLUMNS = {"seconds": 10, "ratio": 9, "MB": 9, "images/s": 12, "TFLOP/s": 10, "of peak": 9}


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = command_parser(__doc__)
    parser.add_argument(
        "--section",
        nargs="+",
        choices=SECTIONS,
        default=list(SECTIONS),
        help="what to compare (default: everything)",
    )
    parser.add_argument(
        "--size",
        choices=SIZES,
        default="small",
        help="small: seconds, to see that all works; published: to measure (default small)",
    )
    parser.add_argument(
        "--repeats",
        type=positive_int,
        default=3,
        help="timed calls of each version, of which the median counts (default 3)",
    )
    parser.add_argument(
        "--time_box",
        type=positive_int,
        default=3600,
        help="seconds after which a section stops repeating (default 3600)",
    )
    parser.add_argument(
        "--minutes",
        type=positive_int,
        help="minutes for the repeats, shared equally by the sections (default: no limit)",
    )
    parser.add_argument(
        "--json",
        type=Path,
        help="file for the numbers, rewritten after each section (default: none)",
    )
    parser.add_argument(
        "--dataset_root",
        type=Path,
        help="folder of VOC 2012 for cams and input (default: drawn images)",
    )
    add_device(parser)
    add_workers(parser)
    args = parser.parse_args(argv)
    if args.minutes:
        share = 60 * args.minutes / len(args.section)
        args.time_box = min(args.time_box, share)
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    context = Context(choose_device(args.device), amp=AMP[args.amp])
    peak = measure_peak(context, SIZES[args.size].peak_side)
    content = {
        "machine": machine_name(context),
        "torch": torch.__version__,
        "size": args.size,
        "amp": args.amp,
        "peak_tflops": peak.tflops,
        "peak_precision": peak.precision,
        "sections": {},
    }
    print_heading(content)
    for name in args.section:
        result = run_section(name, args, context, peak)
        content["sections"][name] = result
        print_section(name, result)
        if args.json:
            outputs.write_json(args.json, content)
        gc.collect()
        torch.cuda.empty_cache()
    if any(result["error"] for result in content["sections"].values()):
        sys.exit(1)


def machine_name(context: Context) -> str:
    if context.is_cuda:
        return torch.cuda.get_device_name(context.device)
    return f"CPU, {torch.get_num_threads()} threads"


def run_section(name: str, args: Namespace, context: Context, peak: Peak) -> dict[str, Any]:
    """What `measure` returns; an error alone if the section cannot be built or compared."""
    limits = Limits(args.repeats, args.time_box)
    sizes = SIZES[args.size]
    try:
        with tempfile.TemporaryDirectory() as folder:
            setup = Setup(context, sizes, peak, Path(folder), args.num_workers, args.dataset_root)
            build = partial(SECTIONS[name], setup)
            return measure(build, context, limits, peak)
    except Exception as error:  # the next section may well work
        return {"rows": [], "differences": {}, "error": f"{error!r:.200}"}


def print_heading(content: dict[str, Any]) -> None:
    print(
        f"{content['machine']}; sizes: {content['size']}; amp {content['amp']};"
        f" peak {content['peak_tflops']:.3g} TFLOP/s in {content['peak_precision']}"
    )
    columns = "".join(f"{title:>{width}}" for title, width in COLUMNS.items())
    print(f"{'section':<15}{'version':<20}{columns}")


def print_section(name: str, result: dict[str, Any]) -> None:
    for row in result["rows"]:
        ratio = row["ratio"] or math.nan
        numbers = f"{row['seconds']:>10.4g}{ratio:>9.2f}{row['megabytes']:>9,.0f}"
        numbers += f"{row['images_per_second']:>12.4g}"
        if "tflops" in row:
            numbers += f"{row['tflops']:>10.3g}{row['share_of_peak']:>9.1%}"
        print(f"{name:<15}{row['version']:<20}{numbers}", flush=True)
    if result["error"]:
        print(f"{name:<15}FAILED: {result['error']}", flush=True)


if __name__ == "__main__":
    sys.exit(cli_main(main))
