"""Pictures of a raw archive (a folder or a zip file), opened one by one, cropped to a square and scaled."""

import io
import zipfile
from pathlib import Path, PurePosixPath

from PIL import Image, ImageOps

from library.errors import InputError

ENDINGS = (".jpg", ".jpeg", ".png")


class PictureArchive:
    """The pictures below a folder or inside a zip file, by their path inside it."""

    def __init__(self, place: str) -> None:
        """
        Raises:
            InputError: a path that is neither a folder nor a zip file, or has no pictures.
        """
        self.place = Path(place)
        self._zip: zipfile.ZipFile | None = None
        if self.place.is_dir():
            found = [path.relative_to(self.place).as_posix() for path in self.place.rglob("*") if path.is_file()]
        elif zipfile.is_zipfile(self.place):
            self._zip = zipfile.ZipFile(self.place)
            found = self._zip.namelist()
        else:
            raise InputError(f"'{place}' is neither a folder nor a zip file; give the archive as it was downloaded")
        self.names = sorted(name for name in found if name.lower().endswith(ENDINGS))
        if not self.names:
            raise InputError(f"'{place}' holds no pictures ({', '.join(ENDINGS)})")

    def by_file_name(self) -> dict[str, str]:
        """Path inside the archive of each file name."""
        return {PurePosixPath(name).name: name for name in self.names}

    def square(self, name: str, side: int) -> Image.Image:
        """One picture as RGB, cropped to a square in the centre and scaled to ``side`` pixels.

        Raises:
            InputError: a picture that cannot be decoded.
        """
        content = self._zip.read(name) if self._zip else (self.place / name).read_bytes()
        try:
            picture = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(
                f"'{name}' in '{self.place}' cannot be decoded ({type(error).__name__}); download it again"
            ) from error
        edge = min(picture.size)
        left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
        square = picture.crop((left, top, left + edge, top + edge))
        return square if edge == side else square.resize((side, side), Image.Resampling.LANCZOS)


def empty_folder(place: str) -> Path:
    """The folder to write to; it is made if it is missing.

    Raises:
        InputError: a folder that is not empty.
    """
    folder = Path(place)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"output '{place}' is not empty; name a new folder, or empty it")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_pair(folder: Path, stem: str, picture: Image.Image, caption: str) -> None:
    """A picture and its caption side by side, as kohya reads them."""
    folder.mkdir(exist_ok=True)
    picture.save(folder / f"{stem}.png")
    (folder / f"{stem}.txt").write_text(caption + "\n", encoding="utf-8")
