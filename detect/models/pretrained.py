"""Where weights that are named, not given as a file, come from."""

from __future__ import annotations

import hashlib
import http.client
import re
import socket
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlparse

import torch

from dpipe.errors import InputError

TIMEOUT_S = 30.0
"""How long a server may stay silent."""

# The start of a SHA-256 at the end of a name, which eight digits that are a day are not.
_HASH = re.compile(r"-(?!(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:[0-2]\d|3[01])\.)([0-9a-f]{8,})\.")


def resolve_pretrained(name: str, model_name: str) -> str:
    """Turns what a recipe's ``pretrained`` says into a path or URL.

    Args:
        name: ``ResNet50_Weights.IMAGENET1K_V1``, ``torchvision://resnet50``, a path or a URL.
        model_name: Name of the architecture in torchvision, such as ``resnet50``.

    Raises:
        InputError: torchvision has no such weights, or they are another architecture's.
    """
    alias = re.fullmatch(r"torchvision://(.*)", name)
    if alias is None and not re.fullmatch(r"\w+_Weights(\.\w+)?", name):
        return name
    from torchvision.models import get_model_weights

    weights = get_model_weights(model_name)
    known = [f"{weights.__name__}.{member}" for member in weights.__members__]
    if alias is not None:
        if alias[1] != model_name:
            raise InputError(f"pretrained {name!r} is not for {model_name}, whose name is 'torchvision://{model_name}'")
        return str(weights["IMAGENET1K_V1"].url)
    if name not in known:
        raise InputError(
            f"pretrained {name!r} is not one of torchvision's weights for {model_name}: {', '.join(known)}"
        )
    return str(weights[name.partition(".")[2]].url)


def is_url(source: str) -> bool:
    """Whether a source is to be downloaded."""
    return source.lower().startswith(("http://", "https://"))


def download(url: str) -> Path:
    """Fetches a file into torch's hub cache, once.

    A name that ends in a hash, as torchvision's and OpenMMLab's do (``resnet50-0676ba61.pth``), is checked against it.
    Other names, those that end in a date (``model-20240131.pth``) among them, may be those of several files, so in the
    cache a digest of the URL stands before them.

    Returns:
        The cached file, in ``$TORCH_HOME/hub/checkpoints``.

    Raises:
        InputError: The file is neither cached nor to be had.
    """
    try:
        name = Path(urlparse(url).path).name
    except ValueError as error:
        raise InputError(f"{url}: is no URL: {error}") from error
    if not name:
        raise InputError(f"{url}: names no file to download")
    digest = _HASH.search(name)
    if digest is None:
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:16]}_{name}"
    cached = Path(torch.hub.get_dir()) / "checkpoints" / name
    if cached.exists():
        return cached
    timeout = socket.getdefaulttimeout()
    # torch.hub passes no timeout of its own, and a blocked connection would hang for minutes.
    socket.setdefaulttimeout(TIMEOUT_S)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(cached), digest[1] if digest else None, progress=False)
    except (OSError, http.client.HTTPException, RuntimeError, ValueError) as error:
        # OSError covers unreachable hosts and HTTP errors; torch.hub raises RuntimeError for a wrong hash.
        if isinstance(error, HTTPError):
            error.close()
        cause = getattr(error, "reason", None)
        reason = cause if isinstance(cause, OSError) else error
        raise InputError(f"{url}: cannot be downloaded ({reason}) and is not cached as {cached}") from error
    finally:
        socket.setdefaulttimeout(timeout)
    return cached
