"""`import fxquant` imports what training needs; other names come when they are asked for."""

import subprocess
import sys

import pytest

import fxquant
from fxquant import at_first_use


def test_every_public_name_is_there():
    for name in fxquant.__all__:
        assert getattr(fxquant, name) is not None
    assert set(at_first_use.__all__) <= set(fxquant.__all__)


def test_other_names_are_refused_as_those_of_any_module():
    with pytest.raises(AttributeError, match="module 'fxquant' has no attribute 'bits'"):
        _ = fxquant.bits


def test_pictures_files_and_exports_wait_for_their_first_use():
    program = (
        "import sys, fxquant\n"
        "early = {m.split('.')[1] for m in sys.modules if m.startswith('fxquant.')}\n"
        "print(sorted(early & {'see', 'saved', 'export', 'config_file'}))\n"
        "from fxquant import report\n"
        "print(report.__module__)\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\nfxquant.see.report\n"
