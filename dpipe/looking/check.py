"""Looks for everything that is wrong in a data set, and tells all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from dpipe.backends.base import usable_cores
from dpipe.errors import InputError
from dpipe.looking.check_annotations import check_file_names, check_records, check_with_hotcoco
from dpipe.looking.check_findings import ERRORS, WARNINGS, Finding, Findings
from dpipe.looking.check_images import check_images
from dpipe.looking.check_masks import check_masks
from dpipe.looking.coco_records import no_garbage_collection, read_records

EXAMPLES = 3

Progress: TypeAlias = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Called with what is looked at and how many there are; gives a function to be told how many more have been."""


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Attributes:
        annotations: The JSON file.
        images: The folder of the images.
        image_count: Images in the JSON.
        annotation_count: Annotations in the JSON.
        findings: All of them.
        counts: How many there are of each kind, errors first.
        decoded: Whether the images' pixels were decoded.
    """

    annotations: Path
    images: Path
    image_count: int
    annotation_count: int
    findings: tuple[Finding, ...]
    counts: dict[str, int]
    decoded: bool

    @property
    def errors(self) -> int:
        """How many findings are errors."""
        return sum(count for kind, count in self.counts.items() if kind in ERRORS)

    @property
    def warnings(self) -> int:
        """How many findings are warnings."""
        return sum(count for kind, count in self.counts.items() if kind in WARNINGS)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "annotations": str(self.annotations),
            "images": str(self.images),
            "image_count": self.image_count,
            "annotation_count": self.annotation_count,
            "decoded": self.decoded,
            "errors": self.errors,
            "warnings": self.warnings,
            "kinds": [
                {
                    "kind": kind,
                    "severity": "error" if kind in ERRORS else "warning",
                    "meaning": {**ERRORS, **WARNINGS}[kind],
                    "count": count,
                }
                for kind, count in self.counts.items()
            ],
            "findings": [
                {
                    "kind": finding.kind,
                    "severity": finding.severity,
                    "image": finding.image,
                    "annotation": finding.annotation,
                    "detail": finding.detail,
                }
                for finding in self.findings
            ],
        }

    def examples(self, kind: str) -> list[Finding]:
        """The first few findings of a kind."""
        return [finding for finding in self.findings if finding.kind == kind][:EXAMPLES]


@contextmanager
def _silent(_: str, __: int) -> Iterator[Callable[[int], None]]:
    yield lambda count: None


def check_dataset(
    annotations: str | Path,
    images: str | Path,
    *,
    decode: bool = True,
    threads: int | None = None,
    progress: Progress = _silent,
) -> CheckReport:
    """Checks a COCO JSON and its images.

    Args:
        annotations: The JSON file.
        images: Folder that its file names are relative to.
        decode: Decode all images; otherwise only their headers are looked at, and whether the files end as they should.
        threads: That look at images; as many as this process may use cores where not given.
        progress: Shows how far the work has come.

    Raises:
        InputError: If the JSON cannot be read or is none of COCO's, if the folder is not there, or for ``threads``
            below 1.
    """
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1, got {threads}")
    annotations, images = Path(annotations), Path(images)
    if not images.is_dir():
        raise InputError(f"{images}: no such folder of images")
    with no_garbage_collection():
        records = read_records(annotations)
        findings = Findings(records)
        check_records(records, findings)
        paths = check_file_names(records, images, findings)
        check_with_hotcoco(records, findings)
        with progress("masks", len(records.annotations)) as advance:
            check_masks(records, findings, advance)
        with progress("images", len(paths)) as advance:
            check_images(records, paths, findings, decode=decode, threads=threads or usable_cores(), progress=advance)
    return CheckReport(
        annotations=annotations,
        images=images,
        image_count=len(records.images),
        annotation_count=len(records.annotations),
        findings=tuple(findings.found),
        counts=findings.counts(),
        decoded=decode,
    )
