"""Discovery, diagnostics, selection and failure of plugins."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pluggy
import pytest

from dllm_sampling import (
    ConfigurationError,
    PluginError,
    PluginWarning,
    Sampler,
    SamplerSettings,
    caches,
    strategies,
)
from dllm_sampling.engine.run_hooks import policies_of, slots
from dllm_sampling.plugins import discovery as plugins
from dllm_sampling.plugins.registry import KIND_TITLES
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

def register():
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


OBSERVER = """
from typing import ClassVar
from dllm_sampling import Observer
class Seen(Observer):
    name: ClassVar[str] = "seen"
"""
BROKEN = {
    "raises": ("raise RuntimeError('out of luck')", "RuntimeError: out of luck"),
    "syntax": ("def :", "SyntaxError"),
    "empty": ("x = 1", "offers nothing: define `register()`"),
    "misspelt": ("def regsiter():\n    return []", "Is 'regsiter' meant to be it?"),
    "several": ("def register_policies():\n    return []", "Is 'register_policies' meant to be it?"),
    "version": ("HOOK_VERSION = 99\ndef register():\n    return []", "version 99 of the hooks"),
    "not_a_list": ("def register():\n    return 3", "returned 3, not a list of classes"),
    "no_function": (
        "import functools\n@functools.cache\ndef register():\n    return []",
        "which is no plain function",
    ),
    "nothing": ("def register():\n    pass", "returned None, not a list of classes"),
    "not_a_class": ("def register():\n    return [3]", "which is not a class"),
    "of_no_kind": ("class A:\n    name = 'a'\ndef register():\n    return [A]", "A, which is of no kind"),
    "of_another_kind": (
        "from dllm_sampling.caches import DualCache\nclass A(DualCache):\n    name = 'a'\n    kind = 'wrappers'\n"
        "def register():\n    return [A]",
        "A says kind='wrappers', but is no subclass of Wrapper",
    ),
    "of_an_unknown_kind": (
        "from dllm_sampling.caches import DualCache\nclass A(DualCache):\n    name = 'a'\n    kind = 'cahce'\n"
        "def register():\n    return [A]",
        "A, which is of no kind",
    ),
    "no_family": (
        "class A:\n    kind = 'backbone'\n    name = 'a'\n    def matches(config): return True\n"
        "def register():\n    return [A]",
        "A says kind='backbone', but is no subclass of Backbone",
    ),
    "half_a_family": (
        "from dllm_sampling import Backbone\nclass A(Backbone):\n    name = 'a'\n"
        "def register():\n    return [A]",
        "A does not define matches, stock",
    ),
    "abstract": (
        "from dllm_sampling import CachePolicy\nfrom typing import ClassVar\nclass A(CachePolicy):\n"
        "    name: ClassVar[str] = 'a'\ndef register():\n    return [A]",
        "does not define plan_forward",
    ),
    "nameless": (
        "from dllm_sampling import Observer\nclass A(Observer):\n    pass\ndef register():\n    return [A]",
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


GONE = (
    "unmasking_policies", "cache_policies", "block_schedules", "logits_transforms", "wrappers", "observers",
    "backbones", "tasks",
)  # fmt: skip


@pytest.mark.parametrize("kinds", GONE)
def test_a_module_written_for_the_old_functions_is_told_what_to_do(folder, kinds):
    # Beside a `register` too: what the old function returns would be left out in silence.
    folder(old=f"def register_{kinds}():\n    return []", half=GOOD + f"\ndef register_{kinds}(): return []")
    with pytest.warns(PluginWarning) as told:
        found = plugins.registry()
    assert [
        str(w.message).count(f"defines register_{kinds}, which is not called any more") for w in told
    ] == [1, 1]
    assert "returns the classes of every kind in one list. Rename it" in str(told[0].message)
    assert "left_to_right" not in found.names("unmasking")


def test_one_list_holds_every_kind(folder):
    folder(
        mine=GOOD.replace("[LeftToRight]", "[Seen, LeftToRight, Doubling, Kept, Mine]")
        + OBSERVER
        + textwrap.dedent(
            """
            from dllm_sampling import CachePolicy, ForwardPlan, Task
            from dllm_sampling.backbones.llada import LLaDA
            class Kept(CachePolicy):
                name = "kept"
                def plan_forward(self, state, region):
                    return ForwardPlan.full(state)
            class Doubling(Task):
                name = "doubling"
                def examples(self): return []
                def is_correct(self, text, example): return True
            class Mine(LLaDA):
                name = "mine"
            """
        )
    )
    found = plugins.registry()
    assert next(p.provides for p in found.plugins if p.name == "mine") == {
        "observers": ["seen"], "unmasking": ["left_to_right"], "task": ["doubling"], "cache": ["kept"],
        "backbone": ["mine"],
    }  # fmt: skip


def test_a_plugin_is_loaded_whole_or_not_at_all(folder):
    folder(half=GOOD.replace("[LeftToRight]", "[LeftToRight, 3]"))
    with pytest.warns(PluginWarning, match="3, which is not a class"):
        assert "left_to_right" not in plugins.registry().names("unmasking")


def test_it_is_pluggy_that_calls_register(folder, monkeypatch):
    """A plugin's function is an implementation of the hook: pluggy checks and calls it."""
    called = []
    execute = pluggy._hooks.HookCaller.__call__

    def noted(self, **arguments):
        called.append((self.name, [implementation.plugin_name for implementation in self.get_hookimpls()]))
        return execute(self, **arguments)

    monkeypatch.setattr(pluggy._hooks.HookCaller, "__call__", noted)
    folder(mine=GOOD)
    plugins.registry()
    assert ("register", ["dllm_sampling_plugin_mine"]) in called
    assert ("register", ["dllm_sampling.caches"]) in called


