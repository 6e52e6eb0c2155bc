"""`python -m studio`: goes on in .venv where this Python lacks the packages."""

from studio.bootstrap import ensure_environment

if __name__ == "__main__":
    ensure_environment()
    from studio.cli import main

    raise SystemExit(main())
