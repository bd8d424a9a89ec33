"""A folder of plugins as the world brings it: nothing in it ends the program or changes what it may not."""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_sampling import ConfigurationError, PluginError, PluginWarning
from dllm_sampling.plugins import discovery as plugins
from tests.test_plugins import GOOD

REGISTERS = "def register():\n    return {}\n"
OBSERVER = (
    "from typing import ClassVar\nfrom dllm_sampling import Observer\nclass A(Observer):\n"
    "    name: ClassVar[str] = {}\n" + REGISTERS.format("[A]")
)

# What a file holds, and what the warning says of it.
BROKEN = {
    "exits": ("import sys\nsys.exit('this rule needs CUDA')", "SystemExit: this rule needs CUDA"),
    "skips": ("import pytest\npytest.skip('no GPU here', allow_module_level=True)", "Skipped: no GPU here"),
    "reads_arguments": ("import argparse\nargparse.ArgumentParser().parse_args(['--x'])", "SystemExit: 2"),
    "asks": ("input('which model? ')", "EOFError"),
    "cancelled": ("import asyncio\nraise asyncio.CancelledError", "CancelledError"),
    "base": ("class Mine(BaseException): pass\nraise Mine('a\\nb\\x1b[2J')", r"Mine: a b\x1b[2J"),
    "unprintable": (
        "class Mine(Exception):\n    def __str__(self): raise ValueError\nraise Mine",
        "an error whose message cannot be read",
    ),
    "exits_when_asked": (
        "class Mine(Exception):\n    def __str__(self): raise SystemExit\nraise Mine",
        "an error whose message cannot be read",
    ),
    "counts": (
        "import itertools\nfrom typing import ClassVar\nfrom dllm_sampling import Task\n"
        + "class A(Task):\n    name: ClassVar[str] = 'a'\n    def examples(self): return []\n    def is_correct(self, text, example): return True\n"
        "def register():\n    for i in itertools.count():\n        A.name = str(i)\n        yield A",
        "offers more than 1000 classes",
    ),
    "field": (
        OBSERVER.format("'a'").replace("ClassVar[str]", "str"),
        "A has no name: `name: ClassVar[str] = ...`",
    ),
    "long": ("raise ValueError('x' * 10**6)", "ValueError: xxx"),
    "endless": ("def f(): f()\nf()", "RecursionError"),
    "empty": ("", "offers nothing"),
    "syntax": ("def f(:", "SyntaxError: "),
    "deep": ("(" * 5000, "Error"),
    "nul": ("x = 1\0", "null bytes"),
    "register_exits": ("def register():\n    raise SystemExit('later')", "SystemExit: later"),
    "register_takes": (REGISTERS.format("[]").replace("()", "(model)"), "model"),
    "register_is_5": ("register = 5", "`register` is 5, which is no plain function"),
    "generator": (REGISTERS.format("(1 // 0 for _ in 'a')"), "ZeroDivisionError"),
    "repeats": ("import itertools\n" + OBSERVER.format("'a'").replace("[A]", "itertools.repeat(A)"), "twice"),
    "property": (
        OBSERVER.format("'a'") + "A.name = property(lambda self: 'a')",
        "the name of A is a property, not text",
    ),
    "number": (OBSERVER.format("3"), "the name of A is an int, not text"),
    "control": (OBSERVER.format(r"'a\x1b[2J\n'"), r"the name of A is 'a\x1b[2J\n'; a name is printable"),
    "blank": (OBSERVER.format("' '"), "the name of A is ' '; a name is printable"),
    "dir": ("def __dir__(): raise OSError('no')\n" + REGISTERS.format("[]"), "OSError: no"),
    "helper_exits": ("import _leaves\n" + REGISTERS.format("[]"), "SystemExit: left"),
    "strategies": (GOOD.replace("left_to_right", "other"), "another plugin is called 'strategies' already"),
    "caches": (REGISTERS.format("[]"), "another plugin is called 'caches' already"),
    "a,b": (REGISTERS.format("[]"), "'a,b' cannot be the name of a plugin"),
    "-a": (REGISTERS.format("[]"), "'-a' cannot be the name of a plugin"),
    "a\nb\x1b": (REGISTERS.format("[]"), r"'a\nb\x1b' cannot be the name of a plugin"),
    "none": (REGISTERS.format("[]"), "'none' selects plugins"),
    "a:b": (REGISTERS.format("[]"), "'a:b' cannot be the name of a plugin"),
}


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)