# What a module offers itself -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "from _other import register_tasks, register_model, registr\n" + GOOD,
        "from atexit import register as register_tasks\n" + GOOD,
        "from _offers import register",  # from beside it: its own
        "from _offers import *",
        "from _offers import LeftToRight\nregister = lambda: [LeftToRight]",
        "from _offers import LeftToRight\nclass A:\n    def register(self): return [LeftToRight]\nregister = A().register",
    ],
)  # fmt: skip
def test_what_is_imported_makes_no_module_an_unknown_plugin(folder, text):
    other = "def register_tasks(): raise OSError\ndef register_model(): raise OSError\ndef registr(): raise OSError"
    folder(mine=text, _other=other, _offers=GOOD)
    provides = next(p.provides for p in plugins.registry().plugins if p.name == "mine")
    assert provides == {"unmasking": ["left_to_right"]}


def test_a_register_from_another_package_counts_where_the_module_says_so(folder, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "plugin_of_somebody.py").write_text(GOOD)
    monkeypatch.syspath_prepend(str(elsewhere))
    folder(mine="from plugin_of_somebody import register")
    with pytest.warns(PluginWarning, match=r"`register` is imported from plugin_of_somebody. .* `__all__ = "):
        assert "left_to_right" not in plugins.registry().names("unmasking")
    folder(mine="from plugin_of_somebody import register\n__all__ = ['register']")
    assert "left_to_right" in plugins.registry().names("unmasking")
    # Such a name may be anything: it is not called.
    folder(mine="from atexit import register")
    with pytest.warns(PluginWarning, match="`register` is imported from atexit"):
        plugins.registry()


# Names with two owners, and names that are switched off ----------------------------------------------


def test_two_owners_of_one_name(folder, monkeypatch):
    folder(first=GOOD, second=GOOD.replace("[LeftToRight]", "[LeftToRight, Seen]") + OBSERVER)
    with pytest.raises(
        PluginError, match=r"'left_to_right': first \(.*first.py\) and second \(.*second.py\)"
    ) as told:
        plugins.registry()
    # The advice helps: the one name is switched off, and the rest of its plugin stays.
    advice = re.search(r"DLLM_SAMPLING_PLUGINS=(-\S+), or", str(told.value))[1]
    assert advice == "-second:left_to_right"
    monkeypatch.setenv(plugins.SELECT, advice)
    found = plugins.registry()
    assert found.owner("unmasking", "left_to_right").name == "first"
    assert found.names("observers") == ["seen"]


