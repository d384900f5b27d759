"""How the ranker's tables look in a terminal."""

from rich.box import SIMPLE_HEAD
from rich.table import Table


def plain_table(title: str, caption: str | None = None, space: int = 1) -> Table:
    """A table without side lines; `space` between columns comes on top of one character."""
    return Table(
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, space, 0, 0),
        pad_edge=False,
    )
