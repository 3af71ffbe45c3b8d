"""Lay fxquant/ and passes/ out under their import names, for type checkers and editors.

    before   fxquant/*   passes/
    after    .typed/fxquant/*  and  .typed/fxquant/passes, links to them

Run it again whenever a file comes or goes: the links are made anew. mypy and pyright look into
.typed by themselves (pyproject.toml); git does not see it.
"""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Make .typed/fxquant hold one link for each entry of fxquant/, and one for passes/."""
    folder = ROOT / ".typed" / "fxquant"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()  # refuses a folder, so nothing but links and files is ever lost

    sources = [path for path in (ROOT / "fxquant").iterdir() if path.name != "__pycache__"]
    for source in [*sources, ROOT / "passes"]:
        # relative, so that the checkout may be moved
        (folder / source.name).symlink_to(os.path.relpath(source, folder))


if __name__ == "__main__":
    main()
