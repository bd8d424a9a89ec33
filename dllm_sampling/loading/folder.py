"""Where a checkpoint lies: a folder, or a hub id that is downloaded."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from dllm_sampling.errors import CheckpointError, ConfigurationError, shown

_FILES = ("*.json", "*.safetensors", "*.jinja", "merges.txt", "*.model")


BUNDLED = Path(__file__).parent.parent / "bundled" / "word-problems"


def checkpoint_folder(
    source: str | Path | None = None, revision: str | None = None, *, what: str = "model"
) -> Path:
    """Where a checkpoint lies on this machine; a hub id is downloaded."""
    if not isinstance(source, (str, Path, type(None))) or not (revision is None or isinstance(revision, str)):
        known = isinstance(source, (str, Path, type(None)))
        given = f"revision={shown(revision)}" if known else f"{what}={shown(source)}"
        raise ConfigurationError(f"{given} is no text: a folder or a hub id, and perhaps its revision.")
    if source is None:
        return BUNDLED
    if not str(source).strip():
        raise CheckpointError(f"the {what} folder has an empty name.")
    try:
        path = Path(source).expanduser()
        if path.is_dir():
            return path
        if path.exists():
            raise CheckpointError(f"the {what} {str(source)!r} is a file; give the folder that it lies in.")
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"the {what} folder {shown(str(source))} cannot be opened: {error}") from None
    if isinstance(source, Path) or path.is_absolute() or str(source).startswith((".", "~")):
        raise CheckpointError(f"the {what} folder {str(source)!r} does not exist.")
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(_FILES)))
    except HFValidationError as error:
        raise CheckpointError(f"{source!r} is neither a folder nor a hub id: {error}") from None
    except Exception as error:
        raise CheckpointError(
            f"{source!r} is no local folder, and the hub did not give it: {type(error).__name__}: {error}"
        ) from error
