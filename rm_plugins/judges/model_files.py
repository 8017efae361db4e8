"""Identifies the model in a folder by its files, without loading it."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

_ENDINGS = (".jinja", ".json", ".model", ".safetensors", ".txt")
_CHUNK = 64 * 1024
_CHUNKS = 32


def folder_digest(model: str) -> str:
    """A digest of the files of a model's folder; the model itself where it is an id of the hub.

    The size of each file and at most 32 pieces of 64 KiB are read, so that a large model takes no longer than a small one. Training changes all of a
    weight file, so two checkpoints have different digests.
    """
    folder = Path(model)
    if not folder.is_dir():
        return model
    digest = blake2b(digest_size=32)
    for path in sorted(path for path in folder.iterdir() if path.suffix in _ENDINGS and path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        step = max(_CHUNK, size // _CHUNKS)
        with path.open("rb") as file:
            for start in range(0, size, step):
                file.seek(start)
                digest.update(file.read(_CHUNK))
    return digest.hexdigest()
