"""Pre-trained weights by timm's tags, such as orig_in21k: found where earlier downloads left them, fetched when asked.

timm itself downloads whatever is not there. Its weights lie in Hugging Face's cache (HF_HOME), and those that it
fetched from their authors in torch's (TORCH_HOME).
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

import torch

from reprise.backbone.base import ExpectedInput
from reprise.backbone.pretrained import AUTO
from reprise.runtime.errors import UserError
from reprise.runtime.registry import nearest
from reprise.runtime.vision import ensure_torchvision

FILE = "model.safetensors"
OLDER_FILE = "pytorch_model.bin"


def tags(architecture: str) -> list[str]:
    """Of the weights that timm knows for an architecture."""
    ensure_torchvision()
    import timm

    names = timm.list_models(f"{architecture}.*", pretrained=True, include_tags=True)
    return [name.partition(".")[2] for name in names]


def usual_input(architecture: str) -> ExpectedInput:
    """What the weights expect that timm takes by default."""
    return _expected(_configuration(architecture))


@dataclass(frozen=True)
class TimmWeights:
    """Weights that timm knows by a tag, see base.Weights. UserError for a tag that it does not know."""

    architecture: str
    tag: str
    format = AUTO

    def __post_init__(self) -> None:
        known = tags(self.architecture)
        if self.tag not in known:
            raise UserError(
                f"backbone '{self.architecture}' has no weights '{self.tag}'{nearest(self.tag, known) or ';'} "
                f"timm knows: {', '.join(known) or 'none'}"
            )

    def find(self) -> Path:
        found = self._cached()
        if found is None:
            raise UserError(
                f"backbone '{self.architecture}': its weights '{self.tag}' are not in {' or '.join(self._places())}; "
                "run once with --download, or give pretrained the path of a file"
            )
        return found

    def fetch(self) -> None:
        if self._cached():
            return
        from huggingface_hub import hf_hub_download

        known = self._known()
        try:
            if known.hf_hub_id:
                hf_hub_download(known.hf_hub_id, FILE)
            else:
                file = _torch_file(known.url)
                file.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(known.url, str(file), progress=False)
        except OSError as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"backbone '{self.architecture}': download of its weights '{self.tag}' failed ({reason}); check the "
                f"network, or put them in {' or '.join(self._places())}"
            ) from error

    def expects(self) -> ExpectedInput:
        return _expected(self._known())

    def _known(self) -> Any:
        return _configuration(f"{self.architecture}.{self.tag}")

    def _cached(self) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        known = self._known()
        if known.hf_hub_id:
            for name in (FILE, OLDER_FILE):
                found = try_to_load_from_cache(known.hf_hub_id, name)
                if isinstance(found, str):
                    return Path(found)
        if known.url and _torch_file(known.url).is_file():
            return _torch_file(known.url)
        return None

    def _places(self) -> list[str]:
        """For messages: where the weights can lie."""
        from huggingface_hub import constants

        known = self._known()
        places = []
        if known.hf_hub_id:
            places.append(f"'{constants.HF_HUB_CACHE}' as {known.hf_hub_id}")
        if known.url:
            places.append(f"'{_torch_file(known.url)}'")
        return places


def _configuration(name: str) -> Any:
    """What timm says of an architecture, or of architecture.tag."""
    ensure_torchvision()
    import timm

    return timm.get_pretrained_cfg(name)


def _expected(configuration: Any) -> ExpectedInput:
    _, height, width = configuration.input_size
    return ExpectedInput((height, width), configuration.mean, configuration.std)


def _torch_file(url: str) -> Path:
    """Where torch and timm keep what they have fetched from `url`."""
    return Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(urlparse(url).path).name