def test_a_plugin_may_not_take_a_shipped_name(folder, monkeypatch):
    folder(taker=GOOD.replace('"left_to_right"', '"factor"'))
    with pytest.raises(PluginError, match=r"'factor': strategies .* and taker"):
        plugins.registry()
    monkeypatch.setenv(plugins.SELECT, "-strategies:factor")
    assert plugins.registry().owner("unmasking", "factor").name == "taker"


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
    with pytest.raises(ConfigurationError, match=r"no plugin is called 'mien', .* Did you mean 'mine'"):
        plugins.registry()
    monkeypatch.setenv(plugins.SELECT, "mien")
    with pytest.raises(ConfigurationError, match=r"unknown plugin 'mien'. Did you mean 'mine'"):
        plugins.registry()


def test_one_class_is_switched_off_by_its_name(folder, monkeypatch):
    folder(mine=GOOD.replace("[LeftToRight]", "[LeftToRight, Seen]") + OBSERVER)
    every = {kind: plugins.registry().names(kind) for kind in KIND_TITLES}
    for name, kind, owner in (
        ("factor", "unmasking", "strategies"),
        ("none", "cache", "caches"),
        ("eos_guard", "wrappers", "strategies"),
        ("seen", "observers", "mine"),
        ("llada", "backbone", "backbones"),
        ("word_problems", "task", "bundled"),
    ):
        for written in (f"-{name}", f"all, - {owner}:{name}"):
            monkeypatch.setenv(plugins.SELECT, written)
            found = plugins.registry()
            left = {kind: found.names(kind) for kind in KIND_TITLES}
            assert left == every | {kind: [n for n in every[kind] if n != name]}
            assert list(found.switched_off(kind)) == [name]
            info = found.owner(kind, name)
            assert (info.name, info.status, info.switched_off) == (owner, "loaded", {kind: [name]})
            with pytest.raises(ConfigurationError, match=f"{name!r} of plugin {owner} is switched off"):
                found.get(kind, name)
    monkeypatch.setenv(plugins.SELECT, "-none")
    with pytest.raises(ConfigurationError, match="the cache policy 'none' of plugin caches is switched off"):
        Sampler(tiny())


def test_every_shipped_class_can_be_switched_off(folder, monkeypatch):
    folder()
    for module in (strategies, caches):
        for cls in module.register():
            monkeypatch.setenv(plugins.SELECT, f"-{cls.name}")
            assert cls.name not in plugins.registry().names(cls.kind)


def test_a_name_that_nothing_has_cannot_be_switched_off(folder, monkeypatch):
    folder(mine=GOOD)
    for written in ("-facto", "-strategies:facto", "-caches:factor"):
        monkeypatch.setenv(plugins.SELECT, written)
        with pytest.raises(ConfigurationError, match=r"cannot be left out\. Did you mean '"):
            plugins.registry()
    # It may be a name of a plugin that is not loaded.
    folder(broken="raise ValueError")
    monkeypatch.setenv(plugins.SELECT, "-facto")
    with pytest.warns(PluginWarning) as told:
        assert "factor" in plugins.registry().names("unmasking")
    assert any("no plugin is called 'facto'" in str(warning.message) for warning in told)


def test_what_is_essential_is_what_the_defaults_and_the_readme_need(monkeypatch):
    monkeypatch.delenv(plugins.FOLDER, raising=False)
    essential = {cls.name for module in (strategies, caches) for cls in module.ESSENTIAL}
    settings = SamplerSettings()
    needed = {policy.name for _, policy, _ in slots(policies_of(settings))}
    # What the README's commands, its Python and its table name; not the rule that it defines itself.
    readme = (ROOT / "README.md").read_text(encoding="utf-8").partition("## A strategy in twenty lines")[0]
    shipped = {cls.name for module in (strategies, caches) for cls in module.register()}
    needed |= {name for name in shipped if re.search(rf"--(unmasking|cache|schedule) {name}\b", readme)}
    needed |= {name for name in shipped if f'"{name}"' in readme}
    needed |= {name for name in shipped if re.search(rf"^{name.replace('_', '-')} [\d.]+, ", readme, re.M)}
    assert essential == needed


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
