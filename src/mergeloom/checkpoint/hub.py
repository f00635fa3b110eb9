"""Models on the hub: headers by range requests, side files by download, weights when fetched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from mergeloom.checkpoint.file_kinds import module_folders, side_files
from mergeloom.checkpoint.folder import Weights, choose_weights
from mergeloom.checkpoint.locate import HubModel, nearest_local
from mergeloom.checkpoint.open import open_folder, read_config, with_gguf
from mergeloom.checkpoint.quantized import dequantized
from mergeloom.checkpoint.quantized.bitsandbytes import states
from mergeloom.checkpoint.report import Report
from mergeloom.checkpoint.safetensors_header import header_length, parse_header
from mergeloom.checkpoint.weights import read_file, read_weights
from mergeloom.errors import CheckpointError, Problems
from mergeloom.types import Checkpoint, ModelReference, View

_FIRST = 100_000
"""Bytes asked for at first: nearly every header is shorter, so that one request is enough."""

_WORKERS = 8
_FETCHERS = 4
_EXTRA = ("config.json", "adapter_config.json", "modules.json", "README.md")  # its licence

T = TypeVar("T")


class _HubError(Exception):
    """A request failed for a reason that has been put into words.

    Args:
        message: what happened.
        hint: the next step.
        unknown: whether the name may be wrong.
        unreachable: whether the cache may be used instead.
    """

    def __init__(
        self, message: str, hint: str = "", *, unknown: bool = False, unreachable: bool = False
    ) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint
        self.unknown, self.unreachable = unknown, unreachable


def open_hub(
    reference: ModelReference, place: HubModel, report: Report, cache_dir: Path | None
) -> Checkpoint | None:
    """Open a hub model: download its side files, read the headers of its weights.

    Without a connection the local cache is used if it has the model; with ``HF_HUB_OFFLINE=1``
    no connection is tried.
    """
    from huggingface_hub import constants

    cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser().absolute()
    cached = _cached_snapshot(place, cache)
    if constants.HF_HUB_OFFLINE:
        if cached is not None:
            return _open_cached(reference, cached, report)
        report.error(
            f"{reference} is neither a local path nor in the cache {cache}, and with "
            "HF_HUB_OFFLINE set nothing is downloaded",
            nearest_local(reference.path) or "Unset HF_HUB_OFFLINE, or download the model first",
        )
        return None
    try:
        return _Repository(reference, place, cache).open(report)
    except _HubError as error:
        if error.unreachable and cached is not None:
            report.warn(f"{error.message}: the copy of {reference} in the cache is used")
            return _open_cached(reference, cached, report)
        local = nearest_local(reference.path) if error.unknown else ""
        report.error(error.message, local or error.hint)
        return None


def _repository_folder(repo_id: str) -> str:
    """The name of a repository's folder in the cache."""
    return "--".join(["models", *repo_id.split("/")])


def _cached_snapshot(place: HubModel, cache: Path) -> Path | None:
    """The cached files of a revision, found without asking anyone."""
    folder = cache / _repository_folder(place.repo_id)
    revision = place.revision or "main"
    note = folder / "refs" / revision
    commit = note.read_text().strip() if note.is_file() else revision
    snapshot = folder / "snapshots" / commit
    return snapshot if commit not in ("", ".", "..") and snapshot.is_dir() else None


def _open_cached(reference: ModelReference, snapshot: Path, report: Report) -> Checkpoint | None:
    before = len(report.problems.errors)
    opened = open_folder(reference, snapshot, report, revision=snapshot.name)
    if opened is None and len(report.problems.errors) > before:
        report.error(
            f"the copy of {reference} in the cache cannot be used without a connection",
            "Connect (or unset HF_HUB_OFFLINE) to download what is missing",
        )
    return opened


