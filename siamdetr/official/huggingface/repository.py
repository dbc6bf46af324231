"""The place of a Hugging Face checkpoint: a folder, or a repository of the hub.

Repositories are fetched into the hub's cache.

Only JSON and safetensors are fetched and read. `HF_HUB_OFFLINE=1`, `HF_HOME`, `HF_TOKEN` and the like mean what they
mean to huggingface_hub.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from siamdetr.errors import HubError
from siamdetr.models.backbone.weight_files import read_weight_file, unwrap_state_dict

PREFIX = "hf:"
CONFIG, PREPROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
_SHARDS = "model.safetensors.index.json"
_FETCHED = (CONFIG, PREPROCESSOR, "*.safetensors", _SHARDS)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_REMEDY = (
    "Save it as safetensors where you trust it: `AutoModelForObjectDetection.from_pretrained(NAME).save_pretrained(FOLDER)` "
    "with transformers, then give the folder"
)


@dataclass(frozen=True)
class Repository:
    """A folder with a checkpoint's files."""

    folder: Path
    name: str  # ORG/NAME of the hub, else the folder
    revision: str | None = None  # the commit it was fetched at; None: a local folder


def is_huggingface(source: str | Path) -> bool:
    """Whether `source` is `hf:ORG/NAME`, or a folder with transformers' config.json."""
    if str(source).startswith(PREFIX):
        return True
    path = Path(source) / CONFIG
    return path.is_file() and "model_type" in read_json(path)


def open_repository(source: str | Path) -> Repository:
    """Open the checkpoint that `source` names.

    It is a folder, `hf:ORG/NAME` or `hf:ORG/NAME@REVISION`, which is fetched if necessary.

    Raises:
        HubError: it is not there, or cannot be fetched; the text says what to bring and where.
    """
    text = str(source)
    if not text.startswith(PREFIX):
        return Repository(Path(source), text)
    name, _, revision = text.removeprefix(PREFIX).partition("@")
    folder = _fetch(name, revision or None)
    return Repository(folder, name, folder.name)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        HubError: not JSON, or no object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise HubError(f"{path}: not a JSON file ({error}); fetch it again") from error
    if not isinstance(values, dict):
        raise HubError(f"{path}: expected an object of names and values, got {type(values).__name__}")
    return values


def read_tensors(repository: Repository) -> dict[str, Tensor]:
    """All tensors of the checkpoint, also where they are in several files.

    Raises:
        HubError: there are no safetensors, or one of several files is missing.
        WeightFileError: a file is damaged.
    """
    folder = repository.folder
    if (folder / WEIGHTS).is_file():
        return unwrap_state_dict(read_weight_file(folder / WEIGHTS), str(folder / WEIGHTS))
    if not (folder / _SHARDS).is_file():
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        raise HubError(
            f"{repository.name}: no {WEIGHTS} in it"
            + (f", only {', '.join(pickles)}" if pickles else "")
            + ". PyTorch's pickles (pytorch_model.bin) are refused, because loading them can run code. "
            + _REMEDY
        )
    names = sorted(set(read_json(folder / _SHARDS).get("weight_map", {}).values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise HubError(f"{folder / _SHARDS}: names files that are not there: {', '.join(missing) or 'none at all'}")
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors |= unwrap_state_dict(read_weight_file(folder / name), str(folder / name))
    return tensors


def send(folder: Path, repository: str) -> str:
    """Upload the folder's files, after creating the repository if necessary; returns its address.

    Raises:
        HubError: no network, no right to write there, or no such name.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        api = HfApi()
        address = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Add a detector of siamdetr")
    except OfflineModeIsEnabled as error:
        raise HubError(f"{repository}: not sent, HF_HUB_OFFLINE is set; the files are in {folder}") from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise HubError(
            f"{repository}: not sent: {' '.join(str(error).split())[:300]}. Log in with `hf auth login` or set HF_TOKEN to a token "
            f"that may write there; the files are in {folder}"
        ) from error
    return str(address)


def _fetch(name: str, revision: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    address = f"{constants.ENDPOINT}/{name}"
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_FETCHED)))
    except HFValidationError as error:
        raise HubError(f"hf:{name}: not a name of the hub, expected hf:ORG/NAME or hf:ORG/NAME@REVISION") from error
    except GatedRepoError as error:
        raise HubError(
            f"hf:{name}: its owner wants to be asked: accept the terms at {address}, then `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise HubError(f"hf:{name}: there is no revision '{revision}'; see {address}/tree/main") from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"hf:{name}: there is no such repository at {constants.ENDPOINT}, or it is private: check the name; for a private "
            "one `hf auth login`"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
        raise HubError(
            f"hf:{name}: {offline}, and it is not in the cache {constants.HF_HUB_CACHE}. On a machine with network fetch {CONFIG}, "
            f"{PREPROCESSOR} and {WEIGHTS} from {address}/tree/{revision or 'main'}, put them into one folder, and give the folder"
        ) from error
