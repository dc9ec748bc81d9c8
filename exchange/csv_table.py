"""Tags in a CSV table: a column of images, then a column of 0 and 1 for each class."""

import csv
from pathlib import Path

from data.annotations import read_text
from errors import InputError

from .instances import EXPORT_AGAIN, AnnotatedImage, Annotations, Instance

MARKS = {"0", "1", ""}


def read_csv(source: Path) -> Annotations:
    """The classes and the images of a table. Raises InputError for a row of another form."""
    reader = csv.reader(read_text(source, EXPORT_AGAIN).splitlines())
    header = next(reader, [])
    class_names = header[1:]
    annotated = []
    for row in reader:
        if not row:  # a blank line
            continue
        file, *fields = row
        marks = [field.strip() for field in fields]
        if len(marks) != len(class_names) or not MARKS.issuperset(marks):
            raise InputError(
                f"{source}, line {reader.line_num}: expected an image, then 0 or 1"
                f" for {len(class_names)} classes; correct it"
            )
        instances = [Instance(class_id) for class_id, mark in enumerate(marks, 1) if mark == "1"]
        annotated.append(AnnotatedImage(file.strip(), None, instances))
    return Annotations(class_names, annotated)
