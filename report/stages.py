"""What there is to report of a run: its maps and folders of label images, with their scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.registry import Dataset, Samples, open_dataset
from errors import InputError
from tool import cam_file, label_file, outputs

MAP_TITLES = {"cam": "general CAM", "is_cam": "IS-CAM"}
LABEL_TITLES = {  # by the command that made them, in the chain's order
    "make_ir_labels": "inter-pixel labels",
    "make_seg_labels": "labels",
    "infer_seg": "segmentation network",
}
REFINED_TITLES = {"irn": "IRN labels", "crf": "CRF labels"}


@dataclass(frozen=True)
class Stage:
    """A kind of map or a folder of label images of a run, and the images that it was made for."""

    name: str  # kind of map, or name of the folder of label images
    title: str
    folder: Path  # the run directory of maps; the folder of label images
    dataset: Dataset
    samples: Samples
    subset: str  # the samples, in words
    scores: dict[str, Any] | None  # as the evaluation wrote them; None: not evaluated

    @property
    def is_map(self) -> bool:
        return self.name in MAP_TITLES

    def result_path(self, sample_name: str) -> Path:
        """The CAM file or label image of a sample."""
        if self.is_map:
            return cam_file.path_of(self.folder, sample_name)
        return label_file.path_of(self.folder, sample_name)


@dataclass(frozen=True)
class Origin:
    """The flags that open a dataset."""

    dataset: str
    dataset_root: str

    def open(self) -> Dataset:
        return open_dataset(self.dataset, self.dataset_root)


@dataclass(frozen=True)
class StageEvaluation:
    """What an evaluation notes of a kind of map or a folder of label images."""

    origin: Origin
    list_name: str
    scores: dict[str, Any]


@dataclass(frozen=True)
class RunNotes:
    """The JSON files of a run."""

    run_dir: Path
    evaluations: dict[str, dict[str, Any]]  # "cam" or a folder of label images -> eval_*.json
    settings: dict[str, dict[str, Any]]  # folder of results -> its settings.json

    @classmethod
    def read(cls, run_dir: Path) -> "RunNotes":
        """Raises InputError for a damaged file."""
        evaluations = {}
        for path in sorted(run_dir.glob("eval_*.json")):
            evaluations[path.stem.removeprefix("eval_")] = outputs.read_json(path)
        settings = {}
        for path in sorted(run_dir.glob(f"*/{outputs.SETTINGS}")):
            settings[path.parent.name] = outputs.read_json(path)
        return cls(run_dir, evaluations, settings)

    def origin(self) -> Origin:
        """The dataset that the first evaluation notes. Raises InputError if none does."""
        for evaluation in self.evaluations.values():
            if "dataset_root" in evaluation:
                return _origin_of(evaluation)
        raise InputError(
            f"{self.run_dir}: no evaluation here notes the dataset; "
            "evaluate again, or give --dataset and --dataset_root"
        )

    def result_names(self) -> list[str]:
        """The kinds of map and the folders of label images, in the chain's order."""
        maps = self.settings.get("cam", {}).get("maps", ())
        names = [kind for kind in MAP_TITLES if kind in maps]
        for maker in LABEL_TITLES:
            for folder, settings in self.settings.items():
                if settings.get("made_by") == maker:
                    names.append(folder)
        return names

    def title_of(self, name: str) -> str:
        """How the page calls a kind of map or a folder of label images."""
        if name in MAP_TITLES:
            return MAP_TITLES[name]
        settings = self.settings[name]
        made_by_title = LABEL_TITLES[settings["made_by"]]
        return REFINED_TITLES.get(settings.get("refine"), made_by_title)

    def evaluation_of(self, name: str) -> StageEvaluation | None:
        """The evaluation of a kind of map or a folder; None if it was not evaluated."""
        if name in MAP_TITLES:
            evaluation = self.evaluations.get("cam", {})
            scores = evaluation.get(name)
        else:
            evaluation = self.evaluations.get(name, {})
            scores = evaluation
        if scores is None or "dataset_root" not in evaluation:
            return None
        return StageEvaluation(_origin_of(evaluation), evaluation["list"], scores)


def find_stages(run_dir: Path, given: Origin | None, with_run_name: bool) -> list[Stage]:
    """The maps and labels of a run, in the chain's order.

    given: the dataset of what was not evaluated; by default that of an evaluation.
    with_run_name: add the name of the run to the titles.
    Raises InputError if there are none, or if their images are unknown.
    """
    notes = RunNotes.read(run_dir)
    default = given or notes.origin()
    stages: list[Stage] = []
    for name in notes.result_names():
        title = notes.title_of(name)
        if with_run_name:
            title = f"{title}, {run_dir.name}"
        if title in [stage.title for stage in stages]:
            title = f"{title} ({name})"
        stages.append(_open_stage(notes, name, title, default))
    if not stages:
        raise InputError(
            f"{run_dir}: there are no maps and no labels of a run here; "
            "correct --run_dir or run the stages first"
        )
    return stages


def _open_stage(notes: RunNotes, name: str, title: str, default: Origin) -> Stage:
    evaluation = notes.evaluation_of(name)
    if evaluation:
        dataset = evaluation.origin.open()
        list_name = evaluation.list_name
        scores = evaluation.scores
    else:
        dataset = default.open()
        list_name = dataset.spec.train_list
        scores = None

    if name in MAP_TITLES:
        folder = notes.run_dir
        cam_file.read_settings(folder, dataset.class_names)  # raises if the classes differ
    else:
        folder = notes.run_dir / name
        label_file.check_folder(folder, dataset.class_names)

    samples = dataset.samples(list_name)
    subset = f"{len(samples)} images of {dataset.root.name} ({Path(list_name).stem})"
    return Stage(name, title, folder, dataset, samples, subset, scores)


def _origin_of(evaluation: dict[str, Any]) -> Origin:
    return Origin(evaluation["dataset"], evaluation["dataset_root"])


def baseline_of(stages: Sequence[Stage], index: int) -> int | None:
    """The index of the same stage of an earlier run; None for a stage of the first run."""
    for earlier in range(index):
        if stages[earlier].name == stages[index].name:
            return earlier
    return None


def check_classes(stages: Sequence[Stage], run_dirs: Sequence[Path]) -> None:
    """Raise InputError if the runs have different classes."""
    class_names = stages[0].dataset.class_names
    if any(stage.dataset.class_names != class_names for stage in stages):
        raise InputError(
            f"{run_dirs[-1]}: has other classes than {run_dirs[0]}; compare runs of one dataset"
        )
