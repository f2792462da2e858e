"""Errors of this machine's own files, where no command knew better: a sentence instead of a traceback."""

import errno

from virtha.model.errors import Failed, Unavailable, VirthaError


def error_from_file(error: OSError) -> VirthaError | None:
    """None: not about a file's room or rights, so it is a mistake of ours and must surface as it is."""
    where = str(error.filename) if error.filename else "the file"
    match error.errno:
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
    return None