def loaded(folder, strict=False):
    """The registry of a folder, and the warnings of loading it, one a plugin."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = plugins.load("all", [str(folder)], strict=strict)
    return found, [str(w.message) for w in caught if w.category is PluginWarning]


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_fails_or_leaves_is_one_broken_plugin(tmp_path, capfd, name):
    text, message = BROKEN[name]
    write(tmp_path, **{name: text, "z_good": GOOD, "_leaves": "raise SystemExit('left')"})
    found, told = loaded(tmp_path)
    assert "left_to_right" in found.names("unmasking")
    assert len(told) == 1
    assert message in told[0]
    assert told[0].isprintable()
    assert len(told[0]) < 800
    assert capfd.readouterr().out == ""
    with pytest.raises(PluginError, match="plugin "):
        loaded(tmp_path, strict=True)


def test_an_interrupt_interrupts(tmp_path):
    write(tmp_path, a="raise KeyboardInterrupt", b=GOOD)
    with pytest.raises(KeyboardInterrupt):
        loaded(tmp_path)


def test_what_is_no_file_of_text(tmp_path):
    write(tmp_path, good=GOOD)
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "latin.py").write_bytes("x = 'é'".encode("latin-1"))
    (tmp_path / "loop.py").symlink_to(tmp_path / "loop.py")
    (tmp_path / "zero.py").symlink_to("/dev/zero")
    (tmp_path / "nothing.py").symlink_to(tmp_path / "nowhere")
    (tmp_path / ".#good.py").symlink_to("editor@lock")
    os.mkfifo(tmp_path / "pipe.py")
    found, told = loaded(tmp_path)
    assert "left_to_right" in found.names("unmasking")
    said = {line.split()[1]: line.partition(" is skipped: ")[2] for line in told}
    assert said == {
        "folder": "PluginError: is a folder, not a file.",
        "latin": said["latin"],
        "loop": "PluginError: cannot be read: Too many levels of symbolic links.",
        "nothing": "PluginError: cannot be read: No such file or directory.",
        "pipe": "PluginError: is no regular file.",
        "zero": "PluginError: is no regular file.",
    }
    assert "SyntaxError" in said["latin"]
    assert sorted(p.name for p in tmp_path.iterdir() if p.name == "__pycache__") == []
    with pytest.raises(ConfigurationError, match="cannot be read: Not a directory"):
        loaded(tmp_path / "good.py")


def test_what_a_file_prints_and_changes_while_it_is_loaded(tmp_path, capfd):
    write(
        tmp_path,
        a=f"import sys, warnings\nprint('hello')\nsys.path.insert(0, {str(tmp_path)!r})\n"
        "import os\nos.chdir('/')\nwarnings.simplefilter('ignore')\n" + GOOD,
        b="raise ValueError('told all the same')",
        json="raise ValueError('shadows')",
    )
    before, where = list(sys.path), Path.cwd()
    try:
        found, told = loaded(tmp_path)
        assert sys.path == [*before, str(tmp_path)]
        assert Path.cwd() == where
        sys.modules.pop("json.tool", None)
        import json.tool  # from the standard library still

        assert "shadows" not in str(json.tool.__file__)
    finally:
        sys.path[:] = before
    assert "left_to_right" in found.names("unmasking")
    assert len(told) == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "hello" in shown.err


HELPED = GOOD.replace("count: int = 1", "count: int = COUNT")


@pytest.mark.parametrize(
    "line",
    [
        "from _helper import COUNT",
        "import _helper\nCOUNT = _helper.COUNT",
        "from . import _helper\nCOUNT = _helper.COUNT",
        "from ._helper import COUNT",
        "import _parts.inner\nCOUNT = _parts.inner.COUNT",
        "from _parts import inner as i\nCOUNT = i.COUNT",
        "from _parts.inner import *",
        "def later():\n    from _helper import COUNT\n    return COUNT\nCOUNT = later()",
    ],
)
def test_a_plugin_imports_the_helper_beside_it_and_no_other(tmp_path, line):
    classes = []
    for count in (3, 5):
        folder = tmp_path / str(count)
        (folder / "_parts").mkdir(parents=True)
        write(folder, mine=f"{line}\n{HELPED}", _helper="from _value import COUNT, late\nCOUNT = late()")
        write(
            folder,
            _value="COUNT = 0\ndef late():\n    import _more\n    return _more.COUNT",
            _more=f"COUNT = {count}",
        )
        write(folder / "_parts", __init__="", inner="from _helper import COUNT")
        found, told = loaded(folder)
        assert told == []
        classes.append(found.classes("unmasking")["left_to_right"])
    assert [cls().count for cls in classes] == [3, 5]
    assert not {"_helper", "_value", "_more", "_parts"} & set(sys.modules)
    write(tmp_path / "3", _more="COUNT = 7")
    assert loaded(tmp_path / "3")[0].classes("unmasking")["left_to_right"]().count == 7


def test_a_helper_imported_in_the_middle_of_a_run(tmp_path):
    late = GOOD.replace("        return", "        from _late import allowed\n        return allowed &")
    write(tmp_path, mine=late.replace("allowed &", "allowed() &"), _late="def allowed():\n    return True")
    from dllm_sampling import Sampler
    from tests.models import prompts_of, tiny

    policy = loaded(tmp_path)[0].classes("unmasking")["left_to_right"]()
    result = Sampler(tiny(), unmasking=policy, stop_at_eos=False).generate(prompts_of([4]), gen_length=4)
    assert result.forward_of_position[0].tolist() == [0, 1, 2, 3]


def test_a_plugin_has_one_name_wherever_it_lies_and_its_neighbours_import_it(tmp_path):
    names = set()
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        text = OBSERVER.format("'seen'").replace(
            "import Observer", "import Observer\nfrom .my_rule import LeftToRight"
        )
        write(tmp_path / place, my_rule=GOOD.replace("left_to_right", "ltr"), other=text)
        found, told = loaded(tmp_path / place)
        assert told == []
        names.add(found.classes("unmasking")["ltr"].__module__)
        assert sys.modules["dllm_sampling_plugin_other"].LeftToRight is found.classes("unmasking")["ltr"]
    assert names == {"dllm_sampling_plugin_my_rule"}


def test_a_class_that_cannot_be_built_is_blamed_on_its_plugin(tmp_path):
    text = OBSERVER.format("'leaver'").replace(
        "def register", "    def model_post_init(self, context): raise SystemExit('bye')\ndef register"
    )
    write(tmp_path, mine=text)
    found, _ = loaded(tmp_path)
    from dllm_sampling import Observer

    with pytest.raises(
        PluginError, match=r"observer 'leaver' of plugin mine .* cannot be built: SystemExit: bye"
    ):
        found.build(Observer, "leaver")


def hostile_folder(rng, folder):
    """Files put together at random of what the world brings; how many of them are right."""
    lines = [text for text, _ in BROKEN.values()] + [
        "import os",
        "x = 1",
        "print('x')",
        "from _helper import y",
    ]
    names = [
        "a",
        "json",
        "setup",
        "conftest",
        "torch",
        "_helper",
        "strategies",
        "a b",
        "Ä",
        "__init__",
        "typing",
    ]
    for name in rng.sample(names, rng.randint(0, 6)):
        text = "\n".join(rng.choice(lines) for _ in range(rng.randint(0, 3)))
        data = text.encode()
        if rng.random() < 0.2:
            place = rng.randrange(len(data) + 1)
            data = data[:place] + rng.randbytes(3) + data[place:]
        (folder / f"{name}.py").write_bytes(data)
    write(folder, z_good=GOOD)


def check_hostile_folder(seed, folder):
    hostile_folder(random.Random(seed), folder)
    before = list(sys.path)
    found, told = loaded(folder)
    assert "left_to_right" in found.names("unmasking")
    assert {"fixed_k", "factor"} <= set(found.names("unmasking"))
    assert all(line.isprintable() and len(line) < 1200 for line in told)
    assert len(told) == sum(plugin.status == "broken" for plugin in found.plugins)
    assert sys.path == before
    assert json.__name__ == "json"


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_any_folder_is_loaded(seed):
    with tempfile.TemporaryDirectory() as made:
        check_hostile_folder(seed, Path(made))


if __name__ == "__main__":
    for number in range(int(sys.argv[1])):
        with tempfile.TemporaryDirectory() as made:
            check_hostile_folder(10**7 + number, Path(made))
    print(f"{sys.argv[1]} folders loaded")
