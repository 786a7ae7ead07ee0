"""Finds a model's files on this machine, checks that they are whole, and fingerprints them.

Never touches the network and never imports torch, so that a missing model is reported at once.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path as FilePath
from typing import Any

from prunebench.backend import ModelSpec
from prunebench.errors import ConfigError, DamagedFile, ModelNotFound

EMBEDDED = "embedded:"
HASHED_BYTES = 1_000_000_000
"""Weights up to this size are hashed in full; larger ones by name and size."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json")
TOKENIZER_EXTRAS = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclass(frozen=True, kw_only=True)
class Location:
    """A model folder.

    Attributes
    ----------
    folder : where config, weights and tokenizer lie.
    commit : the hub's commit, None for folders that do not come from the hub.
    remedy : what to do when a file in it is broken, as a sentence.
    """

    folder: FilePath
    commit: str | None
    remedy: str

    def damaged(self, file: FilePath | str, reason: object) -> DamagedFile:
        return DamagedFile(
            f"The model file {self.folder / file} is damaged: {reason}. {self.remedy}"
        )


def locate(spec: ModelSpec, *, weights: bool = True) -> Location:
    """The folder of a model, which may do without weights. Raises `ModelNotFound` with what to
    download."""
    if spec.path:
        folder = FilePath(spec.path).expanduser()
        if not (folder / "config.json").is_file():
            raise ModelNotFound(
                f"'model.path' must be a folder with config.json, safetensors weights and a "
                f"tokenizer. Got {spec.path} instead, which "
                f"{'has no config.json' if folder.is_dir() else 'is not a folder'}."
            )
        return Location(folder=folder, commit=None, remedy="Copy the folder again.")
    if spec.id.startswith(EMBEDDED):
        return _embedded(spec.id)
    return _from_hub_cache(spec, weights)


def _embedded(model_id: str) -> Location:
    import prunebench

    name = model_id.removeprefix(EMBEDDED)
    folder = FilePath(prunebench.__file__).parent / name / "weights"
    if not (folder / "config.json").is_file():
        raise ModelNotFound(
            f"The embedded model {name!r} is not in this installation: {folder} has no "
            f"config.json. Reinstall prunebench, or set 'model.path=' to a model folder."
        )
    remedy = "Reinstall prunebench with 'pip install --force-reinstall'."
    return Location(folder=folder, commit=None, remedy=remedy)


def _from_hub_cache(spec: ModelSpec, weights: bool) -> Location:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    download = f"hf download {spec.id}" + (f" --revision {spec.revision}" if spec.revision else "")
    if not weights:
        download += ' --exclude "*.safetensors"'
    try:
        config = try_to_load_from_cache(spec.id, "config.json", revision=spec.revision)
    except HFValidationError as error:
        raise ConfigError(
            f"'model.id' must be a hub id such as 'Qwen/Qwen3-8B', or 'embedded:tiny'. "
            f"Got {spec.id!r} instead."
        ) from error
    if not isinstance(config, str):
        raise ModelNotFound(
            f"The {'model' if weights else 'tokenizer of'} {spec.id} is not on this machine"
            f"{f' in revision {spec.revision}' if spec.revision else ''}. Download its config"
            f"{', tokenizer and safetensors weights' if weights else ' and tokenizer'} with "
            f"'{download}', or set 'model.path=' to a folder that holds them."
        )
    folder = FilePath(config).parent
    location = Location(
        folder=folder,
        commit=folder.name,
        remedy=f"Download it again with '{download} --force-download'.",
    )
    missing = [file for file in _weight_files(location) if not (folder / file).is_file()]
    if missing and weights:
        raise ModelNotFound(
            f"The model {spec.id} is on this machine only in part: {missing[0]} is missing from "
            f"{folder}. Complete it with '{download}', or set 'model.path=' to a whole folder."
        )
    return location


def _weight_files(location: Location) -> list[str]:
    """Names of the weights, whether they exist or not."""
    index = location.folder / "model.safetensors.index.json"
    if index.is_file():
        shards = read_json(location, index.name).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise location.damaged(index.name, "it lists no weights")
        return sorted(set(shards.values()))
    single = sorted(f.name for f in location.folder.glob("*.safetensors"))
    return single or ["model.safetensors"]


