"""What worker processes gain for the dense CRF: make_ir_labels.py's work on some pictures with one and with all of them, in one run.

    python -m benchmarks.crf_pool --dataset_root /data/VOC2012 --run_dir runs/voc --pictures 40

Reads the CAM files of RUN_DIR and writes to a temporary folder. The overhead is the CPU time of the main process in the whole time.
"""

import functools
import sys
import tempfile
import time
from pathlib import Path

from data.registry import DATASETS, open_dataset
from make_ir_labels import make_label
from tool import crf, label_file, outputs, stage


def main(argv: list[str] | None = None) -> None:
    parser = stage.parser(__doc__, list(DATASETS), device=False, most_workers=None)
    parser.add_argument("--list", help="pictures with CAM files (default: the dataset's official training list)")
    parser.add_argument("--pictures", type=int, default=40, help="how many of them (default 40)")
    args = stage.parse(parser, argv)
    crf.require()
    dataset = open_dataset(args.dataset, args.dataset_root)
    entries = dataset.entries(args.list or dataset.spec.eval_list)[: args.pictures]
    labels, alone = {}, None
    for workers in (1, max(2, args.num_workers)):
        with tempfile.TemporaryDirectory() as folder:
            work = functools.partial(make_label, run_dir=args.run_dir, folder=Path(folder), kind="is_cam", num_classes=dataset.num_classes)
            start, own = time.perf_counter(), time.process_time()
            for _ in outputs.in_parallel(work, entries, workers):
                pass
            seconds, own = time.perf_counter() - start, time.process_time() - own
            labels[workers] = [label_file.path_of(Path(folder), entry.name).read_bytes() for entry in entries]
        alone = alone or seconds
        same = "same files" if labels[workers] == labels[1] else "OTHER FILES"
        print(f"{workers} workers: {seconds:7.1f} s, {alone / seconds:.2f} times as fast, overhead {own / seconds:.1%}, {same}", flush=True)


if __name__ == "__main__":
    sys.exit(stage.run(main))
