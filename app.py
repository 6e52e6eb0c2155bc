"""Start LoRA Studio: `python3 app.py`. Makes its environment first where packages are missing."""

from __future__ import annotations

import argparse
from pathlib import Path

from studio.bootstrap import ensure_environment


def parse_arguments() -> argparse.Namespace:
    """The command line. Without --listen the address is loopback: others come through a tunnel."""
    parser = argparse.ArgumentParser(prog="app.py", description="LoRA Studio in the browser.")
    parser.add_argument(
        "--listen", action="store_true",
        help="let other machines in: prints a link with a token, asks everybody for one",
    )  # fmt: skip
    parser.add_argument(
        "--host", help="address to listen on (default: 127.0.0.1; with --listen: 0.0.0.0)"
    )
    parser.add_argument("--port", type=int, help="port (default: 7860 or the next free one)")
    parser.add_argument("--workspace", type=Path, help="folder of all data (default: ./workspace)")
    parser.add_argument("--no-browser", action="store_true", help="do not open the page")
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME",
        help="host name under which the page is also reached, for example behind a proxy",
    )  # fmt: skip
    parser.add_argument(
        "--public-url", metavar="URL",
        help="address of a proxy in front, for example https://studio.example; asks for a token",
    )  # fmt: skip
    return parser.parse_args()


def main() -> int:
    """Command line and environment to settings, then serve."""
    given = parse_arguments()
    ensure_environment()
    from studio.server import main as serve
    from studio.services.settings import Settings, choose_workspace

    settings = Settings(
        workspace=choose_workspace(given.workspace),
        host=given.host or ("0.0.0.0" if given.listen else "127.0.0.1"),
        port=7860 if given.port is None else given.port, allow_hosts=tuple(given.allow_host),
        listen=given.listen, public_url=given.public_url,
    )  # fmt: skip
    return serve(settings, port_given=given.port is not None, browser=not given.no_browser)


if __name__ == "__main__":
    raise SystemExit(main())