def read_json(location: Location, name: str) -> dict[str, Any]:
    """A JSON object of the model folder. Raises `DamagedFile`."""
    try:
        content = json.loads((location.folder / name).read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise location.damaged(name, error) from error
    if not isinstance(content, dict):
        raise location.damaged(name, "it must hold a JSON object")
    return content


def stored_dtype(location: Location) -> str:
    """The number format that the weights are stored in, by the model's configuration."""
    config = read_json(location, "config.json")
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def end_tokens(location: Location) -> list[int]:
    """The ids that the model's files name as end of text, by the rule of transformers: those of
    generation_config.json if there is one, else those of config.json."""
    name = "generation_config.json"
    name = name if (location.folder / name).is_file() else "config.json"
    ids = read_json(location, name).get("eos_token_id")
    return [] if ids is None else [int(i) for i in (ids if isinstance(ids, list) else [ids])]


def check_files(location: Location, *, weights: bool = True) -> None:
    """Raise `DamagedFile` when a file is missing, cut off or not what its name says."""
    from safetensors import SafetensorError, safe_open

    read_json(location, "config.json")
    for name in ("generation_config.json", "tokenizer_config.json", "tokenizer.json"):
        if (location.folder / name).is_file():
            read_json(location, name)
    if not any((location.folder / name).is_file() for name in TOKENIZER_FILES):
        raise DamagedFile(
            f"The model folder {location.folder} has no tokenizer (none of "
            f"{', '.join(TOKENIZER_FILES)}). {location.remedy}"
        )
    for name in _weight_files(location) if weights else ():
        file = location.folder / name
        if not file.is_file():
            raise DamagedFile(
                f"The model folder {location.folder} lacks its weights {name}; weights must be "
                f"in safetensors format. {location.remedy}"
            )
        try:
            with safe_open(file, framework="numpy"):
                pass  # the header is checked against the length of the file
        except (SafetensorError, OSError) as error:
            raise location.damaged(name, error) from error


def fingerprint(location: Location) -> dict[str, str]:
    """What determines the model's numbers: the hub's commit, or a hash of the weights; and a hash
    of the tokenizer. The key says when large weights were hashed by name and size only."""
    tokenizer = tokenizer_fingerprint(location)
    if location.commit:
        return {"revision": location.commit, **tokenizer}
    weights = [n for n in _weight_files(location) if (location.folder / n).is_file()]
    settings = [
        n
        for n in ("config.json", "generation_config.json", "model.safetensors.index.json")
        if (location.folder / n).is_file()
    ]
    whole = sum((location.folder / n).stat().st_size for n in weights) <= HASHED_BYTES
    digest = hashlib.sha256(
        (
            _digest(location.folder, tuple(settings), True)
            + _digest(location.folder, tuple(weights), whole)
        ).encode()
    ).hexdigest()
    return {"weights_sha256" if whole else "weights_sizes_sha256": digest, **tokenizer}


def tokenizer_fingerprint(location: Location) -> dict[str, str]:
    """A hash of the tokenizer."""
    names = [n for n in (*TOKENIZER_FILES, *TOKENIZER_EXTRAS) if (location.folder / n).is_file()]
    return {"tokenizer_sha256": _digest(location.folder, tuple(names), True)}


def _digest(folder: FilePath, names: tuple[str, ...], contents: bool) -> str:
    stamps = tuple((folder / n).stat() for n in names)
    state = tuple((s.st_size, s.st_mtime_ns) for s in stamps)
    return _cached_digest(folder, names, contents, state)


@cache
def _cached_digest(
    folder: FilePath, names: tuple[str, ...], contents: bool, state: tuple[tuple[int, int], ...]
) -> str:
    total = hashlib.sha256()
    for name, (size, _) in zip(names, state, strict=True):
        total.update(f"{name} {size}\n".encode())
        if contents:
            with (folder / name).open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
