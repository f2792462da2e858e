"""Errors of this machine's own files, where no command knew better: a sentence instead of a traceback."""

import errno
import io
from collections.abc import Sequence
from pathlib import Path

from virtha.model.errors import Failed, InvalidInput, Unavailable, VirthaError
from virtha.model.size import format_size

_NO_SUCH_PLACE = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)


def error_from_file(error: OSError) -> VirthaError | None:
    """None: not about a file's room or rights, so it is a mistake of ours and must surface as it is."""
    where = str(error.filename) if error.filename else "the file"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT if not error.filename:
            # What a command has done by then stands: its output may be all that is lost.
            return Unavailable(
                "no space left to write the output, or a file",
                code="problem.disk.full",
                fix="free space, then look what was done before you try again",
            )
        case errno.ENOSPC | errno.EDQUOT:
            return Unavailable(
                f"no space left to write {where}",
                code="problem.disk.full",
                fix="free space there, then try again; what was there is unchanged",
            )
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return Failed(
                f"can't use {where}: {error.strerror}",
                fix="run it as root, or look at the rights of it and of its directory",
            )
        case number if error.filename and number in _NO_SUCH_PLACE:
            return Failed(
                f"can't use {where}: {error.strerror}",
                fix="name another place, or move away what is there",
            )
        case errno.EIO if error.filename:
            return Failed(
                f"can't read or write {where}: {error.strerror}",
                fix="look at the disk below it: dmesg",
            )
        case errno.EFBIG if error.filename:
            return InvalidInput(f"{where}: {error.strerror}", fix="is it the right file?")
    return None


def error_from_words(arguments: Sequence[str]) -> InvalidInput | None:
    """Of a command that stumbled over an argument's letters. None: they are all right, so it was a mistake of ours."""
    for word in arguments:
        if not _is_text(word):
            return InvalidInput(
                f"an argument is no text in this locale: {word!a}",
                fix="write it in the locale's encoding, or choose one: LC_ALL=C.UTF-8",
            )
    return None


def _is_text(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:  # bytes that the locale's encoding does not know
        return False
    return True


def read_text_within(path: Path, bytes_max: int) -> str:
    """A UTF-8 file of a user's. Raises OSError (EFBIG for a larger one, of which no more is read) and
    UnicodeDecodeError."""
    with path.open("rb") as file:
        raw = file.read(bytes_max + 1)
    if len(raw) > bytes_max:
        raise OSError(errno.EFBIG, f"it is larger than {format_size(bytes_max)}", str(path))
    return io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8").read()