class _Repository:
    """One repository at one commit."""

    def __init__(self, reference: ModelReference, place: HubModel, cache: Path) -> None:
        from huggingface_hub import HfApi

        self._reference = reference
        self._repo = place.repo_id
        self._cache = cache
        info = self._ask(
            partial(
                HfApi().model_info,
                place.repo_id,
                revision=place.revision,
                files_metadata=True,
                timeout=30,
            )
        )
        self._commit: str = info.sha or place.revision or "main"
        self._sizes: dict[str, int | None] = {s.rfilename: s.size for s in info.siblings or ()}
        self._root = cache / _repository_folder(self._repo) / "snapshots" / self._commit
        if place.revision != self._commit:
            self._remember(place.revision or "main")

    def open(self, report: Report) -> Checkpoint | None:
        """Read everything but the weights."""
        names = frozenset(self._sizes)
        shown = str(self._reference)
        errors = len(report.problems.errors)
        indexes = [n for n in names if n.endswith((".safetensors.index.json", ".bin.index.json"))]
        self._download([*indexes, *(n for n in _EXTRA if n in names)])
        config = read_config(self._reference, self._root, names, shown, report)
        weights = choose_weights(self._root, names, shown, report)
        if weights is None:
            return None
        beside = side_files(names, module_folders(self._root))
        self._download(beside)
        # A pickle's header is spread over the file: it has to be here. Those of safetensors are
        # asked for all at once.
        self._download([file for file in weights.files if not file.endswith(".safetensors")])
        bare = Checkpoint(
            label=shown,
            root=self._root,
            tensors={},
            config=config,
            side_files=beside,
            revision=self._commit,
            is_local=False,
        )
        if weights.files[0].endswith(".gguf"):
            made = with_gguf(bare, self._root / weights.files[0], self._reference, report)
            return made if len(report.problems.errors) == errors else None
        tensors = self._tensors(weights, shown, report)
        if tensors is not None:
            tensors = dequantized(tensors, config, shown, report)
        if tensors is None or len(report.problems.errors) > errors:
            return None
        return replace(
            bare,
            tensors=tensors,
            fetch={
                self._root / file: (self._repo, self._commit, file)
                for file in weights.files
                if not (self._root / file).exists()
            },
        )

    def _tensors(self, weights: Weights, shown: str, report: Report) -> dict[str, View] | None:
        """The stored tensors of all files; None after a mistake."""
        with ThreadPoolExecutor(_WORKERS) as pool:
            jobs = {f: pool.submit(self._header, f, f"{shown}/{f}") for f in weights.files}
            headers = {file: job.result() for file, job in jobs.items()}

        def read(file: str, _shown: str, to: Report) -> Mapping[str, View] | None:
            tensors, problems = headers[file]
            for problem in problems.errors:
                to.error(problem.message, problem.hint)
            for problem in problems.warnings:
                to.warn(problem.message, problem.hint)
            return tensors

        tensors = read_weights(weights, shown, report, read)
        # A plan needs the content of these tensors, so their files have to be here.
        needed = {path for name in states(tensors or {}) for path in (tensors or {})[name].files}
        self._download([file for file in weights.files if self._root / file in needed])
        return tensors

    def _header(self, file: str, shown: str) -> tuple[Mapping[str, View] | None, Problems]:
        """The tensors of one weight file, with the mistakes in it kept apart for this thread."""
        problems = Problems()
        report = Report(problems)
        path = self._root / file
        if path.exists():
            return read_file(path, shown, report), problems
        size = self._sizes[file]
        start, whole = self._range(file, 0, min(size or _FIRST, _FIRST))
        size = whole or size
        if size is None:
            raise _HubError(f"the hub does not say how long {shown} is")
        length = header_length(start, size, shown, report)
        if length is None:
            return None, problems
        if 8 + length > len(start):
            start += self._range(file, len(start), 8 + length)[0]
        return parse_header(start[8 : 8 + length], size, path, shown, report), problems

    def _range(self, file: str, start: int, stop: int) -> tuple[bytes, int | None]:
        """Bytes [start, stop) of a file, and its whole length if the answer tells."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub import utils as typed_utils

        utils: Any = typed_utils  # its lazy imports hide these functions from type checkers
        if stop <= start:
            return b"", None
        url = hf_hub_url(self._repo, file, revision=self._commit)
        headers = {**utils.build_hf_headers(), "range": f"bytes={start}-{stop - 1}"}

        def get() -> Any:
            answer = utils.get_session().get(url, headers=headers, timeout=30)
            utils.hf_raise_for_status(answer)
            return answer

        answer = self._ask(get)
        total = answer.headers.get("content-range", "").rpartition("/")[2]
        content: bytes = answer.content
        if len(content) != stop - start and answer.status_code == 206 and not total.isdigit():
            raise _HubError(f"the hub sent {len(content):,} bytes of {file}, not {stop - start:,}")
        if answer.status_code == 200:  # the server does not know ranges and sent everything
            return content[start:stop], len(content)
        return content, int(total) if total.isdigit() else None

    def _download(self, names: Iterable[str]) -> None:
        """Put files into the cache; those that are there cost no request."""
        wanted = [name for name in names if not (self._root / name).exists()]
        with ThreadPoolExecutor(_WORKERS) as pool:
            fetch = partial(_download, self._repo, self._commit, cache=self._cache)
            list(pool.map(lambda name: self._ask(partial(fetch, name)), wanted))

    def _remember(self, revision: str) -> None:
        """Note the commit of a branch or tag as the hub's own library does, for use offline."""
        note = self._cache / _repository_folder(self._repo) / "refs" / revision
        note.parent.mkdir(parents=True, exist_ok=True)
        if not note.is_file() or note.read_text() != self._commit:
            note.write_text(self._commit)

    def _ask(self, request: Callable[[], T]) -> T:
        return _worded(request, str(self._reference))


