"""The program ``stillhouse``, and ``python -m stillhouse``: answers Ctrl-C while the rest is still imported."""

from stillhouse.interrupts import answer_interrupts

__all__ = ["main"]


def main() -> None:
    """Run :func:`stillhouse.cli.main`."""
    with answer_interrupts("nothing was begun; run the same command again"):
        from stillhouse import cli

        cli.main()


if __name__ == "__main__":
    main()
