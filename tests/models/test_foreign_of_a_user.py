"""A model named as MODULE:FUNCTION, in the working directory or installed, or as FILE.py:FUNCTION, in any folder."""

import sys

import pytest
from torch import nn

from fastarat.common.errors import UserError
from fastarat.models.foreign import import_model

NETS = """
from torch import nn
SIZE = 3
def net():
    return nn.Linear(SIZE, 2)
def words():
    return "no net"
def wants(size):
    return nn.Linear(size, 2)
def late():
    from layers_of_a_user import layer
    return layer
def leaves():
    raise SystemExit(3)
"""


@pytest.fixture(autouse=True)
def nets(tmp_path, monkeypatch):
    """A working directory with a module `nets_of_a_user`, and two that cannot be imported."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets_of_a_user.py").write_text(NETS)
    (tmp_path / "nets_that_need.py").write_text("import a_package_that_is_not_there\n")
    (tmp_path / "nets_with_an_error.py").write_text("1 / 0\n")
    (tmp_path / "nets_that_leave.py").write_text("import sys; sys.exit('usage: …')\n")
    (tmp_path / "layers_of_a_user.py").write_text("from torch import nn\nlayer = nn.ReLU()\n")
    path = list(sys.path)
    yield
    assert sys.path == path
    for name in [name for name in sys.modules if name.endswith((".py", "_of_a_user"))]:
        del sys.modules[name]


def test_the_function_of_a_file_in_the_working_directory_gives_the_net():
    assert isinstance(import_model("nets_of_a_user:net"), nn.Linear)


def test_the_function_may_import_what_lies_beside_it():
    assert isinstance(import_model("nets_of_a_user:late"), nn.ReLU)


@pytest.mark.parametrize("file", ["nets_of_a_user.py", "./nets_of_a_user.py", "elsewhere/random.py", "my-nets.v2.py"])
def test_a_file_may_be_named_and_is_taken_whatever_module_has_its_name(file, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for copy in ("elsewhere/random.py", "my-nets.v2.py"):
        (tmp_path / copy).write_text(NETS)
    (tmp_path / "layers_of_a_user.py").rename((tmp_path / file).parent / "layers_of_a_user.py")
    sys.modules.pop("layers_of_a_user", None)
    for name in (file, str(tmp_path / file)):
        assert isinstance(import_model(f"{name}:net"), nn.Linear)
        assert isinstance(import_model(f"{name}:late"), nn.ReLU)


def test_what_is_installed_is_found_too():
    assert isinstance(import_model("torch.nn:ReLU"), nn.ReLU)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere_to_be_found:net", "there is no module 'nowhere_to_be_found', neither in"),
        ("torch.nowhere:net", "there is no module 'torch.nowhere'"),
        ("nets_of_a_user:nett", "unknown function of the module nets_of_a_user 'nett'. .*did you mean 'net'"),
        ("nets_of_a_user:SIZE", "SIZE of the module nets_of_a_user is no function"),
        ("nets_of_a_user:words", "gives str: let it return the net"),
        ("nets_of_a_user:wants", "called without arguments and fails: TypeError"),
        ("nets_of_a_user:", "give MODULE:FUNCTION or FILE.py:FUNCTION"),
        ("./nets_of_a_user:net", "give MODULE:FUNCTION or FILE.py:FUNCTION"),
        ("folder/nets_of_a_user:net", "give MODULE:FUNCTION or FILE.py:FUNCTION"),
        ("nets_of_somebody.py:net", "nets_of_somebody.py does not exist"),
        ("nets_of_a_user.py:nett", "unknown function of the module nets_of_a_user.py 'nett'. .*did you mean 'net'"),
        ("nets_that_need.py:net", "imports 'a_package_that_is_not_there', which is not installed"),
        ("nets_with_an_error.py:net", "the module nets_with_an_error.py cannot be imported: ZeroDivisionError"),
        ("nets_that_need:net", "imports 'a_package_that_is_not_there', which is not installed"),
        ("nets_with_an_error:net", "cannot be imported: ZeroDivisionError"),
        ("nets_that_leave:net", "cannot be imported: SystemExit: usage"),
        ("nets_of_a_user:leaves", "called without arguments and fails: SystemExit: 3"),
    ],
)
def test_what_is_not_there_or_fails_is_one_line(name, says):
    with pytest.raises(UserError, match=says):
        import_model(name)