def fetch(checkpoint: Checkpoint, files: Iterable[Path]) -> None:
    """Download weight files of a hub model that are not on disk yet.

    Args:
        checkpoint: as opened.
        files: those that will be read; what is not listed in ``checkpoint.fetch`` is skipped.

    Raises:
        CheckpointError: a file cannot be downloaded.
    """
    wanted = [p for p in dict.fromkeys(files) if p in checkpoint.fetch and not p.exists()]
    with ThreadPoolExecutor(_FETCHERS) as pool:
        for _ in pool.map(partial(_fetch_one, checkpoint), wanted):
            pass  # asking for the results raises the first error


def _fetch_one(checkpoint: Checkpoint, path: Path) -> None:
    repo, commit, name = checkpoint.fetch[path]
    cache = checkpoint.root.parents[2]  # cache / models--a--b / snapshots / commit
    try:
        found = _worded(partial(_download, repo, commit, name, cache=cache), checkpoint.label)
    except _HubError as error:
        hint = f". {error.hint}" if error.hint else ""
        raise CheckpointError(f"{error.message}{hint}") from error
    if not path.exists():
        raise CheckpointError(f"{repo}/{name} was downloaded to {found}, not to {path}")


def _download(repo: str, commit: str, name: str, *, cache: Path) -> str:
    from huggingface_hub import hf_hub_download

    return hf_hub_download(repo, name, revision=commit, cache_dir=cache)


def _worded(request: Callable[[], T], label: str) -> T:
    """Run a request and put what goes wrong into one line with a next step."""
    from huggingface_hub import errors

    # The library's error derives from that of the HTTP client it is built on, which differs
    # between its versions. The bases cover connection errors of either.
    known: tuple[type[Exception], ...] = (errors.EntryNotFoundError, OSError)
    known += tuple(b for b in errors.HfHubHTTPError.__bases__ if issubclass(b, Exception))
    try:
        return request()
    except errors.GatedRepoError as error:
        raise _HubError(
            f"{label} is a gated model on the hub",
            "Ask for access on its page, then set HF_TOKEN or run huggingface-cli login",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise _HubError(
            f"{label} is neither a local path nor a model on the hub that you may see",
            "Check the spelling; for a private model set HF_TOKEN or run huggingface-cli login",
            unknown=True,
        ) from error
    except errors.RevisionNotFoundError as error:
        raise _HubError(f"{label}: the hub has the model, but not this revision") from error
    except errors.HFValidationError as error:
        raise _HubError(f"{label} does not exist, and is no id of the hub either") from error
    except known as error:
        raise _reworded(error, label) from error


def _reworded(error: Exception, label: str) -> _HubError:
    """Everything else: the server's refusal, or no server."""
    response = getattr(error, "response", None)
    if response is None or isinstance(error, FileNotFoundError):
        cause = error.__cause__ or error
        why = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        return _HubError(
            f"{label} is not a local path, and the hub cannot be reached ({why[:200]})",
            "Check the name and the connection (HF_ENDPOINT, proxy)",
            unknown=True,
            unreachable=True,
        )
    status = response.status_code
    hint = ""
    if status in (401, 403):
        hint = "Set HF_TOKEN or run huggingface-cli login"
    elif status == 429 or status >= 500:
        hint = "Try again later"
    return _HubError(f"{label}: the hub answered {status}", hint, unreachable=status >= 500)
