"""What a failed request to the Hub means: another try after a pause, or an error that says what to do.

Knows nothing of huggingface_hub: an error counts by the HTTP ``response`` it carries, if it carries one.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import sleep
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from cxu.errors import HubAccessError, HubConnectionError, HubError, HubNotFoundError, IntegrityError

RepoType = Literal["dataset", "model"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetryPolicy:
    """How often a failing request is tried, and how long the pauses are.

    Attributes
    ----------
    attempts
        Tries in a row without a new byte; a transfer that advances starts counting afresh.
    first_wait_s
        Pause before the second try, in seconds; doubled every time.
    longest_wait_s
        Longest pause, in seconds. A server that asks for more (``Retry-After``) is given up at once.
    """

    attempts: int = 5
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0


DEFAULT_RETRY: Final = RetryPolicy()


@dataclass(frozen=True)
class Target:
    """What a request is for, in the words of an error message.

    Examples
    --------
    >>> str(Target("https://hf.co", "ann/chest", "dataset", "main", "a.csv"))
    "file 'a.csv' of dataset repository 'ann/chest' (revision main)"
    """

    endpoint: str
    repo: str
    repo_type: RepoType
    revision: str
    path: str | None = None

    def __str__(self) -> str:
        file = f"file {self.path!r} of " if self.path else ""
        return f"{file}{self.repo_type} repository {self.repo!r} (revision {self.revision})"

    @property
    def host(self) -> str:
        """Host and port of the endpoint; never a password that stands in it."""
        parts = urlsplit(self.endpoint)
        return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)

    @property
    def page(self) -> str:
        """Address of the repository's page."""
        scheme = urlsplit(self.endpoint).scheme
        return f"{scheme}://{self.host}/{'datasets/' if self.repo_type == 'dataset' else ''}{self.repo}"


class Tries:
    """Counts the failures in a row of one request: pauses before the next try, or says what the failure means.

    `EOFError` stands for a body that ended too early. Set ``failures`` to 0 whenever the transfer advances.
    """

    def __init__(self, target: Target, policy: RetryPolicy) -> None:
        self.target, self.policy, self.failures = target, policy, 0

    def again(self, error: Exception) -> None:
        """Return after a pause if ``error`` may pass; otherwise raise what it means.

        Raises
        ------
        HubAccessError, HubNotFoundError, HubError
            If the server refuses: trying again would not help.
        HubConnectionError, IntegrityError
            If the tries are used up, or the server asks for a longer pause than the policy allows.
        """
        response = getattr(error, "response", None)
        if response is not None and not _may_pass(response.status_code):
            raise refusal(response, self.target) from error
        self.failures += 1
        asked_s = None if response is None else asked_pause_s(response.headers)
        if self.failures >= self.policy.attempts or (asked_s or 0) > self.policy.longest_wait_s:
            raise self._given_up(error, asked_s) from error
        backoff_s = min(self.policy.first_wait_s * 2 ** (self.failures - 1), self.policy.longest_wait_s)
        pause_s = backoff_s if asked_s is None else asked_s
        counted = f"try {self.failures + 1} of {self.policy.attempts} in {pause_s:.0f} s"
        logger.warning("%s: %s; %s", self.target, _reason(error), counted)
        sleep(pause_s)

    def _given_up(self, error: Exception, asked_s: float | None) -> HubError:
        tries = f"{self.failures} {'try' if self.failures == 1 else 'tries'}"
        if isinstance(error, EOFError):
            return IntegrityError(
                f"{self.target} is truncated: {error} have arrived, and none more in {tries}. Run the same command "
                "again to continue there; if it ends there again, the file on the server is incomplete."
            )
        if getattr(error, "response", None) is None:
            return HubConnectionError(
                f"cannot reach {self.target.host} for {self.target} ({tries}): {_reason(error)}. "
                "Check the network, HF_ENDPOINT and the proxy settings; --offline uses what is already cached."
            )
        wait = f", and asks for a pause of {asked_s:.0f} s" if asked_s else ""
        return HubConnectionError(
            f"{self.target.host} keeps failing for {self.target}: {_reason(error)}{wait} ({tries}). "
            "Run the same command again later: it continues where it stopped."
        )


def refusal(response: Any, target: Target) -> HubError:
    """Return what a 4xx ``response`` to the request for ``target`` means."""
    status, code = int(response.status_code), response.headers.get("X-Error-Code", "")
    if status in {401, 403}:
        return HubAccessError(
            f"{target.host} refuses access to {target}: {_said(response)}. Set HF_TOKEN or run `hf auth login`, accept "
            f"the terms at {target.page} with that account, and check the name: a repository that does not exist "
            "is refused alike."
        )
    if status == 404 and code == "RevisionNotFound":
        return HubNotFoundError(
            f"{target.repo_type} repository {target.repo!r} has no revision {target.revision!r}. "
            f"Expected a branch, tag or commit listed at {target.page}."
        )
    if status == 404 and target.path is not None and code != "RepoNotFound":
        return HubNotFoundError(f"there is no {target}. {target.page} shows the files that exist.")
    if status == 404:
        return HubNotFoundError(
            f"{target.host} has no {target.repo_type} repository {target.repo!r}. Check its name and HF_ENDPOINT."
        )
    if status == 416:
        return IntegrityError(f"{target} is truncated: the server's copy is shorter than its listing says.")
    return HubError(f"{target.host} answered the request for {target} with an error: {_said(response)}.")


def asked_pause_s(headers: Mapping[str, str]) -> float | None:
    """Return the pause that ``Retry-After`` or an exhausted ``RateLimit`` header asks for, in seconds, or None.

    Examples
    --------
    >>> asked_pause_s({"Retry-After": "7"}), asked_pause_s({"RateLimit": '"api";r=0;t=55'}), asked_pause_s({})
    (7.0, 55.0, None)
    """
    text = headers.get("Retry-After", "").strip()
    if text.isdigit():
        return float(text)
    if (match := re.search(r";\s*r=0;\s*t=(\d+)", headers.get("RateLimit", ""))) is not None:
        return float(match[1])
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):  # no date, or one without a zone
        return None


def _may_pass(status: int) -> bool:
    return status >= 500 or status in {408, 429}


def _reason(error: Exception) -> str:
    if isinstance(error, EOFError):
        return f"the connection broke after {error}"
    response = getattr(error, "response", None)
    return without_token(f"{type(error).__name__}: {error}") if response is None else _said(response)


def _said(response: Any) -> str:
    said = without_token(response.headers.get("X-Error-Message", "")[:300])
    return f"HTTP status {response.status_code}" + (f" ({said})" if said else "")


def without_token(text: str) -> str:
    """Return a text without the Hub's tokens: neither that of the environment nor what looks like one."""
    token = os.environ.get("HF_TOKEN", "").strip()
    return re.sub(r"hf_\w+|(?<=Bearer )\S+", "***", text.replace(token, "***") if token else text)
