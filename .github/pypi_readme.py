"""Makes the links of the README absolute in the package's metadata, for PyPI."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

FILES = "https://github.com/zosam-jax/zosam_jax/blob/main/"
IMAGES = "https://raw.githubusercontent.com/zosam-jax/zosam_jax/main/"


def absolute(text: str) -> str:
    """Returns Markdown whose relative links and images are absolute."""

    def link(match: re.Match[str]) -> str:
        label, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        return f"{label}({(IMAGES if label[0] == '!' else FILES) + target})"

    return re.sub(
        r"(!?\[(?:[^\[\]]|\[[^\]]*\](?:\([^)]*\))?)*\])\(([^)\s]+)\)", link, text
    )


class Readme(MetadataHookInterface):
    """Hatch's hook for the dynamic field `readme`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Sets the field."""
        text = absolute((Path(self.root) / "README.md").read_text())
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
