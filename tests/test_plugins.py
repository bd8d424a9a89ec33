"""Discovery, diagnostics, selection and failure of plugins."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from dllm_sampling import ConfigurationError, PluginError, PluginWarning, Sampler
from dllm_sampling.plugins import discovery as plugins
from tests.models import printed_by, prompts_of, tiny

ROOT = Path(__file__).parent.parent

GOOD = '''
from typing import ClassVar
from dllm_sampling import UnmaskingPolicy

class LeftToRight(UnmaskingPolicy):
    """Commit the leftmost open target."""

    name: ClassVar[str] = "left_to_right"
    count: int = 1

    def select(self, state, observation):
        return observation.eligible.cumsum(1).le(self.count) & observation.eligible

def register_unmasking_policies():
    return [LeftToRight]
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(plugins.FOLDER, str(tmp_path))
    monkeypatch.delenv(plugins.SELECT, raising=False)
    monkeypatch.delenv(plugins.STRICT, raising=False)

    def write(**files):
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        plugins._loaded.cache_clear()
        return tmp_path

    yield write
    plugins._loaded.cache_clear()


def test_a_one_file_plugin_is_used_by_name(folder):
    folder(mine=GOOD)
    sampler = Sampler(tiny(), unmasking={"name": "left_to_right", "count": 2}, stop_at_eos=False)
    result = sampler.generate(prompts_of([4]), gen_length=8)
    assert result.forward_of_position[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert Sampler.from_config(tiny(), sampler.config).config == sampler.config
    owner = plugins.registry().owner("unmasking", "left_to_right")
    assert owner.name == "mine"
    assert owner.source.endswith("mine.py")


BROKEN = {
    "raises": ("raise RuntimeError('out of luck')", "RuntimeError: out of luck"),
    "syntax": ("def :", "SyntaxError"),
    "empty": ("x = 1", "registers nothing"),
    "misspelt": (
        "def register_unmasking_polices():\n    return []",
        "Did you mean 'register_unmasking_policies'",
    ),
    "version": ("HOOK_VERSION = 99\ndef register_observers():\n    return []", "version 99 of the hooks"),
    "not_a_list": ("def register_observers():\n    return 3", "not a list of classes"),
    "not_a_class": ("def register_observers():\n    return [3]", "which is not a class"),
    "wrong_kind": (
        "from dllm_sampling.caches import DualCache\ndef register_observers():\n    return [DualCache]",
        "which is not a Observer",
    ),
    "abstract": (
        "from dllm_sampling import CachePolicy\nfrom typing import ClassVar\nclass A(CachePolicy):\n"
        "    name: ClassVar[str] = 'a'\ndef register_cache_policies():\n    return [A]",
        "does not define plan_forward",
    ),
    "nameless": (
        "from dllm_sampling import Observer\nclass A(Observer):\n    pass\n"
        "def register_observers():\n    return [A]",
        "A needs a name",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_skipped_listed_and_raises_when_strict(folder, monkeypatch, name):
    text, message = BROKEN[name]
    folder(**{name: text, "good": GOOD})
    with pytest.warns(PluginWarning, match=f"plugin {name} .* is skipped"):
        found = plugins.registry()
    info = next(p for p in found.plugins if p.name == name)
    assert info.status == "broken"
    assert message in info.error
    assert "left_to_right" in found.names("unmasking")  # the rest works
    with pytest.raises(ConfigurationError, match=f"Not loaded, because broken: {name}"):
        found.get("cache", "no_such")
    monkeypatch.setenv(plugins.STRICT, "1")
    with pytest.raises(PluginError, match=f"plugin {name}"):
        plugins.registry()


def test_two_owners_of_one_name(folder):
    folder(first=GOOD, second=GOOD)
    with pytest.raises(
        PluginError, match=r"'left_to_right': first \(.*first.py\) and second \(.*second.py\)"
    ):
        plugins.registry()


def test_a_plugin_may_not_take_a_shipped_name(folder):
    folder(taker=GOOD.replace('"left_to_right"', '"factor"'))
    with pytest.raises(PluginError, match=r"'factor': strategies .* and taker"):
        plugins.registry()


def test_plugins_are_selected_and_disabled(folder, monkeypatch):
    folder(mine=GOOD)
    monkeypatch.setenv(plugins.SELECT, "-mine")
    assert "left_to_right" not in plugins.registry().names("unmasking")
    assert "factor" in plugins.registry().names("unmasking")
    monkeypatch.setenv(plugins.SELECT, "mine,backbones")
    assert plugins.registry().names("unmasking") == ["left_to_right"]
    monkeypatch.setenv(plugins.SELECT, "none")
    assert plugins.registry().names("unmasking") == []
    assert {p.status for p in plugins.registry().plugins} == {"disabled"}
    monkeypatch.setenv(plugins.SELECT, "-mien")
    with pytest.raises(ConfigurationError, match=r"unknown plugin 'mien'. Did you mean 'mine'"):
        plugins.registry()


def test_a_plugins_folder_that_is_not_there(monkeypatch):
    monkeypatch.setenv(plugins.FOLDER, "/no/such/folder")
    with pytest.raises(ConfigurationError, match="plugins folder '/no/such/folder' does not exist"):
        plugins.registry()


def test_a_separate_installed_package(tmp_path):
    """Built with pip from its own pyproject.toml, installed elsewhere, used by name in a new process."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "my_decoder.py").write_text(GOOD)
    (package / "pyproject.toml").write_text(
        textwrap.dedent(
            """
            [build-system]
            requires = ["setuptools"]
            build-backend = "setuptools.build_meta"
            [project]
            name = "my-decoder"
            version = "1.2"
            [project.entry-points.dllm_sampling]
            my_decoder = "my_decoder"
            [tool.setuptools]
            py-modules = ["my_decoder"]
            """
        )
    )
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(site), str(package)], check=True, cwd=tmp_path)
    code = textwrap.dedent(
        f"""
        from dllm_sampling import Sampler, load_model, registry
        model = load_model({str(ROOT / "tests" / "data" / "llada")!r})
        result = Sampler(model, unmasking="left_to_right", stop_at_eos=False).generate([[1, 2]], gen_length=4)
        print(result.forward_of_position.tolist(), registry().owner("unmasking", "left_to_right").source)
        """
    )
    assert printed_by(code, site, tmp_path) == "[[0, 1, 2, 3]] my-decoder 1.2"
