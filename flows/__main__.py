"""``python -m flows``: answers Ctrl-C while the rest is still imported."""

from stillhouse.interrupts import answer_interrupts

__all__ = ["main"]


def main() -> None:
    """Run :func:`flows.by_hand.main`."""
    with answer_interrupts("nothing was begun; run the same command again"):
        from flows import by_hand

        by_hand.main()


if __name__ == "__main__":
    main()
