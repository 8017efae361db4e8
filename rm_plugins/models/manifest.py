"""``reward_manifest.json``: what a trained reward model needs to give the same number everywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_serializer,
    model_serializer,
)

from rm_plugins.errors import ManifestError, SpecError
from rm_plugins.files import write_atomically
from rm_plugins.models.heads import Heads
from rm_plugins.rendering.rendering import Rendering
from rm_plugins.samples import RenderedSample, Sample
from rm_plugins.scores import FloatArray
from rm_plugins.wire import sample_from_json
from rm_plugins.written_settings import read_text

MANIFEST_NAME = "reward_manifest.json"

SampleFormat: TypeAlias = Literal["text", "conversations"]
"""What samples are: text, or lists of messages."""

_MOST_BYTES = 64 * 2**20
_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "vocab.txt", "merges.txt")
_NOT_THE_MODEL = {MANIFEST_NAME, "trainer_state.json", "loss_state.json", "made_with.json"}
_TOLERANCE = {"float32": 1e-4, "float64": 1e-4, "int8": 0.2, "int4": 1.0, "nf4": 1.0}
"""How much golden scores may differ, relative to 1 + abs(score), by dtype and quantization."""
_HALF_TOLERANCE = 5e-2


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ScoreStatistics(_Strict):
    """Mean, standard deviation (ddof 0), minimum, maximum and number of the scores a model gave on `source`."""

    mean: float
    std: float
    min: float
    max: float
    count: int
    source: str

    @classmethod
    def of(cls, scores: Sequence[float] | FloatArray, source: str) -> ScoreStatistics | None:
        """The statistics of the scores seen on `source`, [N]; None where there are none, or one is not finite.

        >>> ScoreStatistics.of([1.0, 3.0], "eval").std
        1.0
        """
        values = np.asarray(scores, dtype=np.float64)
        if not len(values) or not np.isfinite(values).all():
            return None
        moments = {name: float(getattr(values, name)()) for name in ("mean", "std", "min", "max")}
        return cls(**moments, count=len(values), source=source)


class GoldenScore(_Strict):
    """A golden sample, its token ids' digest, and the score that the trained model gave it."""

    sample: dict[str, Any]
    token_ids: str
    score: float

    def as_sample(self) -> Sample:
        """The sample itself."""
        return sample_from_json(self.sample)


class FileDigest(_Strict):
    """Size in bytes and SHA-256 of a file of the model."""

    size: int
    sha256: str


class Manifest(_Strict):
    """Everything in ``reward_manifest.json``.

    Args:
        version: The version of the manifest's format.
        created_by: The packages that wrote the model, each with its version.
        rendering: How samples become token ids.
        dtype: The dtype that the golden scores were computed in.
        heads: What the model's outputs are, where it has several.
        statistics: The scores of the evaluation data, or of the last training batches where there was none.
        training: What the model was trained on and how; for readers, not for the program.
        trained_on: Whether the samples that it was trained on were text or conversations; None where they were both, or it is not known.
        files: The model's files beside the manifest, by name.
        golden: Golden samples with their scores.
    """

    version: Literal[1] = 1
    created_by: dict[str, str]
    rendering: Rendering
    dtype: str
    heads: Heads | None = None
    statistics: ScoreStatistics | None = None
    training: dict[str, Any] = Field(default_factory=dict)
    trained_on: SampleFormat | None = None
    files: dict[str, FileDigest] = Field(default_factory=dict)
    golden: list[GoldenScore] = Field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """The manifest in a file.

        Raises:
            ManifestError: The file is not a manifest, or has a version that this rm-plugins does not know.
        """
        try:
            return cls.model_validate_json(read_text(path, _MOST_BYTES))
        except SpecError as error:
            raise ManifestError(f"The manifest cannot be read: {error}") from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise ManifestError(
                f"{path} is not a manifest that this version of rm-plugins reads: {where}: {first['msg']}. Train again, or "
                "delete it to use the model with default rendering."
            ) from error

    def write(self, folder: Path) -> Path:
        """Write the manifest into `folder`, whole or not at all."""
        return write_atomically(folder / MANIFEST_NAME, self.model_dump_json(indent=2) + "\n")

    @model_serializer(mode="wrap")
    def _without_unknown_format(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = serialize(self)
        if self.trained_on is None:  # as manifests were before they had it, which keeps their digests
            del written["trained_on"]
        return written

    @field_serializer("rendering")
    def _rendering_as_json(self, rendering: Rendering) -> dict[str, Any]:
        return rendering.as_json()

    @property
    def digest(self) -> str:
        """The SHA-256 of its contents, as hexadecimal text."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def tolerance(self, score: float, *computed_in: str) -> float:
        """How much a golden score may differ when it is computed again: 1e-4 (1 + abs(score)) in float32.

        Args:
            score: The golden score.
            computed_in: The dtype and, if there is one, the quantization.
        """
        widest = max(_TOLERANCE.get(name, _HALF_TOLERANCE) for name in (self.dtype, *computed_in))
        return widest * (1 + abs(score))

    def size_problems(self, folder: Path) -> list[str]:
        """Weight files whose size has changed since they were written, one line each; reads no file."""
        sizes = {name: file.size for name, file in self.files.items() if name.endswith(".safetensors")}
        return [
            f"{name} has {(folder / name).stat().st_size} bytes; {size} were written"
            for name, size in sizes.items()
            if (folder / name).is_file() and (folder / name).stat().st_size != size
        ]

    def file_problems(self, folder: Path) -> list[str]:
        """Files that are missing or have changed since they were written, one line each; reads them all."""
        present = file_digests(folder, self.files)
        missing = [f"{name} is missing" for name in self.files if name not in present]
        changed = [f"{name} has other contents than were written" for name in present if present[name] != self.files[name]]
        return missing + changed


def common_format(formats: Iterable[SampleFormat | None]) -> SampleFormat | None:
    """The format that all were trained on; None where they differ, or where one is not known.

    >>> common_format(["text", "text"]), common_format(["text", "conversations"]), common_format(["text", None])
    ('text', None, None)
    """
    distinct = set(formats)
    return distinct.pop() if len(distinct) == 1 else None


def samples_in_other_format(samples: Sequence[Sample], trained_on: SampleFormat | None) -> int:
    """How many samples are text where a model was trained on conversations, or the other way round; rendered ones do not count."""
    if trained_on is None:
        return 0
    is_conversational = trained_on == "conversations"
    return sum(
        sample.is_conversational is not is_conversational for sample in samples if not isinstance(sample, RenderedSample)
    )


def token_digest(ids: Iterable[int]) -> str:
    """A short digest of token ids."""
    return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()[:16]


def file_digests(folder: Path, names: Iterable[str] | None = None) -> dict[str, FileDigest]:
    """The digests of the named files of a model folder that exist, of all its model files by default."""
    if names is None:
        present = {path.name for pattern in _FILES for path in folder.glob(pattern)} - _NOT_THE_MODEL
        names = sorted(name for name in present if not name.startswith("."))
    digests = {}
    for name in names:
        path = folder / name
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            digests[name] = FileDigest(size=path.stat().st_size, sha256=digest)
    return digests
