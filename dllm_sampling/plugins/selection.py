"""Which plugins are loaded, and what of theirs is left out: the wording of `DLLM_SAMPLING_PLUGINS`.

Entries are separated by commas:

- `all`, or nothing: every plugin. `none`: no plugin.
- `NAME`: only the plugins that are named so, built-ins included.
- `-NAME`: without the plugin of that name. Where no plugin has it, without everything that any plugin offers
  under it: a policy of any kind, a model family, a task.
- `-PLUGIN:NAME`: without what that one plugin offers under the name.

`--disable NAME` of the command line adds `-NAME`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

from dllm_sampling.errors import ConfigurationError, PluginWarning, nearest, shown, unknown_name
from dllm_sampling.plugins.registry import SELECT, Registry


@dataclass(frozen=True)
class Selection:
    """What the user has chosen among the plugins that were found.

    plugins: those that are loaded. off: names of what is left out, bare or as plugin:name.
    """

    plugins: frozenset[str]
    off: frozenset[str]

    @classmethod
    def of(cls, text: str, known: Iterable[str]) -> Selection:
        """Read the setting; ConfigurationError for a plugin that is selected and not among the `known`."""
        known = frozenset(known)
        parts = [part.strip() for part in text.split(",") if part.strip()]
        off = frozenset(part[1:].strip() for part in parts if part.startswith("-"))
        on = frozenset(part for part in parts if not part.startswith("-") and part != "all")
        if on == {"none"}:
            return cls(frozenset(), frozenset())
        for name in sorted(on - known):
            raise ConfigurationError(f"{SELECT}: " + unknown_name("plugin", name, known))
        return cls((on or known) - off, off - known)

    def check(self, found: Registry) -> None:
        """Refuse a name to be left out that nothing has: it is misspelt.

        Where a plugin is disabled or broken, its names are not known, and a warning has to do.
        """
        names = {plugin.name for plugin in found.plugins}
        for plugin in found.plugins:
            for offered in (*plugin.provides.values(), *plugin.switched_off.values()):
                names |= {*offered, *(f"{plugin.name}:{name}" for name in offered)}
        loaded = all(plugin.status == "loaded" for plugin in found.plugins)
        for name in sorted(self.off - names):
            close = nearest(name, names)
            hint = f" Did you mean {close!r}?" if close else ""
            message = (
                f"{SELECT}: no plugin is called {shown(name)}, and none offers that name, so it cannot be "
                f"left out.{hint} `dllm-sampling plugins --all` lists them."
            )
            if loaded:
                raise ConfigurationError(message)
            warnings.warn(message, PluginWarning, stacklevel=4)
