"""A page to look at: what was run, its scores and curves, and every image with its maps and masks.

    python report.py --run_dir runs/voc               # writes runs/voc/report/index.html
    python report.py --run_dir runs/voc runs/other    # what changed from one run to the other:
                                                      # runs/voc/report_other/index.html

Reads what the stages wrote to RUN_DIR, and the images, tags and masks of the datasets that the
evaluations note. Images need no masks. Any browser opens the page, without a server or a network.
It is written anew each time.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from data.registry import DATASETS
from report.curves import TrainingLogs, draw_curves, read_logs
from report.gallery import GalleryItem, ImageView, select_items, write_image
from report.history import CommandRun, read_history
from report.page import Page, write_page
from report.stages import Origin, Stage, check_classes, find_stages
from tool import outputs
from tool.context import cli_main, run_context
from tool.flags import add_workers, command_parser, positive_int
from tool.workers import parallel_map


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument(
        "--run_dir",
        dest="run_dirs",
        type=Path,
        nargs="+",
        required=True,
        help="run, or runs to compare with the first",
    )
    parser.add_argument(
        "--dataset",
        choices=list(DATASETS),
        default="folder",
        help="kind of dataset, for a run without an evaluation, which notes it (default folder)",
    )
    parser.add_argument("--dataset_root", help="folder of this dataset")
    parser.add_argument(
        "--max_images",
        "--max_pictures",
        type=positive_int,
        default=5000,
        help="images to show at most, evenly from the lists; scores are those of all "
        "(default 5000)",
    )
    add_workers(parser)
    return parser.parse_args(argv)


def read_stages(args: argparse.Namespace) -> list[Stage]:
    """The maps and labels of all runs. Raises InputError if their classes differ."""
    given = None
    if args.dataset_root:
        given = Origin(args.dataset, args.dataset_root)
    stages: list[Stage] = []
    for run_dir in args.run_dirs:
        stages += find_stages(run_dir, given, with_run_name=len(args.run_dirs) > 1)
    check_classes(stages, args.run_dirs)
    return stages


def write_images(
    items: Sequence[GalleryItem], stages: Sequence[Stage], folder: Path, num_workers: int
) -> list[ImageView]:
    """Write the files of all images; returns what the page shows of them, in order."""
    write = functools.partial(write_image, stages=stages, folder=folder)
    results = parallel_map(write, items, num_workers)
    views = tqdm(results, desc="report", unit="image", total=len(items))
    return sorted(views, key=lambda view: view.number)


def read_histories(run_dirs: Sequence[Path], logs: Sequence[TrainingLogs]) -> list[CommandRun]:
    """The commands of all runs, in the order in which they ended."""
    history: list[CommandRun] = []
    for run_dir, run_logs in zip(run_dirs, logs):
        history += read_history(run_dir, run_logs)
    return sorted(history, key=lambda command: command.ended)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    run_names = [run_dir.resolve().name for run_dir in args.run_dirs]
    first_run = args.run_dirs[0]
    folder = first_run / "_".join(["report", *run_names[1:]])
    stages = read_stages(args)
    items = select_items(stages, args.max_images)

    with run_context(first_run) as context:
        outputs.prepare_output_dir(folder, "report", {}, context, overwrite=True)
        images = write_images(items, stages, folder, args.num_workers)
        logs = [read_logs(run_dir) for run_dir in args.run_dirs]
        page = Page(
            runs=run_names,
            stages=stages,
            images=images,
            curves=draw_curves(logs),
            history=read_histories(args.run_dirs, logs),
        )
        write_page(folder / "index.html", page)
        context.print(f"wrote {folder / 'index.html'}")


if __name__ == "__main__":
    sys.exit(cli_main(main))
