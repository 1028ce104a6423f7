"""Reads the pictures that the options name: candidates, separate non-members, and public regularisation images."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from library.data.augmentation import face_of, face_range
from library.data.buckets import parse_resolution
from library.data.caption_metadata import Captioned, read_metadata
from library.data.captions import plain_caption
from library.data.examples import Example, difference_hash, open_picture, pixel_hash
from library.data.folders import caption_file, captions_in, group_rule, left_aside, no_pictures, pictures_in
from library.data.masks import MaskFinder
from library.data.picture_sources import CANDIDATE, OUTSIDER, REGULARISATION, Part, SourceRules, find_parts, pick_rules
from library.data.subset_rules import AugmentationRules, BucketRules, CaptionRules
from library.errors import Faults, InputError, shortened
from library.plain_text import plain
from library.progress import counted

__all__ = ["Sources", "pick_rules", "read_sources", "read_split_pictures"]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sources:
    """Every picture of a run. A picture of two datasets is listed twice, with the rules of each."""

    candidates: list[Example]  # the split draws members from these
    outsiders: list[Example]  # non-members from a separate folder
    regularisation: list[Example]  # public, not part of the split


@dataclass
class PartCount:
    """One line of the table that is logged after reading."""

    name: str
    images: int
    captions: int
    missing: int
    empty: int
    repeats: int


def read_sources(
    where: SourceRules, captions: CaptionRules, augmentation: AugmentationRules, buckets: BucketRules
) -> Sources:
    """Read and decode every picture with its caption, group and mask, and log a table of the counts.

    Raises:
        InputError: all wrong folders, corrupt pictures, missing or empty captions and masks, and regularisation images
            that are also candidates.
    """
    faults = Faults()
    reader = Reader(where, faults, with_masks=True)
    examples = reader.read_all(find_parts(where, captions, augmentation, buckets))
    for line in table(reader.counts).split("\n"):
        logger.info("%s", line)
    sources = Sources(examples[CANDIDATE], examples[OUTSIDER], examples[REGULARISATION])
    _check_public(sources, faults)
    faults.raise_if_any()
    return sources


def read_split_pictures(
    where: SourceRules, captions: CaptionRules, augmentation: AugmentationRules, buckets: BucketRules
) -> list[Example]:
    """The pictures that a split may name, each once (with the rules of its first dataset), without masks.

    Captions are complete, with prefix and suffix, without random changes.
    """
    faults = Faults()
    reader = Reader(where, faults, with_masks=False)
    parts = [part for part in find_parts(where, captions, augmentation, buckets) if part.role != REGULARISATION]
    examples = reader.read_all(parts)
    faults.raise_if_any()
    first: dict[str, Example] = {}
    for example in sorted(examples[CANDIDATE] + examples[OUTSIDER], key=lambda one: (one.pixels, str(one.path))):
        first.setdefault(
            example.pixels, replace(example, caption=plain_caption(example.caption, example.subset.captions))
        )
    return list(first.values())


class Reader:
    """Reads source after source; a file of several sources is decoded once."""

    def __init__(self, where: SourceRules, faults: Faults, *, with_masks: bool) -> None:
        self.where = where
        self.faults = faults
        self.with_masks = with_masks
        self.counts: list[PartCount] = []
        self._known: dict[Path, tuple[int, int, str, int]] = {}  # width, height, pixel hash, difference hash

    def read_all(self, parts: Sequence[Part]) -> dict[str, list[Example]]:
        """The examples of all sources by role; each source is decoded before the next is opened."""
        examples: dict[str, list[Example]] = {CANDIDATE: [], OUTSIDER: [], REGULARISATION: []}
        for part in parts:
            examples[part.role] += self.faults.attempt(self.read, part) or []
        return examples

    def read(self, part: Part) -> list[Example]:
        """The examples of one source; faults are collected, not raised."""
        named = self._captioned(part)
        count = PartCount(part.folder.name, len(named), 0, 0, 0, part.repeats)
        self.counts.append(count)
        group_of = self._group_rule(part)
        masks = MaskFinder(part.masks, part.subset.alpha_mask) if self.with_masks else MaskFinder(None, False)
        without: list[str] = []
        small: list[str] = []
        examples: list[Example] = []
        for one in counted(len(named), "reading pictures", silent=len(named) < 200, over=named):
            if one.caption is None:
                without.append(one.path.name)
            count.missing += one.caption is None
            count.empty += one.caption == ""
            count.captions += bool(one.caption)
            facts = self._decoded(one.path)
            if facts is None:
                continue
            width, height, identity, signs = facts
            if part.passed_over and width * height <= math.prod(parse_resolution(part.passed_over)):
                small.append(one.path.name)
                continue
            example = Example(
                path=one.path,
                caption=part.class_words if one.caption is None else one.caption,
                repeats=part.repeats,
                group=one.group or group_of(one.path) or identity,
                width=width,
                height=height,
                pixels=identity,
                brightness_signs=signs,
                subset=part.subset,
                mask=None,
            )
            try:
                examples.append(replace(example, mask=masks.of(example)))
            except InputError as error:
                self.faults.take(error, "pictures without a fitting mask")
        if small:
            logger.info("%d pictures are passed over by skip_image_resolution: %s", len(small), shortened(small, 5))
        self._report_captions(part, len(named), without)
        self._check_faces(part, examples)
        return examples

    def _captioned(self, part: Part) -> list[Captioned]:
        every_line = part.subset.captions.enable_wildcard
        if part.metadata is not None:
            separator = part.subset.captions.caption_separator
            return read_metadata(part.metadata, part.folder, separator, every_line, self.faults)
        files = pictures_in(part.folder)
        if not files:
            self.faults.add(f"{part.option_name}: {no_pictures(part.folder)}")
        for line in left_aside(part.folder):
            logger.warning("%s: %s", part.folder.name, line)
        beside = [caption_file(path, part.caption_extension) for path in files]
        if part.caption_extension is None and any(beside):
            endings = " and ".join(sorted({file.suffix for file in beside if file}, reverse=True))
            logger.info("%s: captions are read from %s files", part.folder.name, endings)
        captions = captions_in(part.folder, beside, every_line, self.faults)
        return [Captioned(path, caption, None) for path, caption in zip(files, captions, strict=True)]

    def _group_rule(self, part: Part) -> Callable[[Path], str | None]:
        if part.role == REGULARISATION:
            return lambda path: None
        return group_rule(part.group_root, self.where.group_by)

    def _decoded(self, path: Path) -> tuple[int, int, str, int] | None:
        """Size and hashes of a picture; None after a fault."""
        place = path.resolve()
        if place not in self._known:
            try:
                picture = open_picture(path)
            except InputError as error:
                self.faults.take(error, "pictures that cannot be decoded")
                return None
            except (OSError, SyntaxError, ValueError, MemoryError) as error:
                self.faults.add(
                    f"'{path}' cannot be decoded ({type(error).__name__}); replace or remove it",
                    kind="pictures that cannot be decoded",
                )
                return None
            self._known[place] = (picture.width, picture.height, pixel_hash(picture), difference_hash(picture))
        return self._known[place]

    def _report_captions(self, part: Part, count: int, missing: list[str]) -> None:
        """Missing captions are a fault if class words cannot replace them."""
        if not missing:
            return
        names = shortened(missing)
        if self.where.strict_captions or not part.class_words:
            self.faults.add(
                f"'{part.folder}': {len(missing)} images have no caption file; write one ending in .txt or .caption, "
                f"or set caption_extension: {names}"
            )
        else:
            level = logging.WARNING if len(missing) > 0.05 * count else logging.INFO
            logger.log(
                level,
                "%d images of '%s' have no caption file; the folder's class words are used instead: %s",
                len(missing),
                part.folder.name,
                names,
            )

    def _check_faces(self, part: Part, examples: Sequence[Example]) -> None:
        """Crops around faces need the position of the face in the file name; others are a fault."""
        if part.subset.looks.face_crop_aug_range is None:
            return
        face_range(part.subset.looks.face_crop_aug_range)
        faceless = [example.path.name for example in examples if face_of(example) is None]
        if faceless:
            self.faults.add(
                f"face_crop_aug_range: {len(faceless)} pictures of '{part.folder}' do not state the position of the "
                "face; name "
                f"them NAME_x_y_w_h (centre and size in pixels): {shortened(faceless)}"
            )


def table(counts: Sequence[PartCount]) -> str:
    """A table of the counts, one folder a line. Only the terminal shows it, because it names folders."""
    rows: list[tuple[str, ...]] = [("folder", "images", "captions", "missing", "empty", "repeats")]
    rows += [
        (plain(one.name), *map(str, (one.images, one.captions, one.missing, one.empty, one.repeats))) for one in counts
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        numbers = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join([row[0].ljust(widths[0]), *numbers]))
    return "\n".join(lines)


def _check_public(sources: Sources, faults: Faults) -> None:
    """A regularisation image is public and never a member, so it must not be among the private pictures."""
    hidden = {example.pixels: example for example in sources.candidates + sources.outsiders}
    for example in sources.regularisation:
        if example.pixels in hidden:
            faults.add(
                f"the regularisation image '{example.path}' is the same picture as '{hidden[example.pixels].path}'; "
                "regularisation images are public and not part of the split; remove one of them",
                kind="regularisation images that are training pictures",
            )
