"""Where a run's trials are logged besides its own folder; changes no result, and no record holds it."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from cdn_tune.config.keys import Frozen

_SCHEMES = ("http", "https", "sqlite", "file")
_LONGEST = 2000  # characters of a URI


class TrackingConfig(Frozen):
    """Where a run is logged, besides its own folder."""

    mlflow: Annotated[str, Field(max_length=_LONGEST)] | None = Field(
        None,
        description="MLflow server (http://HOST:5000) or store (sqlite:///PATH, file:PATH) that trials, metrics and "
        "results are logged to; user and password are set by MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    )
    experiment: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$", max_length=200)] = Field(
        "cdn-tune", description="MLflow's experiment, which groups runs"
    )
    checkpoints: bool = Field(False, description="the kept checkpoints are uploaded, too, when a run ends")

    @field_validator("mlflow")
    @classmethod
    def _check(cls, uri: str | None) -> str | None:
        if uri is None:
            return None
        scheme = uri.partition(":")[0].lower()
        if scheme not in _SCHEMES:
            raise ValueError("is no URI of MLflow; write http://HOST:PORT, https://HOST, sqlite:///PATH or file:PATH")
        if not uri.isprintable() or " " in uri:
            raise ValueError("has blanks or control characters in it; write it without")
        if scheme in ("sqlite", "file"):
            path = uri.partition(":")[2].lstrip("/")
            if not path or path.startswith("?") or (scheme == "sqlite" and not uri[len("sqlite:") :].startswith("///")):
                raise ValueError(f"names no file; write {'sqlite:///PATH' if scheme == 'sqlite' else 'file:PATH'}")
            return uri
        if "@" in uri:
            raise ValueError(
                "holds a user or a password, which do not belong in a file; set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN) in the environment"
            )
        try:
            parts = urlsplit(uri)
            _ = parts.port
        except ValueError as error:
            raise ValueError(f"is no URL ({error}); write http://HOST:PORT") from None
        if not parts.hostname or parts.query or parts.fragment:
            raise ValueError("must name a host, and nothing behind ? or #; write http://HOST:PORT")
        return uri.rstrip("/")
