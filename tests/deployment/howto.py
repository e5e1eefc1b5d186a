"""The commands and files of the page on deployment, and what has to differ where all machines are one."""

import re
import shutil
from pathlib import Path

from tests.docs.pages import DOCS, blocks
from tests.processes import free_port

PAGE = DOCS / "howto" / "deployment.md"
END, OPERATE = "## Containers", "## Operate"
NGINX = shutil.which("nginx")
ADDRESS = "127.0.0.2"  # as the open one; the certificate has it by --host alone
_FILE = re.compile(r"# (?P<name>\S+\.toml)\n")


class HowTo:
    """Hands out the page's commands, each once, and its files, ready to be used in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self._open_port, self._metrics = folder, free_port(), free_port(), free_port()
        lines = PAGE.read_text(encoding="utf-8").splitlines()
        end, operate = map(lines.index, (END, OPERATE))
        shown = [block for block in blocks(PAGE, "bash", "toml") if not block.skipped]
        files = (block.code for block in shown if block.line < end)
        self.files = {match["name"]: self.here(code) for code in files if (match := _FILE.match(code))}
        self.commands, self.operations = (
            [
                self.here(command)
                for block in shown
                if block.language == "bash" and (block.line < end if first else block.line > operate)
                for command in block.code.replace("\\\n", " ").splitlines()
            ]
            for first in (True, False)
        )

    @property
    def open_address(self) -> str:
        """Where nodes, and strangers, reach the SuperLink: without nginx, where all do."""
        return f"{ADDRESS}:{self._open_port}" if NGINX else f"127.0.0.1:{self.port}"

    def here(self, text: str) -> str:
        """Return a part of the page with this machine's names, ports and folders: all that differs from the page."""
        differs = {
            "superlink.example.org:8443": self.open_address,
            "superlink.example.org": ADDRESS,
            "listen 8443": f"listen {self.open_address}",
            "--port 8000": f"--port {self.port}",
            "localhost:8000": f"localhost:{self.port}",
            "127.0.0.1:8000": f"127.0.0.1:{self.port}",
            "127.0.0.1:9090": f"127.0.0.1:{self._metrics}",
            "/home/me/runs/first": str(self.folder / "run"),
            "/home/me": str(self.folder),
            "/tmp/nginx": f"{self.folder}/nginx",
            "daemon off;": "daemon off; master_process off;",
        }
        for theirs, ours in differs.items():
            text = text.replace(theirs, ours)
        return text

    def take(self, beginning: str) -> str:
        """Return the next command that begins so; it is not handed out again."""
        command = next(command for command in self.commands if command.startswith(beginning))
        self.commands.remove(command)
        return command
