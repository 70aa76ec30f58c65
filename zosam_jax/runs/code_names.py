"""Names that stand for a user's own code, as package.module:Name.

Nothing here imports what they name.
"""

import re

from zosam_jax.runs import paths

# A name in a module, as package.module:Name.
_CODE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_code(kind: str, name: str) -> bool:
    """Whether a name stands for a user's own code.

    >>> is_code("gradient", "mine.ascents:signs"), is_code("dataset", "folder:pets")
    (True, False)

    Args:
      kind: The part of the run, as "gradient".
      name: Its name.
    """
    is_path = kind == "dataset" and paths.in_name(name)
    return bool(_CODE.fullmatch(name)) and not is_path


def check_code(kind: str, name: str) -> None:
    """Raises `ValueError` if a name that must be known stands for a user's own code.

    A file, a stored run or a variable may hold such a name: it must not be imported.

    Args:
      kind: The part of the run, as "gradient".
      name: Its name.
    """
    if is_code(kind, name):
        raise ValueError(
            f"{kind}={name!r} is code of your own. It is imported only where the "
            "command line of zosam train, predict, evaluate, export or analyze itself "
            "names it, never from a file or a stored run. From Python, give what it "
            "names as an argument."
        )
